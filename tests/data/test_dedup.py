"""Near-duplicates: found as brute force over all pairs finds them, with few misses and no victims."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data.dedup import (
    SIGNATURE,
    Rows,
    bands,
    digest,
    first_equal,
    near_duplicates,
    pairs,
    signatures,
)
from hasten.data.ngrams import shingles, words

VOCABULARY = [f"w{number}" for number in range(2_000)]
THRESHOLD = 0.6


def write_texts(count, generator, length=200):
    """Random texts with the word frequencies of natural language (Zipf)."""
    weights = [1 / (rank + 1) for rank in range(len(VOCABULARY))]
    return [" ".join(generator.choices(VOCABULARY, weights, k=length)) for _ in range(count)]


def edit(text, share, generator):
    """Delete, replace or double a share of the words."""
    out = []
    for word in text.split():
        change = generator.choice(([], ["new"], [word, word])) if generator.random() < share else [word]
        out += change
    return " ".join(out)


def find(texts, threshold=THRESHOLD, alive=None, fixed=None):
    hashes = [words(text).hashes for text in texts]
    signed = signatures(hashes)
    half = len(texts) // 2
    rows = Rows([signed[:half], signed[half:]])
    everyone, nobody = np.ones(len(texts), bool), np.zeros(len(texts), bool)
    alive, fixed = everyone if alive is None else alive, nobody if fixed is None else fixed
    return near_duplicates(list(bands(signed)), rows, alive, threshold, fixed)


def jaccard(one, other):
    one, other = (set(shingles(words(text).hashes, 3).tolist()) for text in (one, other))
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("share", [0.01, 0.03, 0.05])
def test_planted_near_duplicates_are_found_and_clean_texts_stay(share):
    generator = random.Random(0)
    originals = write_texts(400, generator)
    planted = [edit(originals[number], share, generator) for number in range(200)]
    found = find(originals + planted)
    assert found[:400].tolist() == list(range(400)), "a clean text was dropped"
    recall = np.mean(found[400:] == np.arange(200))
    assert recall >= 0.95


def test_links_are_those_of_brute_force_where_the_threshold_is_far():
    """No pair lies between 0.45 and 0.7, so the error of the estimate (0.04) decides nothing."""
    generator = random.Random(1)
    texts = []
    for original in write_texts(30, generator, 120):
        texts += [original, edit(original, 0.02, generator), edit(original, 0.3, generator)]
    generator.shuffle(texts)
    expected = list(range(len(texts)))
    for later in range(len(texts)):
        near = [
            other
            for other in range(later)
            if expected[other] == other and jaccard(texts[later], texts[other]) > 0.6
        ]
        assert not any(0.45 < jaccard(texts[later], texts[other]) < 0.7 for other in range(later))
        expected[later] = near[0] if near else later
    assert find(texts).tolist() == expected


def test_a_chain_of_small_changes_takes_nothing_that_differs_from_all_that_stay():
    generator = random.Random(2)
    chain = write_texts(1, generator, 300)
    for _ in range(40):
        chain.append(edit(chain[-1], 0.02, generator))
    found = find(chain)
    assert found[0] == 0 and len(set(found.tolist())) > 1
    for number, leader in enumerate(found.tolist()):
        assert found[leader] == leader, "a text is said to repeat one that was dropped itself"
        assert jaccard(chain[number], chain[leader]) > THRESHOLD - 4 * 0.045  # four standard errors


def test_the_signature_estimates_the_jaccard_index_without_bias():
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(60):
        common, own = generator.integers(5, 400), generator.integers(1, 200)
        values = generator.integers(0, 2**63, common + 2 * own, dtype=np.uint64)
        one, other = (
            np.r_[values[:common], values[common : common + own]],
            np.r_[values[:common], values[common + own :]],
        )
        # One-word runs would be needed to plant sets exactly; three-word runs of random words do as well.
        signed = signatures([one, other])
        sets = [set(shingles(hashes, 3).tolist()) for hashes in (one, other)]
        errors.append(np.mean(signed[0] == signed[1]) - len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))
    assert np.std(errors) < 1.3 * 0.5 / np.sqrt(SIGNATURE)  # a binomial's is at most half over the root of n


def test_fixed_texts_stay_and_what_repeats_any_of_them_goes():
    generator = random.Random(3)
    original = write_texts(1, generator)[0].split()
    near = ["new" if place % 18 == 5 else word for place, word in enumerate(original)]
    nearer = ["new" if place % 18 == 14 else word for place, word in enumerate(near)]
    texts = [" ".join(words) for words in (original, near, nearer)]
    assert jaccard(texts[0], texts[2]) < 0.52 and min(jaccard(texts[0], texts[1]), jaccard(*texts[1:])) > 0.7
    fixed = np.array([True, True, False])
    assert find(texts, fixed=fixed).tolist() == [0, 1, 1]


def test_texts_that_are_not_alive_neither_drop_nor_are_dropped():
    text = "one two three four five six seven eight nine ten"
    assert find([text, text, text], alive=np.array([False, True, True])).tolist() == [0, 1, 1]


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(0, 5), max_size=20), dead=st.sets(st.integers(0, 19)))
def test_pairs_link_all_living_documents_with_equal_keys_and_no_others(values, dead):
    key = np.array(values, np.uint64)
    alive = np.array([number not in dead for number in range(len(values))], bool)
    linked = [
        (int(a), int(b)) for first, second in pairs(key, alive) for a, b in zip(first, second, strict=True)
    ]
    assert all(a < b and key[a] == key[b] and alive[a] and alive[b] for a, b in linked)
    for value in set(values):
        group = [number for number in range(len(values)) if values[number] == value and alive[number]]
        assert {(group[0], later) for later in group[1:]} <= set(linked)


def test_pairs_of_a_large_group_are_linear_in_its_size():
    assert sum(len(first) for first, _ in pairs(np.zeros(50_000, np.uint64), np.ones(50_000, bool))) < 100_001


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(0, 5), max_size=20))
def test_of_equal_values_the_first_is_found(values):
    assert first_equal(np.array(values, np.uint64)).tolist() == [values.index(value) for value in values]


def test_a_digest_looks_at_the_text_and_not_at_the_blanks_around_it():
    assert digest("a b\n") == digest("  a b") != digest("a  b")


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5), data=st.data())
def test_rows_over_several_arrays_are_those_of_one(sizes, data):
    whole = np.arange(2 * sum(sizes)).reshape(-1, 2)
    cuts = np.cumsum(sizes)[:-1]
    numbers = np.array(
        data.draw(st.lists(st.integers(0, max(sum(sizes) - 1, 0)), max_size=6 if sum(sizes) else 0)), np.int64
    )
    assert Rows(np.split(whole, cuts))[numbers].tolist() == whole[numbers].tolist()
