"""Which tokens of a row each process of `context` has, and which of them look at which.

A row is cut into 2 c pieces of one length, and process i of c has the pieces i and 2 c - 1 - i: an early one,
which sees little of a causal row, and a late one, which sees much (Llama 3, arXiv:2407.21783, 3.3.2).  So all
processes have the same number of visible pairs, with every other process's keys.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def pieces(place: int, degree: int) -> tuple[int, int]:
    """The two pieces of a process."""
    return place, 2 * degree - 1 - place


def piece_length(length: int, degree: int) -> int:
    """Of a row of so many tokens, filled up."""
    return -(-length // (2 * degree))


def places(place: int, degree: int, length: int, device: torch.device) -> Tensor:
    """Where in the row the tokens of a process stand, whose pieces have `length`: [2 length]."""
    at = torch.arange(length, device=device)
    return torch.cat([piece * length + at for piece in pieces(place, degree)])


class Tile(NamedTuple):
    """Queries and keys of two processes that look at each other, by where they stand there.

    If `causal`, or in a window, query t of the tile looks as if it stood at key t.
    """

    query: slice
    key: slice
    causal: bool = False
    window: int | None = None

    @property
    def pairs(self) -> int:
        """How many pairs see each other."""
        rows, columns = self.query.stop - self.query.start, self.key.stop - self.key.start
        before = (0 if self.window is None else max(0, t - self.window + 1) for t in range(rows))
        return sum((t + 1 if self.causal else columns) - hidden for t, hidden in enumerate(before))


WHOLE = Tile(slice(None), slice(None))
"""All look at all."""


def tiles(
    mine: tuple[int, int], theirs: tuple[int, int], length: int, *, causal: bool, window: int | None
) -> list[Tile]:
    """What my queries see of their keys, as few tiles; the pieces have `length`."""
    found = [
        [tile_of(length, a, b, i, j, causal=causal, window=window) for j, b in enumerate(theirs)]
        for i, a in enumerate(mine)
    ]
    return joined(found, length)


def tile_of(
    length: int, query: int, key: int, i: int, j: int, *, causal: bool, window: int | None
) -> Tile | None:
    """What piece `query` of the row, the i-th here, sees of piece `key`, their j-th; None if nothing."""
    ahead = (query - key) * length  # query t stands so many places behind key t
    if causal and ahead < 0:
        return None
    left = None if window is None or window - ahead >= length else window - ahead
    skipped = 0 if left is None else max(0, 1 - left)  # the first keys and the last queries that see nothing
    if skipped >= length:
        return None
    rows = slice(i * length, (i + 1) * length - skipped)
    columns = slice(j * length + skipped, (j + 1) * length)
    return Tile(rows, columns, causal and ahead == 0, None if left is None else left + skipped)


def joined(grid: list[list[Tile | None]], length: int) -> list[Tile]:
    """The tiles [2][2] with neighbours made one where everything in them is visible."""
    full = [[is_full(tile, length) for tile in row] for row in grid]
    both, half = slice(0, 2 * length), (slice(0, length), slice(length, 2 * length))
    if all(map(all, full)):
        return [Tile(both, both)]
    for i in range(2):
        if all(full[i]):
            return [Tile(half[i], both), *filter(None, grid[1 - i])]
        if full[0][i] and full[1][i]:
            return [Tile(both, half[i]), *filter(None, (row[1 - i] for row in grid))]
    return [tile for row in grid for tile in row if tile]


def is_full(tile: Tile | None, length: int) -> bool:
    """Whether all queries of a piece see all keys of another."""
    return tile is not None and not tile.causal and tile.window is None and tile.pairs == length * length
