"""Copies of protected texts are found through light edits; texts on the same matters are not."""

import random

import pytest

from hasten.data.config import CleanConfig
from hasten.data.contamination import PASSAGE_WORDS, RUN_WORDS, Protected, cut
from hasten.data.ngrams import words
from hasten.data.source import Document

VOCABULARY = [f"w{number}" for number in range(2_000)]


def random_text(count, generator):
    weights = [1 / (rank + 1) for rank in range(len(VOCABULARY))]
    return " ".join(generator.choices(VOCABULARY, weights, k=count))


def protect(*texts):
    return Protected(Document(f"item {number}", text, "benchmark") for number, text in enumerate(texts))


SHARE = CleanConfig().contamination


def met(protected, text, share=SHARE):
    return protected.passage_in(words(text).hashes, share)


def edited(text, generator, share):
    return " ".join("changed" if generator.random() < share else word for word in text.split())


@pytest.mark.parametrize("length", [30, 64, 300])
def test_planted_test_items_are_found_after_light_edits_and_clean_documents_are_not(length):
    """Five in a hundred items planted, one word in thirty changed: recall 95%, at most 1% false alarms."""
    generator = random.Random(0)
    items = [random_text(length, generator) for _ in range(1_000)]
    protected = protect(*items)
    planted = [random_text(200, generator) + " " + edited(item, generator, 1 / 30) for item in items[::20]]
    clean = [random_text(500, generator) for _ in range(500)]
    found = [met(protected, text) for text in planted]
    assert sum(name == f"item {20 * number}" for number, name in enumerate(found)) >= 0.95 * len(planted)
    assert sum(met(protected, text) is not None for text in clean) <= 0.01 * len(clean)


def test_one_passage_out_of_a_long_protected_text_is_enough():
    generator = random.Random(1)
    book = random_text(5_000, generator)
    quote = " ".join(book.split()[2_000:2_150])
    assert met(protect(book), "before " + quote + " after") == "item 0"


def test_a_shared_sentence_is_no_contamination():
    generator = random.Random(2)
    item = random_text(64, generator)
    assert met(protect(item), " ".join(item.split()[:16])) is None
    assert met(protect(item), " ".join(item.split()[:16]), share=0.1) == "item 0"


def test_letter_case_and_punctuation_hide_nothing():
    item = "What is the smallest number that is the sum of two cubes in two ways"
    assert met(protect(item), item.upper().replace(" ", ", ")) == "item 0"


def test_texts_too_short_to_look_for_are_counted():
    protected = protect("yes", "it is so", "one two three four five six seven eight")
    assert protected.too_short == 2
    assert protected.names == ["item 2"]


def test_nothing_protected_finds_nothing():
    assert met(protect(), "one two three four five six seven eight nine") is None
    assert met(protect("one two three four five six seven eight"), "") is None


@pytest.mark.parametrize("count", [0, 7, 8, 64, 65, 95, 97, 1_000])
def test_passages_are_even_and_lose_no_word(count):
    hashes = words(" ".join(VOCABULARY[:count])).hashes
    passages = cut(hashes)
    assert sum(map(len, passages)) == (count if count >= RUN_WORDS else 0)
    assert all(RUN_WORDS <= len(passage) <= 1.5 * PASSAGE_WORDS for passage in passages)
