"""Words and their runs agree with a plain reading of the text, character by character."""

import re

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasten.data import ngrams as module
from hasten.data.ngrams import LONE, classes, mix, ngrams, shingles, words

TEXTS = st.text(st.sampled_from("abAB1_ .,\n-éß你好かé٣") | st.characters(codec="utf-8"), max_size=60)


def plain_words(text: str) -> list[str]:
    """The definition: runs of letters, digits and underscores; each character of unspaced scripts alone."""
    spaced = re.sub(
        r"(?s).", lambda m: f" {m[0]} " if classes()[min(ord(m[0]), 0x3FFFF)] == LONE else m[0], text.lower()
    )
    return "".join(c if c.isalnum() or c == "_" else " " for c in spaced).split()


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="カフェ・バー \u2e80 \ufada 豈")
def test_words_are_those_of_the_definition(text):
    expected = [word for word in plain_words(text) if ord(word[0]) < 0x20000 or len(word) == 1]
    if any(ord(character) >= 0x20000 for character in text):
        return  # beyond the table, where unassigned planes are
    found = words(text)
    assert found.lengths.tolist() == [len(word) for word in expected]
    assert found.with_letter == sum(any(c.isalpha() for c in word) for word in expected)
    # Equal words have equal hashes, different ones different hashes, wherever they stand.
    first = {word: place for place, word in reversed(list(enumerate(expected)))}
    assert len(set(found.hashes.tolist())) == len(first)
    assert all(found.hashes[place] == found.hashes[first[word]] for place, word in enumerate(expected))


def test_a_word_has_the_same_hash_in_every_text():
    assert words("a tale of two cities").hashes[4] == words("Cities!").hashes[0]
    assert words("ab").hashes[0] != words("ba").hashes[0]


def test_a_text_longer_than_a_block_has_the_same_words(monkeypatch):
    text = "one two three " * 50
    whole = words(text)
    monkeypatch.setattr(module, "BLOCK", 14 * 7)  # ends with a word, so that none is cut
    parts = words(text)
    assert parts.hashes.tolist() == whole.hashes.tolist()
    assert (parts.with_letter, parts.lone) == (whole.with_letter, whole.lone)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(0, 3), max_size=12), n=st.integers(1, 5))
def test_runs_are_equal_where_their_words_are(values, n):
    hashes = mix(np.array(values, np.uint64) + np.uint64(1))
    runs = [tuple(values[start : start + n]) for start in range(max(len(values) - n + 1, 0))]
    found = ngrams(hashes, n).tolist()
    assert len(found) == len(runs)
    assert len(set(found)) == len(set(runs))
    assert all((found[i] == found[j]) == (runs[i] == runs[j]) for i in range(len(runs)) for j in range(i))


def test_a_text_shorter_than_a_run_is_one_run():
    two = words("hello world").hashes
    assert shingles(two, 3).tolist() == mix(ngrams(two, 2)).tolist()
    assert len(shingles(two[:0], 3)) == 0


def test_mixing_is_a_permutation_and_leaves_no_pattern_in_the_lowest_bits():
    mixed = mix(np.arange(1 << 16, dtype=np.uint64))
    assert len(np.unique(mixed)) == 1 << 16
    counts = np.bincount((mixed & np.uint64(15)).astype(int), minlength=16)
    assert np.abs(counts - 4096).max() < 5 * 62  # five standard deviations of a fair draw
