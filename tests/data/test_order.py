"""The order of rows: permutations without memory, and mixtures whose shares are right everywhere."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data.order import Mixture, Shuffled, in_units, permute


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 700), key=st.text(max_size=5))
def test_a_permutation_meets_every_row_once(size: int, key: str):
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 10**12), data=st.data())
def test_a_permutation_of_any_size_answers_for_single_places(size: int, data: st.DataObject):
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True)))
    rows = permute(places, size, "key")
    assert ((rows >= 0) & (rows < size)).all()
    assert len(set(rows.tolist())) == len(places)
    assert permute(places[-1:], size, "key") == rows[-1]


def test_every_row_is_as_likely_at_every_place():
    """Chi-squared over 4,000 keys: 12 x 12 cells, 121 degrees of freedom; 200 is beyond 1 in 100,000."""
    counts = np.zeros((12, 12))
    for key in range(4_000):
        counts[np.arange(12), permute(np.arange(12), 12, f"{key}")] += 1
    expected = 4_000 / 12
    assert ((counts - expected) ** 2 / expected).sum() < 200


def test_neighbours_do_not_stay_neighbours():
    rows = permute(np.arange(10_000), 10_000, "key")
    assert (np.abs(np.diff(rows)) == 1).sum() < 20, "a random order has 2 on average"
    assert abs(np.corrcoef(rows, np.arange(10_000))[0, 1]) < 0.05, "5 standard deviations"


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), seed=st.integers(0, 5))
def test_each_epoch_reads_every_row_of_every_source_once_and_in_another_order(sizes: list[int], seed: int):
    total, order = sum(sizes), Shuffled(sizes, seed)
    every = sorted((source, row) for source, size in enumerate(sizes) for row in range(size))
    source, row = order.locate(np.arange(3 * total))
    found = list(zip(source.tolist(), row.tolist(), strict=True))
    epochs = [found[n * total : (n + 1) * total] for n in range(3)]
    assert all(sorted(epoch) == every for epoch in epochs)
    if total > 12:  # 12! orders: two that are equal by chance would be news
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert found != list(zip(*Shuffled(sizes, seed + 1).locate(np.arange(3 * total)), strict=True))


WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 10**9), length=st.integers(1, 3_000))
def test_any_stretch_holds_each_source_by_its_weight(weights: list[float], start: int, length: int):
    source, _ = Mixture([5] * len(weights), weights, 0).turns(np.arange(start, start + length))
    counts = np.bincount(source, minlength=len(weights))
    due = length * np.array(weights) / sum(weights)
    # As many as there are sources, and what 24 bits round a weight by.
    assert (np.abs(counts - due) <= len(weights) + length * 2.0**-24).all()


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS)
def test_the_turns_of_a_source_are_counted_without_a_gap(weights: list[float]):
    source, turn = Mixture([5] * len(weights), weights, 0).turns(np.arange(500))
    for k in range(len(weights)):
        assert turn[source == k].tolist() == list(range((source == k).sum()))


def test_a_source_that_is_through_begins_again_in_another_order():
    source, row = Mixture([7, 1_000], [1, 1], 3).locate(np.arange(42))
    small = row[source == 0].tolist()
    epochs = [tuple(small[n : n + 7]) for n in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 3
    assert max(Counter(row[source == 1].tolist()).values()) == 1


def test_a_row_number_finds_the_same_row_alone_or_among_others():
    for order in (Shuffled([5, 8], 1), Mixture([5, 8, 3], [1, 2.5, 0.3], 1)):
        together = list(zip(*order.locate(np.arange(100)), strict=True))
        assert [tuple(map(int, pair)) for pair in together] == [
            (int(source[0]), int(row[0])) for source, row in (order.locate(np.array([n])) for n in range(100))
        ]


def test_weights_keep_their_ratio_in_whole_units():
    units = in_units([1, 3])
    assert units[1] == 3 * units[0]
    with pytest.raises(AssertionError):
        in_units([1, 1e-12])
