"""Tokens as the user's text, every character of it visible."""

import pytest
from inspected import sentencepiece, word_tokenizer, wordpiece

from hasten.report.inspect.pieces import LONGEST, cut, spelled, visible

SEEN = {
    "a blank": (" cat", "·cat"),
    "a line end": ("\r\n\t", "␍⏎⇥"),
    "a control character": ("a\x07b\x00", r"a\x07b\x00"),
    "a direction": ("\u202edcba", r"\u202edcba"),
    "nothing at all": ("a\u200bb", r"a\u200bb"),
    "another blank": ("a\u00a0b", r"a\xa0b"),
    "an accent alone": ("\u0301x", "◌\u0301x"),
    "Hebrew": ("שלום", "שלום"),
    "Chinese": ("你好。", "你好。"),
    "markup": ("</script>", "</script>"),
}


@pytest.mark.parametrize("text, shown", SEEN.values(), ids=SEEN)
def test_what_has_no_picture_is_shown_as_its_escape(text, shown):
    assert visible(text) == shown


def test_a_long_token_is_cut_short_visibly():
    assert visible("=" * 200) == "=" * (LONGEST - 1) + "…"


def test_bytes_of_a_cut_character_are_hex(byte_tokenizer):
    tokenizer = byte_tokenizer("<|endoftext|>")
    assert [piece.text for piece in cut(tokenizer, "é a")] == [r"\xc3", r"\xa9", "·", "a"]


def test_a_wordpiece_shows_the_users_own_letters_and_blanks():
    pieces = cut(wordpiece(), "Playing  the CATS , a")
    assert [piece.text for piece in pieces] == ["Play", "ing", "··the", "·CAT", "S", "·,", "·a"]
    assert [piece.text for piece in (spelled(wordpiece(), 5), spelled(wordpiece(), 2))] == ["##ing", "[SEP]"]
    assert spelled(wordpiece(), 2).special and not spelled(wordpiece(), 5).special


def test_a_sentencepiece_shows_blanks_and_the_bytes_that_stand_for_characters():
    pieces = cut(sentencepiece(), "ab a é\n")
    assert [piece.text for piece in pieces] == ["ab", "·a", "·", r"\xc3", r"\xa9", "⏎"]
    assert spelled(sentencepiece(), 3 + 0xE4).text == r"\xe4"
    assert spelled(sentencepiece(), 3 + 0x41).text == "A"


def test_pieces_have_the_ids_that_the_model_reads(byte_tokenizer):
    text = "ab  a\tçb "
    for tokenizer in (byte_tokenizer("<|endoftext|>"), wordpiece(), sentencepiece(), word_tokenizer("ab")):
        assert [piece.id for piece in cut(tokenizer, text)] == tokenizer.encode(text)


def test_an_id_without_a_spelling_has_its_number(byte_tokenizer):
    assert spelled(byte_tokenizer("<|endoftext|>"), 5000).text == "#5000"
