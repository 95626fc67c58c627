"""Rows divided over processes: every token once, places and numbers of the whole, balanced work."""

from itertools import product

import pytest
import torch
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.objective.cross_entropy import scored
from hasten.parallel.context import split_batch
from hasten.parallel.zigzag import Tile, piece_length, pieces, places, tiles

CPU = torch.device("cpu")
DEGREES = (2, 3, 4)


def make_batch(length: int, rows: int = 3) -> Batch:
    """Tokens that tell where they stand, targets in every third place, and those places as `scored`."""
    tokens = torch.arange(rows * length).view(rows, length)
    asked = tokens % 3 == 1
    return Batch(
        tokens,
        tokens.masked_fill(~asked, IGNORE),
        extra={
            "scored": asked.flatten().nonzero().flatten(),
            "weights": tokens * 0.5,
            "row": torch.arange(rows),
        },
    )


def whole(parts: list[Tensor], length: int) -> Tensor:
    """The rows [B, N] that the parts were cut from, and what fills them up."""
    degree, size = len(parts), piece_length(length, len(parts))
    found = torch.empty(len(parts[0]), 2 * degree * size, dtype=parts[0].dtype)
    for place, part in enumerate(parts):
        found[:, places(place, degree, size, CPU)] = part
    return found


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("length", [1, 5, 12, 24, 29])
def test_parts_make_up_the_batch(degree: int, length: int) -> None:
    batch = make_batch(length)
    parts = [split_batch(batch, place, degree) for place in range(degree)]
    tokens, targets, positions, weights = (
        whole([of(part) for part in parts], length)
        for of in (
            lambda part: part.tokens,
            lambda part: part.targets,
            lambda part: part.positions,
            lambda part: part.extra["weights"],
        )
    )
    assert torch.equal(tokens[:, :length], batch.tokens) and torch.equal(targets[:, :length], batch.targets)
    assert torch.equal(weights[:, :length], batch.extra["weights"])
    assert torch.equal(positions[:, :length], torch.arange(length).expand(3, length))
    assert (targets[:, length:] == IGNORE).all() and not positions[:, length:].any()
    assert all(torch.equal(part.extra["row"], torch.arange(3)) for part in parts)


@pytest.mark.parametrize("degree", DEGREES)
def test_what_fills_a_row_up_has_a_number_of_its_own(degree: int) -> None:
    short, even = make_batch(4 * degree - 1), make_batch(4 * degree)
    parts = [split_batch(short, place, degree).segments for place in range(degree)]
    numbers = whole([part for part in parts if part is not None], 4 * degree - 1)
    assert numbers[:, :-1].eq(1).all() and numbers[:, -1].eq(0).all()
    assert split_batch(even, 0, degree).segments is None


def test_one_process_has_the_batch() -> None:
    batch = make_batch(5)
    assert split_batch(batch, 0, 1) is batch


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("length", [12, 17])
def test_every_scored_place_is_at_one_process(degree: int, length: int) -> None:
    batch = make_batch(length)
    found = []
    for place in range(degree):
        part = split_batch(batch, place, degree)
        tokens, targets = scored(part.tokens[..., None], part)
        assert torch.equal(tokens[targets != IGNORE, 0], targets[targets != IGNORE])
        found += targets[targets != IGNORE].tolist()
    assert sorted(found) == batch.targets[batch.targets != IGNORE].tolist()


def test_a_part_without_scored_places_has_one_that_costs_nothing() -> None:
    targets = torch.full((1, 8), IGNORE)
    targets[0, 0] = 5
    batch = Batch(torch.arange(8)[None], targets, extra={"scored": torch.tensor([0, 0])})
    here, other = (split_batch(batch, place, 2) for place in range(2))
    assert here.extra["scored"].tolist() == [0, 0]
    assert scored(other.tokens[..., None], other)[1].tolist() == [IGNORE]


def make_pairs(length: int, num_sources: int, **extra: Tensor) -> Batch:
    tokens = torch.arange(length)[None]
    return Batch(tokens, tokens, extra={"source": 100 + torch.arange(num_sources)[None], **extra})


def test_a_source_is_divided_as_its_targets_are() -> None:
    batch = make_pairs(8, 10, source_segments=torch.tensor([[1] * 4 + [2] * 6]))
    first, second = (split_batch(batch, place, 2).extra for place in range(2))
    assert first["source"].tolist() == [[100, 101, 102, 109, 0, 0]]
    assert second["source"].tolist() == [[103, 104, 105, 106, 107, 108]]
    assert first["source_segments"].tolist() == [[1, 1, 1, 2, 0, 0]]
    assert second["source_positions"].tolist() == [[3, 4, 5, 6, 7, 8]]
    assert split_batch(make_pairs(8, 10), 0, 2).extra["source_segments"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert "source_segments" not in split_batch(make_pairs(8, 12), 0, 2).extra


def test_a_source_that_cannot_be_filled_up_is_refused() -> None:
    pairs = make_pairs(8, 10)
    batch = Batch(pairs.tokens, pairs.targets, segments=torch.ones(1, 8, dtype=torch.long), extra=pairs.extra)
    with pytest.raises(
        ConfigError, match=r"a source of 10 tokens does not divide into 4 pieces.*multiple of 4"
    ):
        split_batch(batch, 0, 2)


def pairs_of(tile: Tile, queries: Tensor, keys: Tensor) -> set[tuple[int, int]]:
    """Which places of the row see which in a tile, pair by pair."""
    found = set()
    for (t, query), (s, key) in product(
        enumerate(queries[tile.query].tolist()), enumerate(keys[tile.key].tolist())
    ):
        if not (tile.causal and s > t) and not (tile.window is not None and s <= t - tile.window):
            found.add((query, key))
    return found


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_tiles_are_what_a_row_sees_each_pair_once(degree: int, length: int, causal: bool) -> None:
    count = 2 * degree * length
    for window in (None, *range(1, count + 2)):
        seen: list[tuple[int, int]] = []
        for place, owner in product(range(degree), repeat=2):
            here, there = (places(p, degree, length, CPU) for p in (place, owner))
            for tile in tiles(
                pieces(place, degree), pieces(owner, degree), length, causal=causal, window=window
            ):
                found = pairs_of(tile, here, there)
                assert len(found) == tile.pairs > 0
                seen += found
        expected = {
            (t, s)
            for t, s in product(range(count), repeat=2)
            if not (causal and s > t) and not (window is not None and s <= t - window)
        }
        assert len(seen) == len(expected) and set(seen) == expected


def work(degree: int, length: int, window: int | None = None) -> list[list[int]]:
    """Visible pairs of each process in each step of a causal ring."""
    return [
        [
            sum(
                tile.pairs
                for tile in tiles(
                    pieces(place, degree),
                    pieces((place - step) % degree, degree),
                    length,
                    causal=True,
                    window=window,
                )
            )
            for step in range(degree)
        ]
        for place in range(degree)
    ]


@pytest.mark.parametrize("degree", [2, 4, 8, 16])
def test_causal_work_is_balanced_in_every_step(degree: int) -> None:
    load = torch.tensor(work(degree, 64), dtype=torch.float64)
    count = 128 * degree
    assert load.sum() == count * (count + 1) / 2
    assert (load.sum(dim=1).max() / load.sum(dim=1).mean() - 1) <= 0.05
    assert (load.amax(dim=0).sum() / load.mean(dim=0).sum() - 1) <= 0.05  # where each step waits for all


def test_a_narrow_window_is_balanced_but_for_the_row_s_start() -> None:
    load = torch.tensor(work(8, 64, window=48), dtype=torch.float64).sum(dim=1)
    assert load.max() / load.mean() - 1 <= 0.05
