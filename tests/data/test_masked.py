"""Masked rows: every token once an epoch, whole words hidden as often as asked, the same whoever asks."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.data.config import MaskingConfig
from hasten.data.masked import MaskedCorpus, Masking
from hasten.data.shards import ShardWriter
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train
from hasten.tokenizer.words import WordStarts

ROW = 32
TEXT = "readers reading unreadable words reread them while writers write what nobody reads "


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    wordpiece = TokenizerConfig(kind="wordpiece", vocab_size=60, min_frequency=1)
    bpe = TokenizerConfig(vocab_size=280, special_tokens=("<|mask|>",), min_frequency=1)
    return {c.kind: train([TEXT] * 20, c, progress=False) for c in (wordpiece, bpe)}


def write(folder: Path, tokenizer: Tokenizer, lengths: list[int]) -> list[list[int]]:
    """Shards of documents cut from one endless text."""
    (folder / "train").mkdir(parents=True)
    ids = iter(tokenizer.encode(TEXT * 200))
    writer = ShardWriter("text", tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eot_id)
    documents = [list(islice(ids, length)) for length in lengths]
    for number, document in enumerate(documents):
        writer.add(str(number), document, len(document))
    writer.write(folder / "train" / "text-00000.safetensors")
    return documents


LENGTHS = [5, 100, 31, 30, 29, 64, 1, 0, 77, 12]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def made(request, tokenizers, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = tokenizers[request.param]
    return folder, tokenizer, write(folder, tokenizer, LENGTHS)


def corpus(
    folder: Path, tokenizer: Tokenizer, seed: int = 0, row: int = ROW, **masking: object
) -> MaskedCorpus:
    return MaskedCorpus(folder, "train", row, seed, tokenizer=tokenizer, masking=MaskingConfig(**masking))


def unmasked(batch: Batch) -> torch.Tensor:
    """The text as it was."""
    return torch.where(batch.targets != IGNORE, batch.targets, batch.tokens)


def epoch(rows: MaskedCorpus, number: int = 0) -> list[Batch]:
    first = number * rows.num_rows
    return [rows.batches(step, rows=1, micro_rows=1)[0] for step in range(first, first + rows.num_rows)]


def test_an_epoch_holds_every_token_once_each_piece_between_its_marks(made):
    folder, tokenizer, documents = made
    rows = corpus(folder, tokenizer)
    found, whole, cut = Counter(), 0, 0
    for batch in epoch(rows):
        text, segments = unmasked(batch)[0], batch.segments[0]
        found.update(text[segments > 0].tolist())
        for segment in range(1, int(segments.max()) + 1):
            ids = text[segments == segment]
            assert batch.positions[0][segments == segment].tolist() == list(range(len(ids)))
            begun = ids[0] == tokenizer.bos_id or tokenizer.bos_id == tokenizer.eot_id
            whole, cut = whole + (begun and ids[-1] == tokenizer.eot_id), cut + 1
    special = {tokenizer.bos_id, tokenizer.eot_id}
    assert Counter({i: n for i, n in found.items() if i not in special}) == Counter(
        i for d in documents for i in d
    )
    assert whole >= cut - 4  # only what fills the last gaps is cut again
    assert rows.utilisation > 0.9


def test_whole_words_are_hidden_and_never_a_special_token_or_padding(made):
    folder, tokenizer, _ = made
    for batch in epoch(corpus(folder, tokenizer)):
        text, asked = unmasked(batch)[0], batch.targets[0] != IGNORE
        assert not (asked & (batch.segments[0] == 0)).any()
        assert not set(text[asked].tolist()) & tokenizer.special_ids
        starts = WordStarts(tokenizer)(text.numpy())
        special = np.isin(text.numpy(), list(tokenizer.special_ids))
        starts[1:] |= (batch.segments[0][1:] != batch.segments[0][:-1]).numpy() | special[:-1]
        for word in np.split(asked.numpy(), np.flatnonzero(starts)[1:]):
            assert word.all() or not word.any()


def test_the_rest_of_a_word_that_a_piece_begins_with_is_a_word_of_its_own(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    mark = tokenizer.bos_id, tokenizer.eot_id
    one, more = next(ids for w in TEXT.split() if len(ids := tokenizer.encode(w)) > 1)[:2]
    tokens = np.array([mark[0], more, one, more, mark[1], mark[0], more, more, one, mark[1], 0, 0])
    segments = np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0])
    words = Masking(tokenizer, MaskingConfig(), len(tokens)).words(tokens, segments)
    assert words.tolist() == [-1, 0, 1, 1, -1, -1, 2, 2, 3, -1, -1, -1]


def test_the_share_that_is_asked_and_how_it_is_shown_are_as_configured(tokenizers, tmp_path):
    tokenizer = tokenizers["bpe"]
    write(tmp_path, tokenizer, [1600] * 4)
    batches = epoch(corpus(tmp_path, tokenizer, row=128, share=0.2))
    asked = torch.cat([b.targets[0] != IGNORE for b in batches])
    shown, targets = (
        torch.cat([getattr(b, name)[0] for b in batches])[asked] for name in ("tokens", "targets")
    )
    assert asked.float().mean() == pytest.approx(0.2, abs=0.01)
    masked, kept = (shown == tokenizer.mask_id).float().mean(), (shown == targets).float().mean()
    error = 4 * (0.8 * 0.2 / len(shown)) ** 0.5
    assert masked == pytest.approx(0.8, abs=error)
    assert kept == pytest.approx(0.1, abs=error)  # a random token is the right one once in 277
    all_masked = epoch(corpus(tmp_path, tokenizer, row=128, share=0.3, as_mask=1.0, as_random=0.0))
    for batch in all_masked:
        assert (batch.tokens[batch.targets != IGNORE] == tokenizer.mask_id).all()


def test_the_places_that_are_scored_are_those_with_targets_and_as_many_in_every_batch(made):
    folder, tokenizer, _ = made
    rows = corpus(folder, tokenizer)
    sizes = set()
    for batch in rows.sweep(3):
        places, targets = batch.extra["scored"], batch.targets.flatten()
        sizes.add(len(places))
        with_target = places[targets[places] != IGNORE]
        assert sorted(with_target.tolist()) == (targets != IGNORE).nonzero().flatten().tolist()
    assert sizes == {3 * round(0.15 * ROW)}
    assert rows.head_share == pytest.approx(round(0.15 * ROW) / ROW)


def same(one: Batch, other: Batch) -> bool:
    tensors = [[b.tokens, b.targets, b.segments, b.positions, *b.extra.values()] for b in (one, other)]
    return one.documents == other.documents and all(map(torch.equal, *tensors))


def test_ranks_and_a_resumed_run_see_the_same_masks_and_every_epoch_others(made):
    folder, tokenizer, _ = made
    alone = corpus(folder, tokenizer, seed=4).batches(3, rows=4, micro_rows=1)
    later = corpus(folder, tokenizer, seed=4)
    ranks = [b for rank in (0, 1) for b in later.batches(3, rows=4, micro_rows=1, rank=rank, world_size=2)]
    assert all(map(same, alone, ranks))

    def masks(number: int) -> dict[tuple[int, ...], tuple[bool, ...]]:
        batches = epoch(later, number)
        return {tuple(unmasked(b)[0].tolist()): tuple((b.targets[0] != IGNORE).tolist()) for b in batches}

    first, second = masks(0), masks(1)
    assert first.keys() == second.keys()
    assert sum(first[row] == second[row] for row in first) <= len(first) // 4


def test_tokens_may_be_hidden_one_by_one(made):
    folder, tokenizer, _ = made
    batches = epoch(corpus(folder, tokenizer, whole_words=False))
    parts = 0
    for batch in batches:
        text, asked = unmasked(batch)[0], batch.targets[0] != IGNORE
        starts = WordStarts(tokenizer)(text.numpy())
        parts += sum(w.any() and not w.all() for w in np.split(asked.numpy(), np.flatnonzero(starts)[1:]))
    assert parts > 0


def test_a_tokenizer_without_a_mask_token_is_refused_with_the_remedy(tmp_path, byte_tokenizer):
    tokenizer = byte_tokenizer("<|endoftext|>")
    write(tmp_path, tokenizer, [50])
    with pytest.raises(ConfigError, match=r"no mask token.*special_tokens=\['<\|mask\|>'\]"):
        corpus(tmp_path, tokenizer)


def test_shares_above_one_are_refused():
    with pytest.raises(ValueError, match="are more than all"):
        MaskingConfig(as_mask=0.8, as_random=0.3)
