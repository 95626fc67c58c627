"""Text to ids and back: lossless, in one go and id by id, with files that are good, foreign or broken."""

import gzip
import json
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers

from hasten.core.errors import DataError
from hasten.tokenizer import files
from hasten.tokenizer import tokenizer as module
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train

SHARED = Path(__file__).parents[2] / "../shared/data"
TEXTS = [
    Path(__file__).read_text(encoding="utf-8"),
    "The cat catches mice; the mice catch nothing. It's 2024, and they've 1234567 more.\n\n",
    "我们今天去北京,明天回来。猫抓老鼠。\n",
]


def needs(path: str) -> Path:
    """A folder of shared data, or a skipped test."""
    if not (SHARED / path).exists():
        pytest.skip(f"shared/data/{path} is not here")
    return SHARED / path


@pytest.fixture(scope="module")
def learnt() -> Tokenizer:
    return train(TEXTS, TokenizerConfig(vocab_size=400), progress=False)


@pytest.fixture(scope="module")
def stories() -> Tokenizer:
    return Tokenizer.load(needs("models/stories260K"))


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_as_it_went_in(learnt: Tokenizer, text: str):
    assert learnt.decode(learnt.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=" \n\t\rab'1_(<|>)你\u0301é", max_size=60), part=st.integers(1, 8))
def test_a_long_text_cut_for_memory_gets_the_ids_of_the_whole(learnt: Tokenizer, text: str, part: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_CHARS", part)
        patch.setattr(module, "GROUP_CHARS", 2 * part)
        assert learnt.can_cut
        assert learnt.encode_batch([text, "", text]) == [
            learnt.inner.encode(text, add_special_tokens=False).ids,
            [],
            learnt.inner.encode(text, add_special_tokens=False).ids,
        ]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_decoding_id_by_id_gives_the_text_of_all_even_where_bytes_are_no_characters(
    learnt: Tokenizer, data: st.DataObject
):
    ids = data.draw(st.lists(st.integers(0, learnt.vocab_size - 1), max_size=30))
    stream = learnt.stream()
    assert "".join(stream.step(token) for token in ids) + stream.finish() == learnt.decode(ids)


def test_a_stream_holds_a_character_back_until_its_last_byte(learnt: Tokenizer):
    ids = learnt.encode("🎉")
    assert len(ids) == 4, "four bytes that were never seen together"
    stream = learnt.stream()
    assert [stream.step(token) for token in ids] == ["", "", "", "🎉"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="abc Theré 你🎉\n.", max_size=30))
def test_a_stream_of_a_foreign_tokenizer_gives_its_text(stories: Tokenizer, text: str):
    ids, stream = stories.encode(text), stories.stream()
    assert "".join(stream.step(token) for token in ids) + stream.finish() == stories.decode(ids)


def test_special_tokens_in_a_text_are_plain_text(learnt: Tokenizer):
    ids = learnt.encode("a<|endoftext|>b<|pad|>")
    assert learnt.eot_id not in ids
    assert learnt.pad_id not in ids
    assert learnt.decode(ids) == "a<|endoftext|>b<|pad|>"


def test_special_ids_show_up_in_a_text_only_when_asked_for(learnt: Tokenizer):
    ids = [learnt.bos_id, *learnt.encode("cat"), learnt.eot_id]
    assert learnt.decode(ids) == "cat"
    assert learnt.decode(ids, special=True) == "<|endoftext|>cat<|endoftext|>"


def test_token_bytes_spell_each_token_out(learnt: Tokenizer):
    ids = learnt.encode(TEXTS[0] + TEXTS[2])
    assert b"".join(learnt.token_bytes[token] for token in ids).decode() == TEXTS[0] + TEXTS[2]
    assert learnt.token_bytes[learnt.eot_id] == b"<|endoftext|>"


@pytest.mark.parametrize("token", [-1, 400])
def test_an_id_outside_the_vocabulary_is_refused(learnt: Tokenizer, token: int):
    for decode in (lambda: learnt.decode([0, token]), lambda: learnt.stream().step(token)):
        with pytest.raises(DataError, match=f"id {token} is outside the tokenizer's vocabulary of 400"):
            decode()


def test_half_a_surrogate_pair_is_refused(learnt: Tokenizer):
    with pytest.raises(DataError, match="half a surrogate pair"):
        learnt.encode("a\ud800")
    with pytest.raises(DataError, match="half a surrogate pair"):
        train(["a\ud800"], TokenizerConfig(vocab_size=300), progress=False)


def test_a_saved_tokenizer_is_the_same(learnt: Tokenizer, tmp_path: Path):
    file = learnt.save(tmp_path / "new")
    for path in (file, file.parent):
        again = Tokenizer.load(path)
        assert again.fingerprint == learnt.fingerprint
        assert (again.bos_id, again.eot_id, again.pad_id) == (learnt.bos_id, learnt.eot_id, learnt.pad_id)
        assert again.encode_batch(TEXTS) == learnt.encode_batch(TEXTS)


def test_roles_are_known_without_the_file_beside_it(learnt: Tokenizer, tmp_path: Path):
    """A checkpoint keeps tokenizer.json alone."""
    file = learnt.save(tmp_path)
    (tmp_path / files.ROLES_FILE).unlink()
    assert Tokenizer.load(file).fingerprint == learnt.fingerprint


def test_other_vocabularies_have_other_fingerprints(learnt: Tokenizer):
    assert train(TEXTS, TokenizerConfig(vocab_size=399), progress=False).fingerprint != learnt.fingerprint


def test_transformers_reads_a_saved_tokenizer_and_agrees(learnt: Tokenizer, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    learnt.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (learnt.eot_id, learnt.pad_id)
    for text in TEXTS[1:]:  # the first holds the names of special tokens, which theirs would obey
        assert theirs.encode(text, add_special_tokens=False) == learnt.encode(text)


def test_gpt2_is_read_from_its_two_files():
    """The ids of "Hello world" are those that OpenAI's encoder gives, known from its documentation."""
    gpt2 = Tokenizer.load(needs("tokenizers/gpt2"))
    assert gpt2.vocab_size == 50_257
    assert gpt2.bos_id == gpt2.eot_id == gpt2.pad_id == 50_256
    assert gpt2.encode("Hello world") == [15_496, 995]
    assert gpt2.decode(gpt2.encode(TEXTS[2])) == TEXTS[2]


def test_a_tokenizer_with_tokens_of_its_own_for_begin_and_end(stories: Tokenizer):
    assert (stories.vocab_size, stories.bos_id, stories.eot_id) == (512, 1, 2)
    ids = stories.encode("Once upon a time")
    assert ids[0] != 1, "begin of text is put in by whoever makes a document"
    assert stories.decode(ids) == "Once upon a time"
    assert 2 not in stories.encode("</s>")


def test_a_file_that_cuts_or_pads_texts_does_not_do_it_here(learnt: Tokenizer, tmp_path: Path):
    data = json.loads(learnt.inner.to_str())
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None} | {
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<|pad|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert Tokenizer.load(tmp_path).encode_batch(TEXTS[:2]) == learnt.encode_batch(TEXTS[:2])


def word_level(vocab: dict[str, int], special: str) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="x"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens([AddedToken(special, special=True)])
    return inner


def test_roles_are_read_from_the_file_beside_it(tmp_path: Path):
    word_level({"x": 0, "END": 1}, "END").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="no token that ends a text"):
        Tokenizer.load(tmp_path)
    roles = tmp_path / "tokenizer_config.json"
    roles.write_text(json.dumps({"eos_token": {"content": "END"}, "bos_token": None}))
    assert Tokenizer.load(tmp_path).eot_id == 1
    roles.write_text(json.dumps({"eos_token": "FIN"}))
    with pytest.raises(DataError, match=r"names the token 'FIN', which tokenizer\.json lacks"):
        Tokenizer.load(tmp_path)
    roles.write_text("[1]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: should hold a mapping, got list"):
        Tokenizer.load(tmp_path)


def test_ids_with_gaps_that_no_embedding_should_have_are_refused(tmp_path: Path):
    data = json.loads(word_level({"x": 0, "</s>": 1}, "</s>").to_str())
    data["model"]["vocab"]["x"] = 4_000_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"2 tokens but ids up to 4,000,000,000"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        ({}, "there is no tokenizer.json here"),
        ({"tokenizer.json": b"{"}, "is not a tokenizer.json of the tokenizers library"),
        ({"tokenizer.json": b"\xff\xfe"}, "is not UTF-8 text"),
        ({"tokenizer.json": b"[" * 100_000}, "is not a tokenizer.json"),
        ({"vocab.json": b"{}"}, "has vocab.json but no merges.txt"),
        ({"vocab.json": b"{}", "merges.txt": b"a b c\n"}, "do not make a tokenizer"),
        ({"vocab.json.gz": gzip.compress(b"{}")[:-5], "merges.txt": b""}, "cannot be read"),
    ],
)
def test_a_broken_file_is_named_and_refused(tmp_path: Path, contents: dict[str, bytes], complaint: str):
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as raised:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_a_file_that_unpacks_to_something_huge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    (tmp_path / "vocab.json.gz").write_bytes(gzip.compress(b" " * 100_000))
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(DataError, match="is larger than 1,000 bytes"):
        Tokenizer.load(tmp_path)


def test_damage_anywhere_in_a_file_ends_in_a_tokenizer_or_a_complaint(learnt: Tokenizer, tmp_path: Path):
    """No panic, no crash: 200 truncations, deletions and changed bytes."""
    whole, rng = learnt.save(tmp_path).read_bytes(), random.Random(0)
    for _ in range(200):
        data, at = bytearray(whole), rng.randrange(len(whole))
        match rng.randrange(3):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + rng.randrange(1, 50)]
            case _:
                data[at] = rng.choice(b'0123456789"{}[],:-ntf\xff')
        (tmp_path / "tokenizer.json").write_bytes(data)
        try:
            ids = Tokenizer.load(tmp_path).encode("the cat's <|endoftext|>")
        except DataError:
            continue
        assert all(isinstance(token, int) for token in ids)
