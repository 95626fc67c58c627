"""Where words begin, by the spellings of each kind of tokenizer."""

import numpy as np
import pytest

from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train
from hasten.tokenizer.words import WordStarts

TEXTS = [
    "the reader reads unreadable words, rereading 1234 of them (self.name) naïvely",
    "    def read_lines(path):\n        return lines\n",
    "我们在公园里跑步。we ran",
] * 40


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of `text` as whole-word masking sees them."""
    ids = np.array(tokenizer.encode(text))
    groups = np.split(ids, np.flatnonzero(WordStarts(tokenizer)(ids))[1:])
    return [tokenizer.decode(group.tolist()) for group in groups]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def byte_level(request):
    size = {"bpe": 330, "unigram": 275}[request.param]
    return train(TEXTS, TokenizerConfig(kind=request.param, vocab_size=size, min_frequency=1), progress=False)


def test_a_word_has_all_its_pieces(byte_level):
    words = words_of(byte_level, "the unreadable naïvely rereads")
    assert "".join(words) == "the unreadable naïvely rereads"
    assert [word.strip() for word in words if word.strip()] == ["the", "unreadable", "naïvely", "rereads"]


def test_a_blank_goes_with_the_word_after_it_where_a_token_holds_both(byte_level):
    words = words_of(byte_level, "the reader reads words")
    assert sum(word[:1] == " " and len(word) > 1 for word in words) >= 2


def test_signs_digits_and_letters_keep_apart(byte_level):
    words = words_of(byte_level, "reads(name)1234")
    assert "".join(words) == "reads(name)1234"
    assert [word for word in words if word.isdigit()] == ["1234"]
    assert words[0] == "reads"


def test_each_character_of_a_script_without_spaces_is_a_word_of_its_own(byte_tokenizer):
    tokenizer = byte_tokenizer("<|endoftext|>")  # every character is in three pieces
    assert words_of(tokenizer, "公园里 we") == ["公", "园", "里", " ", "we"]


def test_pieces_with_wordpieces_mark_continue_a_word():
    tokenizer = train(
        TEXTS, TokenizerConfig(kind="wordpiece", vocab_size=90, min_frequency=1), progress=False
    )
    ids = np.array(tokenizer.encode("rereading words, them"))
    starts = WordStarts(tokenizer)(ids)
    assert len(ids) > 4
    assert starts.tolist() == [not tokenizer.inner.id_to_token(int(id)).startswith("##") for id in ids]
    assert starts.sum() == 4


def test_special_tokens_stand_alone(byte_tokenizer):
    tokenizer = byte_tokenizer("<|endoftext|>", "<|mask|>")
    ids = np.array([*tokenizer.encode("ab"), tokenizer.mask_id, *tokenizer.encode("cd"), tokenizer.eot_id])
    assert WordStarts(tokenizer)(ids).tolist() == [True, False, True, True, False, True]


def test_the_mask_tokens_role_is_known_by_its_spelling_and_kept(tmp_path, byte_tokenizer):
    assert byte_tokenizer("<|endoftext|>").mask_id is None
    tokenizer = train(TEXTS, TokenizerConfig(vocab_size=300, special_tokens=("<|mask|>",)), progress=False)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).mask_id == tokenizer.inner.token_to_id("<|mask|>") is not None
    pieces = train(TEXTS, TokenizerConfig(kind="wordpiece", vocab_size=90, min_frequency=1), progress=False)
    assert pieces.mask_id == pieces.inner.token_to_id("[MASK]")
