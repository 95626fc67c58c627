"""Packing: every target once, rows full, and no slower or larger than it must be."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import DataError
from hasten.data import pack as module
from hasten.data.pack import Rows, best_fit, pack, pack_on_disk

LENGTHS = st.lists(st.integers(0, 70), max_size=60)


def covered(rows: Rows, documents: int) -> list[list[int]]:
    """For each document, the targets that the pieces in the rows name, sorted, repeats and all."""
    found: list[list[int]] = [[] for _ in range(documents)]
    for row in range(rows.num_rows):
        for document, start, length in rows.pieces(row):
            found[document] += range(start, start + length)
    return [sorted(targets) for targets in found]


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS, row_tokens=st.integers(1, 32), window=st.integers(1, 40))
def test_every_target_of_every_document_is_in_exactly_one_place(
    lengths: list[int], row_tokens: int, window: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW_PIECES", window)
        rows = pack(np.array(lengths, np.int64), row_tokens)
    assert covered(rows, len(lengths)) == [list(range(length)) for length in lengths]
    sizes = [sum(length for _, _, length in rows.pieces(row)) for row in range(rows.num_rows)]
    assert all(0 < size <= row_tokens for size in sizes)
    assert rows.num_targets == sum(lengths)
    assert rows.utilisation == pytest.approx(sum(lengths) / max(len(sizes) * row_tokens, 1))


@settings(max_examples=300, deadline=None)
@given(sizes=st.lists(st.integers(1, 24), max_size=60))
def test_best_fit_fills_bins_as_one_piece_after_the_other_would(sizes: list[int]):
    """Groups of equal sizes are a matter of speed: the gaps that stay are those of the textbook's loop."""
    gaps: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [bin for bin, gap in enumerate(gaps) if gap >= size]
        if fitting:
            gaps[min(fitting, key=lambda bin: gaps[bin])] -= size
        else:
            gaps.append(24 - size)
    found = np.bincount(best_fit(np.array(sizes, np.int64), 24), sizes) if sizes else []
    assert sorted(24 - int(filled) for filled in found) == sorted(gaps)


def lognormal(median: float, spread: float, count: int) -> np.ndarray:
    return np.maximum(np.random.default_rng(0).lognormal(np.log(median), spread, count), 1).astype(np.int64)


REALISTIC = {
    "web pages": lognormal(550, 1.1, 20_000),
    "program files": lognormal(1_800, 1.4, 2_000),
    "stories of nearly one length": np.random.default_rng(1).normal(220, 30, 20_000).astype(np.int64),
    "questions and answers": np.random.default_rng(2).integers(5, 60, 50_000),
    "a few books": np.array([200_000, 350_123, 90_001, 120_777]),
    "short and long together": np.concatenate([lognormal(30, 0.5, 20_000), lognormal(9_000, 1, 500)]),
    "all of 0.6 of a row": np.full(20_000, 307),
    "all a little over half a row": np.random.default_rng(3).integers(257, 300, 20_000),
    "sorted by length": np.sort(lognormal(400, 1, 20_000)),
}


@pytest.mark.parametrize("row_tokens", [512, 2_048])
@pytest.mark.parametrize("lengths", REALISTIC.values(), ids=REALISTIC)
def test_at_least_ninety_nine_of_a_hundred_places_hold_a_target(lengths: np.ndarray, row_tokens: int):
    rows = pack(lengths, row_tokens)
    assert rows.num_targets == lengths.sum()
    assert rows.utilisation >= 0.99


def test_documents_that_fit_are_left_whole_where_rows_fill_up_anyway():
    lengths = np.random.default_rng(0).integers(1, 512, 20_000)
    assert len(pack(lengths, 512).document) == len(lengths)


def test_a_million_documents_are_planned_in_seconds():
    lengths = lognormal(550, 1.1, 1_000_000)
    start = time.monotonic()
    assert pack(lengths, 2_048).utilisation >= 0.99
    assert time.monotonic() - start < 10, "about one second on an idle core"


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, window=st.integers(1, 40))
def test_a_plan_on_disk_is_the_plan_in_memory_and_is_made_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], window: int
):
    folder, documents = tmp_path_factory.mktemp("plans"), np.array(lengths, np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW_PIECES", window)
        expected, made = pack(documents, 16), pack_on_disk(documents, 16, folder)
        patch.setattr(module, "pack_windows", None)  # whoever plans again fails
        read = pack_on_disk(documents, 16, folder)
    for column in module.COLUMNS:
        np.testing.assert_array_equal(getattr(made, column), getattr(expected, column))
        np.testing.assert_array_equal(getattr(read, column), getattr(expected, column))


def test_other_lengths_or_rows_have_plans_of_their_own(tmp_path: Path):
    for lengths, row_tokens in (([3, 4], 16), ([4, 3], 16), ([3, 4], 8)):
        assert covered(pack_on_disk(np.array(lengths), row_tokens, tmp_path), 2)[0] == list(range(lengths[0]))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_plan_that_lost_bytes_is_refused(tmp_path: Path):
    pack_on_disk(np.array([30, 40]), 16, tmp_path)
    file = next(tmp_path.glob("*/start.bin"))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match="is damaged; remove it and start again"):
        pack_on_disk(np.array([30, 40]), 16, tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "plans").write_text("a file, no folder")
    with pytest.raises(
        DataError, match=r"plans.*the plan of rows cannot be kept there \(.+\); make its folder"
    ):
        pack_on_disk(np.array([30, 40]), 16, tmp_path / "plans")


def test_a_plan_that_another_process_just_made_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ranks of a run plan the same rows at the same time; the one that is late must not fail."""
    write = module.write_windows

    def overtaken(*arguments: object) -> None:
        monkeypatch.setattr(module, "write_windows", write)
        pack_on_disk(np.array([30, 40]), 16, tmp_path)
        write(*arguments)

    monkeypatch.setattr(module, "write_windows", overtaken)
    assert pack_on_disk(np.array([30, 40]), 16, tmp_path).num_targets == 70
