"""Batches as a pure function of (seed, step, rank): nothing lost, nothing twice, whoever asks."""

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError, DataError
from hasten.data import corpus as module
from hasten.data import pack
from hasten.data.corpus import Corpus
from hasten.data.prefetch import Prefetch
from hasten.data.shards import ShardWriter

EOT = 0
Texts = dict[str, list[list[int]]]  # the tokens of each document of each source


def prepare(folder: Path, texts: Texts, split: str = "train") -> Path:
    """What `hasten prepare` leaves: shards of two documents each, so that there are several."""
    (folder / split).mkdir(parents=True)
    for source, documents in texts.items():
        for first in range(0, len(documents), 2):
            writer = ShardWriter(source, 60_000, bos_id=EOT, eot_id=EOT)
            for number, tokens in enumerate(documents[first : first + 2], first):
                writer.add(f"{source}/{number}", np.array(tokens, np.int64), len(tokens))
            writer.write(folder / split / f"{source}-{first:05}.safetensors")
    return folder


def texts(lengths: dict[str, list[int]]) -> Texts:
    """Documents in which no token comes twice, so that a token tells where it is from."""
    tokens = iter(range(1, 60_000))
    return {source: [list(islice(tokens, length)) for length in group] for source, group in lengths.items()}


def pairs(batch: Batch) -> list[tuple[int, int]]:
    """(token, target) wherever there is something to learn."""
    learnt = batch.targets != IGNORE
    return list(zip(batch.tokens[learnt].tolist(), batch.targets[learnt].tolist(), strict=True))


def all_pairs(texts: Texts) -> list[tuple[int, int]]:
    """Every next-token pair of every document, its begin and its end with it."""
    documents = [[EOT, *tokens, EOT] for group in texts.values() for tokens in group]
    return [pair for ids in documents for pair in pairwise(ids)]


def same(ours: Batch, theirs: Batch) -> bool:
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for a, b in zip(
            (ours.tokens, ours.targets, ours.segments, ours.positions),
            (theirs.tokens, theirs.targets, theirs.segments, theirs.positions),
            strict=True,
        )
    )


THREE = texts({"books": [40, 95, 3], "web": [7, 12, 8, 31, 1, 0, 22], "code": [16, 15, 17]})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("corpus") / "prepared", THREE)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(0, 40), min_size=1, max_size=6), min_size=1
    ),
    row_tokens=st.integers(2, 20),
    seed=st.integers(0, 3),
)
def test_an_epoch_holds_every_target_of_every_document_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: dict[str, list[int]], row_tokens: int, seed: int
):
    given_texts = texts(lengths)
    corpus = Corpus(prepare(tmp_path_factory.mktemp("c") / "p", given_texts), "train", row_tokens, seed)
    assume(corpus.num_tokens >= row_tokens)
    for epoch in range(2):
        batches = [corpus.batches(epoch * corpus.num_rows + step, rows=1, micro_rows=1)[0]
                   for step in range(corpus.num_rows)]  # fmt: skip
        assert Counter(pair for batch in batches for pair in pairs(batch)) == Counter(all_pairs(given_texts))
    assert corpus.num_tokens == len(all_pairs(given_texts))


def test_epochs_wrap_inside_a_step(prepared: Path):
    """Steps of 5 rows do not divide an epoch; after 5 epochs every target was read exactly 5 times."""
    corpus = Corpus(prepared, "train", 16, seed=0)
    assert corpus.num_rows % 5
    batches = [corpus.batches(step, rows=5, micro_rows=5)[0] for step in range(corpus.num_rows)]
    counts = Counter(pair for batch in batches for pair in pairs(batch))
    assert counts == Counter({pair: 5 * times for pair, times in Counter(all_pairs(THREE)).items()})
    assert corpus.epoch(corpus.num_rows, 5) == 5.0


def test_epochs_have_orders_of_their_own(prepared: Path):
    corpus = Corpus(prepared, "train", 16, seed=0)
    n = corpus.num_rows
    epochs = [
        [pairs(corpus.batches(e * n + step, rows=1, micro_rows=1)[0]) for step in range(n)] for e in range(3)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("weights", [None, {"books": 1, "web": 2.5, "code": 0.5}], ids=["all", "mixture"])
def test_batches_depend_on_seed_and_step_alone(prepared: Path, weights: dict[str, float] | None):
    corpus = Corpus(prepared, "train", 16, 3, weights)
    steps = [corpus.batches(step, rows=4, micro_rows=2) for step in range(12)]
    again = Corpus(prepared, "train", 16, 3, weights)
    other = Corpus(prepared, "train", 16, 4, weights)
    for step in (11, 0, 7, 3):
        found = again.batches(step, rows=4, micro_rows=2)
        assert all(same(a, b) and a.documents == b.documents for a, b in zip(found, steps[step], strict=True))
    assert not all(same(other.batches(step, rows=4, micro_rows=2)[0], steps[step][0]) for step in range(12))


@pytest.mark.parametrize("weights", [None, {"books": 1, "web": 2, "code": 1}], ids=["all", "mixture"])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_read_what_one_would(
    prepared: Path, world_size: int, weights: dict[str, float] | None
):
    corpus = Corpus(prepared, "train", 16, 0, weights)
    for step in range(5):
        (one,) = corpus.batches(step, rows=6, micro_rows=6)
        parts = [
            batch
            for rank in range(world_size)
            for batch in corpus.batches(step, rows=6, micro_rows=1, rank=rank, world_size=world_size)
        ]
        assert torch.equal(torch.cat([part.tokens for part in parts]), one.tokens)
        assert torch.equal(torch.cat([part.targets for part in parts]), one.targets)
        assert {name for part in parts for name in part.documents} == set(one.documents)


def test_pieces_of_a_row_are_numbered_count_from_zero_and_follow_their_document(prepared: Path):
    corpus = Corpus(prepared, "train", 16, 0)
    after = dict(pair for pair in all_pairs(THREE) if EOT not in pair)
    for batch in corpus.sweep(4):
        if batch.segments is None or batch.positions is None:
            continue
        for tokens, segments, positions in zip(batch.tokens, batch.segments, batch.positions, strict=True):
            for segment in range(1, int(segments.max()) + 1):
                inside = tokens[segments == segment].tolist()
                assert positions[segments == segment].tolist() == list(range(len(inside)))
                assert all(after[a] == b for a, b in pairwise(inside) if a != EOT)
        assert (batch.targets[batch.segments == 0] == IGNORE).all()


@pytest.mark.parametrize(("length", "packed"), [(31, False), (7, True), (20, True)])
def test_a_corpus_is_packed_if_some_row_is_not_one_whole_piece(tmp_path: Path, length: int, packed: bool):
    corpus = Corpus(prepare(tmp_path, texts({"a": [length] * 8})), "train", 16, seed=0)
    assert corpus.packed is packed
    batches = [corpus.batches(step, rows=2, micro_rows=2)[0] for step in range(corpus.num_rows // 2)]
    assert any(batch.segments is not None for batch in batches) is packed


def test_a_batch_names_its_documents(prepared: Path):
    corpus = Corpus(prepared, "train", 16, 0)
    for batch in corpus.sweep(2):
        inside = set(batch.tokens.flatten().tolist()) - {EOT}
        expected = {
            f"{source}/{number}"
            for source, group in THREE.items() for number, tokens in enumerate(group) if inside & set(tokens)
        }  # fmt: skip
        # The empty document has no token of its own to be found by.
        assert set(batch.documents) - {"web/5"} == expected


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_sweep_reads_every_row_once_in_batches_of_one_shape(prepared: Path, world_size: int):
    corpus = Corpus(prepared, "train", 16, 0)
    ranks = [list(corpus.sweep(4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1, "ranks wait for each other after each batch"
    batches = [batch for own in ranks for batch in own]
    assert {tuple(batch.tokens.shape) for batch in batches} == {(4, 16)}
    assert Counter(pair for batch in batches for pair in pairs(batch)) == Counter(all_pairs(THREE))


def test_a_sweep_of_some_rows_is_the_same_for_any_number_of_ranks(prepared: Path):
    corpus = Corpus(prepared, "train", 16, 0)
    alone = Counter(pair for batch in corpus.sweep(2, rows=5) for pair in pairs(batch))
    shared = Counter(
        pair
        for rank in range(2)
        for batch in corpus.sweep(1, rows=5, rank=rank, world_size=2)
        for pair in pairs(batch)
    )
    assert alone == shared
    assert 4 * 16 < alone.total() <= 5 * 16


def test_a_mixture_learns_from_sources_by_weight_counted_in_targets(tmp_path: Path):
    """Rows of `long` are full, rows of `half` are half full: the shares are still those of the weights."""
    given_texts = texts({"long": [1_599], "half": [8], "short": [319]})
    corpus = Corpus(prepare(tmp_path / "p", given_texts), "train", 16, 0, {"long": 5, "half": 1, "short": 4})
    own = {name: {token for tokens in group for token in tokens} for name, group in given_texts.items()}
    counts = Counter[str]()
    for step in range(100):
        for batch in corpus.batches(step, rows=10, micro_rows=10):
            held = {document.partition("/")[0] for document in batch.documents}
            assert held == set(own), "each step of ten rows holds every source"
            for token in batch.tokens[batch.targets != IGNORE].tolist():
                counts.update(name for name, tokens in own.items() if token in tokens)
    share = {name: counts[name] / counts.total() for name in own}
    # Begins of documents are not counted, which matters to `half` alone: one token in nine.
    assert share["long"] == pytest.approx(0.5, abs=0.02)
    assert share["half"] == pytest.approx(0.1 * 8 / 9, abs=0.01)
    assert share["short"] == pytest.approx(0.4, abs=0.02)


def test_weights_for_other_sources_than_there_are_are_refused(prepared: Path):
    with pytest.raises(
        DataError, match="weights are for books, wiki, but there is text of books, code, web; weigh"
    ):
        Corpus(prepared, "train", 16, 0, {"books": 1, "wiki": 1})


def test_text_shorter_than_a_row_is_refused_with_the_row_to_write(tmp_path: Path):
    corpus = Corpus(prepare(tmp_path / "p", texts({"a": [40]})), "train", 512, 0)
    with pytest.raises(
        DataError, match=r"41 tokens of text, less than one row of 512; write data.row_tokens=32"
    ):
        corpus.batches(0, rows=1, micro_rows=1)
    (batch,) = corpus.sweep(1)
    assert (batch.targets != IGNORE).sum() == 41, "enough to validate on"


def test_text_of_fewer_rows_than_a_step_is_refused_with_the_batch_to_write(tmp_path: Path):
    corpus = Corpus(prepare(tmp_path / "p", texts({"a": [99]})), "train", 16, 0)
    with pytest.raises(
        DataError, match=r"7 rows of 16 tokens, fewer than the 8 of one step; write train.batch_tokens=112"
    ):
        corpus.batches(0, rows=8, micro_rows=8)
    assert len(corpus.batches(0, rows=7, micro_rows=7)) == 1


def test_a_step_that_cannot_be_shared_out_is_refused(prepared: Path):
    corpus = Corpus(prepared, "train", 16, 0)
    with pytest.raises(
        ConfigError, match=r"6 rows .* batches of 2 on 2 ranks; write train.batch_tokens as a multiple of 64"
    ):
        corpus.batches(0, rows=6, micro_rows=2, world_size=2)


def test_a_split_that_is_not_there_is_refused(prepared: Path):
    with pytest.raises(DataError, match=r"validation: holds no shards"):
        Corpus(prepared, "validation", 16, 0)


def test_a_large_plan_is_kept_on_disk_beside_the_prepared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = prepare(tmp_path / "p", THREE)
    small = Corpus(folder, "train", 16, 0)
    assert not (tmp_path / "p-rows").exists()
    monkeypatch.setattr(module, "PIECES_IN_MEMORY", 3)
    for _ in range(2):
        large = Corpus(folder, "train", 16, 0)
        assert same(large.batches(3, rows=4, micro_rows=4)[0], small.batches(3, rows=4, micro_rows=4)[0])
        monkeypatch.setattr(pack, "pack_windows", None)  # the second time nothing is planned
    assert len(list((tmp_path / "p-rows").iterdir())) == 3


def test_prefetched_steps_are_the_steps(prepared: Path):
    corpus = Corpus(prepared, "train", 16, 0)

    def make(step: int) -> list[Batch]:
        return corpus.batches(step, rows=2, micro_rows=2)

    with Prefetch(make, 4) as prefetch:
        for step, (batch,) in zip(range(4, 9), prefetch, strict=False):
            assert same(batch, make(step)[0])
