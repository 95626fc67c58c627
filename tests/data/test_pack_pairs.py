"""Pairs to rows in two dimensions: nothing lost, nothing twice, no row too long, little left empty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data import pack_pairs as module
from hasten.data.pack_pairs import fitting, pack_pairs, planned

sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(pairs=sizes, row=st.tuples(st.integers(2, 40), st.integers(2, 40)))
def test_every_pair_that_fits_stands_in_exactly_one_row_and_no_row_overflows(pairs, row):
    sources, targets = np.array(pairs, np.int64).reshape(-1, 2).T
    rows = pack_pairs(sources, targets, row)
    fits = fitting(sources, targets, row)
    assert sorted(rows.pair.tolist()) == np.flatnonzero(fits).tolist()
    assert rows.num_sources == sources[fits].sum() and rows.num_targets == targets[fits].sum()
    for number in range(rows.num_rows):
        chosen = rows.pair[rows.span(number)]
        assert len(chosen) and sources[chosen].sum() <= row[0] and targets[chosen].sum() <= row[1]


@pytest.mark.parametrize("ratio", [1.0, 1.4])
def test_sentences_fill_both_sides_of_rows_that_suit_their_ratio(ratio):
    draw = np.random.default_rng(0)
    sources = draw.gamma(3, 5, 4000).astype(np.int64) + 2
    targets = np.maximum(sources * ratio * draw.lognormal(0, 0.25, 4000), 2).astype(np.int64)
    row = 256, int(256 * targets.sum() / sources.sum())
    kept = fitting(sources, targets, row)
    rows = pack_pairs(sources, targets, row)
    assert kept.mean() > 0.99
    assert rows.num_sources >= 0.95 * rows.num_rows * row[0]
    assert rows.num_targets >= 0.95 * rows.num_rows * row[1]


def test_packing_is_the_same_every_time():
    draw = np.random.default_rng(1)
    sources, targets = draw.integers(1, 30, (2, 500))
    one, other = (pack_pairs(sources, targets, (64, 64)) for _ in range(2))
    assert (one.pair == other.pair).all() and (one.bounds == other.bounds).all()


def test_a_plan_of_many_pairs_is_made_once_and_again_where_it_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEPT_PAIRS", 100)
    sources, targets = np.random.default_rng(2).integers(1, 30, (2, 300))
    expected = pack_pairs(sources, targets, (25, 64))
    calls = []
    monkeypatch.setattr(module, "pack_pairs", lambda *given: calls.append(1) or pack_pairs(*given))
    for number in range(3):
        rows = planned(sources, targets, (25, 64), tmp_path)
        assert (rows.pair == expected.pair).all() and (rows.bounds == expected.bounds).all()
        assert (rows.num_sources, rows.num_targets) == (expected.num_sources, expected.num_targets)
        if number == 1:
            next(tmp_path.glob("pairs-25-64-*/pair.npy")).write_bytes(b"x")
    assert len(calls) == 2
