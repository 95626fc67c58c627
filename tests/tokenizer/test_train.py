"""Learning a vocabulary: what a token is, how much memory it takes, and what cannot work."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hasten.core.errors import DataError
from hasten.tokenizer import train as module
from hasten.tokenizer.train import PATTERN, TokenizerConfig, blank, cut, sample, train

SYLLABLES = [
    "ma",
    "ti",
    "re",
    "turn",
    "self",
    "cat",
    "mouse",
    "你好",
    "世界",
    "def",
    "im",
    "port",
    "1",
    "_",
    "x",
]


def texts(count: int) -> list[str]:
    """`count` lines of 200 words of one to three syllables."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=200)) + "\n" for _ in range(count)]


def split(text: str) -> list[str]:
    """Where no token may reach across, undone from GPT-2's alphabet by the offsets."""
    cutter = blank(TokenizerConfig())[0].pre_tokenizer
    return [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("def f(x_y):\n    return 1", ["def", " f", "(x", "_y", "):\n    ", "return", " ", "1"]),
        ("a\n\n        b", ["a", "\n\n        ", "b"]),
        ("it's  12345", ["it", "'s", " ", " ", "12", "34", "5"]),
        ("x['start']", ["x", "['", "start", "']"]),
        ("f('start')", ["f", "('", "start", "')"]),
        ("= 'start'", ["=", " '", "start", "'"]),
        ("don't've", ["don", "'t", "'ve"]),
        ("Hi 你好,world世界。", ["Hi", " ", "你好", ",world", "世界", "。"]),
        ("e\u0301te\u0301 x", ["e\u0301te\u0301", " x"]),
        ("a" * 130, ["a" * 64, "a" * 64, "aa"]),
    ],
)
def test_text_is_cut_into_words_numbers_and_indented_line_breaks(text: str, pieces: list[str]):
    assert split(text) == pieces


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="aQ_1٣Ⅷ '’s(,。—° \n\r\t\u3000é\u0301किक्ष你世カ🎉", max_size=80))
def test_the_cuts_are_those_of_a_second_regular_expression_engine(text: str):
    regex = pytest.importorskip("regex", reason="the second engine is the package regex")
    found = regex.findall(f"(?V1){PATTERN}", text)  # V1 reads && as the intersection of classes
    assert "".join(found) == text
    assert split(text) == found


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_a_vocabulary_has_the_size_asked_for_and_its_special_tokens_first(kind: str):
    config = TokenizerConfig(kind=kind, vocab_size=300, special_tokens=("<|user|>",))
    learnt = train(
        texts(50), config.model_copy(update={"vocab_size": 60 if kind == "wordpiece" else 290}), False
    )
    assert learnt.vocab_size == (60 if kind == "wordpiece" else 290)
    assert [learnt.inner.id_to_token(id) for id in range(len(config.specials))] == list(config.specials)
    assert learnt.encode("cat mouse") != learnt.encode("mouse cat")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_kinds_that_work_on_bytes_lose_nothing(kind: str, text: str):
    learnt = LEARNT.setdefault(kind, train(texts(50), TokenizerConfig(kind=kind, vocab_size=290), False))
    assert learnt.decode(learnt.encode(text)) == text


LEARNT: dict[str, module.Tokenizer] = {}


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_the_same_text_gives_the_same_vocabulary_in_every_process(kind: str):
    code = (
        "import hashlib, random, sys; from hasten.tokenizer.train import TokenizerConfig, train\n"
        "rng = random.Random(1); letters = 'abcdefghijklmnopqrstuvwxyz你好世界一二三#'\n"
        "words = [''.join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(400)]\n"
        "size = 120 if sys.argv[1] == 'wordpiece' else 320\n"
        "config = TokenizerConfig(kind=sys.argv[1], vocab_size=size, min_frequency=1)\n"
        "made = train([' '.join(words)] * 3, config, progress=False)\n"
        "print(hashlib.sha256(made.inner.to_str().encode()).hexdigest())"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code, kind]) for _ in range(3)]
    assert len(set(runs)) == 1


def test_wordpiece_has_berts_roles_and_reads_lower_case():
    learnt = train(texts(50), TokenizerConfig(kind="wordpiece", vocab_size=60), False)
    names = [learnt.inner.id_to_token(id) for id in (learnt.bos_id, learnt.eot_id, learnt.pad_id)]
    assert names == ["[CLS]", "[SEP]", "[PAD]"]
    assert learnt.decode(learnt.encode("CAT")) == "cat"
    stream = learnt.stream()
    ids = learnt.encode("cat mouse 世界 self")
    assert "".join(map(stream.step, ids)) + stream.finish() == learnt.decode(ids)


def test_the_same_text_gives_the_same_tokenizer():
    config = TokenizerConfig(vocab_size=280)
    assert train(texts(30), config, False).fingerprint == train(iter(texts(30)), config, False).fingerprint


def test_more_tokens_than_the_text_has_are_refused_with_the_number_to_write():
    with pytest.raises(
        DataError, match=r"give only (\d+) of 5,000 tokens; write vocab_size: \1 or less"
    ) as raised:
        train(["a short text, a short text"], TokenizerConfig(vocab_size=5_000), False)
    size = int(str(raised.value).split("give only ")[1].split(" ")[0])
    assert train(["a short text, a short text"], TokenizerConfig(vocab_size=size), False).vocab_size == size


def test_no_text_is_refused():
    with pytest.raises(DataError, match="no text to learn from; check data"):
        train(["", ""], TokenizerConfig(), False)


def test_a_vocabulary_too_small_for_bytes_is_refused():
    with pytest.raises(
        ValidationError, match=r"no room for 256 bytes and 3 special tokens; write 259 or more"
    ):
        TokenizerConfig(vocab_size=258, special_tokens=("<a>",))


@pytest.mark.parametrize("special", [("<|pad|>",), ("<a>", "<a>"), ("",)])
def test_special_tokens_that_cannot_be_told_apart_are_refused(special: tuple[str, ...]):
    with pytest.raises(ValidationError, match="special_tokens must differ"):
        TokenizerConfig(special_tokens=special)


@settings(max_examples=100, deadline=None)
@given(given_texts=st.lists(st.text(alphabet="ab\n", max_size=40), max_size=5), limit=st.integers(2, 9))
def test_cutting_loses_nothing_and_no_piece_is_long(given_texts: list[str], limit: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_CHARS", limit)
        pieces = list(cut(given_texts))
    assert "".join(pieces) == "".join(given_texts)
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_a_sample_keeps_the_budget_and_is_even_and_the_same_each_time():
    stream = [f"{n:05}" for n in range(10_000)]
    kept, seen, used = sample(stream, 5_000, False)
    assert (seen, used) == (50_000, 5_000)
    assert kept == sorted(kept), "in the order of the text"
    assert kept == sample(iter(stream), 5_000, False)[0]
    early = sum(int(piece) < 5_000 for piece in kept)
    assert 400 < early < 600, "1,000 fair draws are 500 on average; 100 is 6 standard deviations"


def test_a_sample_is_said_and_never_silent(capsys: pytest.CaptureFixture[str]):
    train(texts(50), TokenizerConfig(vocab_size=270, sample_bytes=20_000), False)
    assert "from 0.0 MB, an even sample of the 0.1 MB there are (sample_bytes)" in capsys.readouterr().out
    train(texts(50), TokenizerConfig(vocab_size=270), False)
    assert capsys.readouterr().out == ""


MEASURE = """
import random, re, sys
from hasten.tokenizer.train import TokenizerConfig, train
rng = random.Random(0)
line = "".join(rng.choices(sys.argv[1], k=500_000)) * 20
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak()
learnt = train([line], TokenizerConfig(vocab_size=300, sample_bytes=2_000_000), False)
learnt.encode(line[:1_000_000])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("letters", ["abcdef", "ab 1\t你"])
def test_one_line_of_ten_million_characters_does_not_blow_memory(letters: str):
    """huggingface/tokenizers#1345.  Uncut, the library takes 2 GB and more for such a line."""
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, letters],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert float(answer.stdout.splitlines()[-1]) < 500, "megabytes over what the process had before"
