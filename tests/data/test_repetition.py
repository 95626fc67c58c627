"""The shares of repetition are those of their definitions, and the short cut decides as they do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data.ngrams import words
from hasten.data.repetition import (
    REPEATED_RUNS,
    TOP_RUNS,
    repeated_count,
    repeated_share,
    repeats_itself,
    top_count,
    top_share,
)


def test_the_repetition_shares_are_those_of_their_definitions():
    text = words("aa bb aa bb cc aa bb dddd")  # 18 characters
    assert top_share(text, 2) == pytest.approx(3 * 4 / 18)  # "aa bb", three times
    assert top_share(text, 3) == 0
    assert repeated_share(text, 2) == pytest.approx(8 / 18)  # the second and third "aa bb"


@settings(max_examples=100, deadline=None)
@given(numbers=st.lists(st.integers(0, 3), min_size=1, max_size=15), n=st.integers(1, 4))
def test_the_repetition_shares_agree_with_a_plain_count(numbers, n):
    names = [("a", "bb", "ccc", "dddd")[number] for number in numbers]
    runs = [tuple(names[start : start + n]) for start in range(len(names) - n + 1)]
    total = sum(map(len, names))
    inside = {start + place for start, run in enumerate(runs) if run in runs[:start] for place in range(n)}
    text = words(" ".join(names))
    assert repeated_share(text, n) == pytest.approx(sum(len(names[place]) for place in inside) / total)
    counts = {run: runs.count(run) for run in runs}
    top = [count * len("".join(run)) for run, count in counts.items() if count == max(counts.values())]
    if runs and max(counts.values()) > 1:
        assert any(top_share(text, n) == pytest.approx(length / total) for length in top)
    elif runs:
        assert top_share(text, n) == 0
    assert top_count(text, n) == max(counts.values(), default=0)
    assert repeated_count(text, n) == len(runs) - len(counts)


@settings(max_examples=200, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 400), min_size=1, max_size=80),
    again=st.lists(st.tuples(st.integers(0, 79), st.integers(1, 14)), max_size=6),
)
def test_the_short_cut_decides_as_the_whole_table_does(numbers, again):
    for start, length in again:
        numbers = numbers + numbers[start : start + length]
    text = words(" ".join("w" * (number % 5) + str(number) for number in numbers))
    whole_table = any(top_share(text, n) > most for n, most in TOP_RUNS.items()) or any(
        repeated_share(text, n) > most for n, most in REPEATED_RUNS.items()
    )
    assert repeats_itself(text) == whole_table
