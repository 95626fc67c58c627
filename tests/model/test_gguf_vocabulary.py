"""Tokenizers to GGUF and back: equal ids for every text, roles, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import TEXT, make_bytewise
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from hasten.core.errors import CheckpointError
from hasten.model.gguf.container import read
from hasten.model.gguf.splits import SPLITS, name_split
from hasten.model.gguf.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, write_vocabulary
from hasten.model.gguf.vocabulary_reader import read_vocabulary
from hasten.model.gguf.writer import write
from hasten.tokenizer.files import GPT2_PATTERN, byte_level, parse
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train

STORIES = Path(__file__).parents[2] / "../shared/data/models/stories260K"
K = "tokenizer.ggml."


def make_pieces(prefix: bool = True, **model: Any) -> Tokenizer:
    """SentencePiece's kind: bytes to fall back on, and every pair that makes a piece is a merge."""
    letters = sorted(set("▁abcdehilnoprstuw"))
    words = ["▁t", "he", "▁the", "th", "▁th", "in", "▁a", "▁the▁", "er", "ther"]
    names = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *words, *letters]
    vocab = {name: id for id, name in enumerate(names)}
    merges = [
        (word[:at], word[at:])
        for word in words
        for at in range(1, len(word))
        if word[:at] in vocab and word[at:] in vocab
    ]
    given = {"vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    inner = tokenizers.Tokenizer(models.BPE(**{**given, **model}))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    inner.normalizer = normalizers.Sequence(steps if prefix else steps[1:])
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    return Tokenizer(inner)


def there_and_back(tokenizer: Tokenizer, folder: Path, rows: int = 512, **options: Any) -> Tokenizer:
    """The tokenizer out of a file's keys."""
    keys = write_vocabulary(tokenizer, rows, **{"chat": False, **options})
    write(folder / "v.gguf", keys, [])
    return read_vocabulary(read(folder / "v.gguf").metadata, rows, folder / "v.gguf")


TOKENIZERS = {**{pre: lambda pre=pre: make_bytewise(pre) for pre in SPLITS}, "pieces": make_pieces}
TOKENIZERS["pieces without a space before"] = lambda: make_pieces(prefix=False)


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(request, tmp_path_factory) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and what came back of it."""
    tokenizer = TOKENIZERS[request.param]()
    return tokenizer, there_and_back(tokenizer, tmp_path_factory.mktemp("vocabulary"))


@given(text=st.text(max_size=40) | st.text("the it's 12\n  ▁é你", max_size=40))
@settings(max_examples=150, deadline=None)
def test_every_text_has_the_same_ids(pair, text):
    before, after = pair
    ids = before.encode(text)
    assert after.encode(text) == ids
    assert after.decode(ids) == before.decode(ids)


def test_roles_and_sizes_come_back(pair):
    before, after = pair
    for name in ("vocab_size", "bos_id", "eot_id", "pad_id", "special_ids", "end_ids"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.encode(TEXT) == before.encode(TEXT)
    assert after.inner.encode("", add_special_tokens=True).ids == [before.bos_id]


def test_tokens_have_the_types_of_llama_cpp(tmp_path):
    tokenizer = make_bytewise()
    tokenizer.inner.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer = Tokenizer(tokenizer.inner)
    rows = tokenizer.vocab_size + 2
    keys = write_vocabulary(tokenizer, rows, chat=False)
    types = dict(zip(keys[f"{K}tokens"], keys[f"{K}token_type"], strict=True))
    assert types["<|endoftext|>"] == CONTROL
    assert types["<tool>"] == USER_DEFINED
    assert types["a"] == NORMAL
    assert types[f"[PAD{rows - 1}]"] == UNUSED
    again = there_and_back(tokenizer, tmp_path, rows)
    assert again.vocab_size == tokenizer.vocab_size  # rows without a token come back as none
    assert again.encode("a <tool> b") == tokenizer.encode("a <tool> b")


def test_further_ends_of_a_turn_travel(tmp_path):
    tokenizer = make_bytewise()
    turn = tokenizer.inner.token_to_id("<|im_end|>")
    tokenizer.end_ids |= {turn}
    assert write_vocabulary(tokenizer, 512, chat=False)[f"{K}eot_token_id"] == turn
    assert there_and_back(tokenizer, tmp_path).end_ids == {tokenizer.eot_id, turn}


def test_who_puts_the_first_token_before_a_text(tmp_path):
    tokenizer = make_bytewise()
    assert write_vocabulary(tokenizer, 512, chat=False)[f"{K}add_bos_token"] is True  # as `generate` does
    assert write_vocabulary(tokenizer, 512, chat=True)[f"{K}add_bos_token"] is False  # the template does
    assert there_and_back(tokenizer, tmp_path, chat=True).inner.post_processor is None
    ends = tokenizer.inner.id_to_token(tokenizer.eot_id)
    tokenizer.inner.post_processor = processors.TemplateProcessing(
        single=f"$A {ends}", special_tokens=[(ends, tokenizer.eot_id)]
    )
    keys = write_vocabulary(tokenizer, 512, chat=True)
    assert (keys[f"{K}add_bos_token"], keys[f"{K}add_eos_token"]) == (False, True)
    again = there_and_back(tokenizer, tmp_path)
    assert again.inner.encode("a", add_special_tokens=True).ids[-1] == tokenizer.eot_id


def test_the_cut_of_gpt2_has_its_name_in_both_spellings():
    tokenizer = make_bytewise("gpt-2")
    tokenizer.inner.pre_tokenizer = byte_level(GPT2_PATTERN)
    assert name_split(json.loads(tokenizer.inner.to_str()), nearest=False) == "gpt-2"


def test_a_cut_without_a_name_is_refused_or_told(capsys):
    tokenizer = train([TEXT] * 4, TokenizerConfig(vocab_size=300), progress=False)
    with pytest.raises(CheckpointError, match=r"no name \(tokenizer.ggml.pre\) for the pattern"):
        write_vocabulary(tokenizer, 300, chat=False)
    keys = write_vocabulary(tokenizer, 300, chat=False, nearest_split=True)
    assert keys[f"{K}pre"] in ("llama-bpe", "dbrx", "qwen2")
    assert "% of the tokens of a mixed sample become others" in capsys.readouterr().out


def test_bytes_without_merges_are_cut_by_anything(byte_tokenizer):
    keys = write_vocabulary(byte_tokenizer("<|endoftext|>"), 257, chat=False)
    assert keys[f"{K}pre"] == "gpt-2"


def wordpiece() -> Tokenizer:
    return train(
        [TEXT] * 4, TokenizerConfig(kind="wordpiece", vocab_size=60, min_frequency=1), progress=False
    )


def lower_case() -> Tokenizer:
    tokenizer = make_bytewise()
    tokenizer.inner.normalizer = normalizers.Lowercase()
    return tokenizer


def whitespace() -> Tokenizer:
    tokenizer = make_bytewise()
    tokenizer.inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def two_before() -> Tokenizer:
    tokenizer = make_bytewise()
    tokenizer.inner.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> <|pad|> $A", special_tokens=[("<|endoftext|>", 0), ("<|pad|>", 1)]
    )
    return tokenizer


def conditional() -> Tokenizer:
    tokenizer = make_bytewise()
    tokenizer.inner.add_tokens([AddedToken("<tool>", special=False, lstrip=True)])
    return Tokenizer(tokenizer.inner)


def never_joined() -> Tokenizer:
    return make_pieces(merges=[("▁", "t"), ("h", "e"), ("▁t", "he")])


def disordered() -> Tokenizer:
    return make_pieces(merges=[("▁t", "he"), ("h", "e"), ("▁th", "e"), ("t", "h")])


def without_a_byte() -> Tokenizer:
    tokenizer = make_pieces()
    described = json.loads(tokenizer.inner.to_str())
    vocab = described["model"]["vocab"]
    vocab["nothing"] = vocab.pop("<0x41>")
    return Tokenizer(parse(json.dumps(described), Path("tokenizer.json")))


def metaspace() -> Tokenizer:
    tokenizer = make_pieces()
    tokenizer.inner.normalizer = normalizers.NFKC()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wordpiece, "kind is WordPiece"),
        (lower_case, "changes text before it cuts it"),
        (whitespace, "cuts text by Whitespace"),
        (two_before, r"puts the tokens \[0, 1\] before a text and \[\] after it"),
        (conditional, "on the condition lstrip"),
        (never_joined, "never joins '▁' and 'the' to '▁the'|never joins"),
        (disordered, "stands after merges of later pieces"),
        (without_a_byte, "has no token <0x41>"),
        (metaspace, "treats spaces in a way of its own"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(make, message):
    with pytest.raises(CheckpointError, match=message):
        write_vocabulary(make(), 512, chat=False)


def test_more_tokens_than_embeddings_are_refused():
    with pytest.raises(CheckpointError, match="don't belong together"):
        write_vocabulary(make_bytewise(), 300, chat=False)


BYTEWISE_FAULTS = {
    "model": ("rwkv", "'tokenizer.ggml.model' is 'rwkv'"),
    "pre": ("chatglm4", "is 'chatglm4', a way to cut text that hasten does not know"),
    "tokens": (["a", "a"], "has a token twice"),
    "tokens of many letters": (["a" * 1025], "has a token of 1,025 letters"),
    "token_type": ([1, 1], "should be 340 numbers"),
    "merges": (["ab"], "has 'ab', and should have two pieces"),
    "eos_token_id": (9999, "is 9999, and there are 340 tokens"),
    "bos_token_id": ("x", "should be int, got str"),
    "eot_token_id": (9999, "is 9999"),
    "add_bos_token": (3, "should be bool, got int"),
    "precompiled_charsmap": ([1], "is unknown to hasten"),
    "remove_extra_whitespaces": (True, "is unknown to hasten"),
}


@pytest.mark.parametrize("key", BYTEWISE_FAULTS)
def test_keys_that_make_no_tokenizer_are_named(key, tmp_path):
    value, message = BYTEWISE_FAULTS[key]
    keys = write_vocabulary(make_bytewise(), 340, chat=False)
    if key.startswith("tokens"):
        key = "tokens"
        keys.pop(f"{K}token_type")
    write(tmp_path / "v.gguf", {**keys, f"{K}{key}": value}, [])
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(read(tmp_path / "v.gguf").metadata, 340, tmp_path / "v.gguf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"{K}scores": None}, "'tokenizer.ggml.scores' is missing"),
        ({f"{K}scores": [0.0] * 300}, "gives no order|should be"),
        ({f"{K}token_type": [1] * 300}, "has no token of type 2|should be"),
        ({f"{K}token_type": [7] * 300}, "has the type 7|should be"),
    ],
)
def test_pieces_without_order_are_refused(changed, message, tmp_path):
    tokenizer = make_pieces()
    size = tokenizer.vocab_size
    keys = write_vocabulary(tokenizer, size, chat=False)
    keys |= {key: value if value is None else value[:size] for key, value in changed.items()}
    write(tmp_path / "v.gguf", {key: value for key, value in keys.items() if value is not None}, [])
    with pytest.raises(CheckpointError, match=message):
        read_vocabulary(read(tmp_path / "v.gguf").metadata, size, tmp_path / "v.gguf")


def test_merges_of_pieces_that_are_not_there_are_refused(tmp_path):
    keys = write_vocabulary(make_bytewise(), 340, chat=False)
    write(tmp_path / "v.gguf", {**keys, f"{K}merges": ["nobody knows"]}, [])
    with pytest.raises(CheckpointError, match=r"v\.gguf"):
        read_vocabulary(read(tmp_path / "v.gguf").metadata, 340, tmp_path / "v.gguf")


@pytest.mark.skipif(not STORIES.exists(), reason="shared/data/models/stories260K is not here")
def test_the_scores_of_a_trained_vocabulary_are_those_of_its_author(tmp_path):
    tokenizer = Tokenizer.load(STORIES)
    keys = write_vocabulary(tokenizer, 512, chat=False)
    published = [
        float(line.split("\t")[2]) for line in (STORIES / "vocab.tsv").read_text().splitlines()[-253:]
    ]
    made = [
        score for token, score in zip(keys[f"{K}tokens"], keys[f"{K}scores"], strict=True) if len(token) > 1
    ]
    order = [
        score for token, score in zip(keys[f"{K}tokens"][-253:], published, strict=True) if len(token) > 1
    ]
    assert sorted(made[-len(order) :], reverse=True) == made[-len(order) :]
    assert sorted(order, reverse=True) == order
    again = there_and_back(tokenizer, tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert again.encode(text) == tokenizer.encode(text)
