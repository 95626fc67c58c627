"""The order in which rows are read: pure functions of the seed that need neither memory nor state.

Row number n of a run counts every row that all ranks read, from 0 on.  An order answers for any n, at once,
which source the row comes from and which row of that source it is.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

Integers = NDArray[np.int64]

ROUNDS = 6
WEIGHT_UNITS = 1 << 24  # n x units fits 64 bits for 2^38 rows


class Order(Protocol):
    """Which rows a run reads."""

    def locate(self, numbers: Integers) -> tuple[Integers, Integers]:
        """[n] row numbers of the run -> ([n] sources, [n] rows of those sources)."""

    def epochs(self, numbers: Integers) -> Integers:
        """[n] row numbers of the run -> how many times each one's source was read before [n]."""


class Shuffled:
    """All rows of all sources once an epoch, in an order of each epoch's own."""

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        """`sizes` are the numbers of rows of each source."""
        self.ends, self.seed = np.array(list(accumulate(sizes)), np.int64), seed

    def locate(self, numbers: Integers) -> tuple[Integers, Integers]:
        rows = shuffle(numbers, int(self.ends[-1]), f"{self.seed}")
        source = np.searchsorted(self.ends, rows, side="right")
        return source, rows - np.append(0, self.ends)[source]

    def epochs(self, numbers: Integers) -> Integers:
        return numbers // self.ends[-1]


class Mixture:
    """Sources by weight, each shuffled and begun again on its own.

    The first n rows hold n x weight rows of each source to within half the number of sources, so any
    stretch holds the right share to within that number.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float | Fraction], seed: int) -> None:
        """`sizes` as above; `weights` of any positive sum."""
        self.sizes, self.seed = sizes, seed
        self.units = in_units(weights)

    def locate(self, numbers: Integers) -> tuple[Integers, Integers]:
        source, turn = self.turns(numbers)
        rows = np.empty_like(turn)
        for k, size in enumerate(self.sizes):
            mine = source == k
            rows[mine] = shuffle(turn[mine], size, f"{self.seed} {k}")
        return source, rows

    def epochs(self, numbers: Integers) -> Integers:
        source, turn = self.turns(numbers)
        return turn // np.array(self.sizes, np.int64)[source]

    def turns(self, numbers: Integers) -> tuple[Integers, Integers]:
        """[n] row numbers -> which source's turn it is [n], and how many turns that source had before [n].

        Of the first n rows, round(n x weight) are the first source's; the others share the rest likewise.
        """
        source = np.full(len(numbers), len(self.units) - 1)
        turn = np.array(numbers, np.int64)
        open_ = np.ones(len(numbers), bool)
        left = WEIGHT_UNITS
        for k, units in enumerate(self.units[:-1]):
            before, after = rounded(turn, units, left), rounded(turn + 1, units, left)
            hit = open_ & (after > before)
            source[hit] = k
            turn = np.where(hit, before, np.where(open_, turn - before, turn))
            open_ &= ~hit
            left -= units
        return source, turn


def in_units(weights: Sequence[float | Fraction]) -> list[int]:
    """`weights` as positive integers that sum to WEIGHT_UNITS."""
    exact = [Fraction(weight) for weight in weights]
    ends = [round(end / sum(exact) * WEIGHT_UNITS) for end in accumulate(exact)]
    units = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert min(units) > 0, "a weight below a ten-millionth"
    return units


def rounded(n: Integers, units: int, total: int) -> Integers:
    """n x units / total, rounded half up, exactly."""
    return (2 * n * units + total) // (2 * total)


def shuffle(numbers: Integers, size: int, key: str) -> Integers:
    """Positions 0, 1, ... of an endless reading -> rows below `size`, each epoch a permutation of its own."""
    epochs, places = np.divmod(numbers, size)
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        rows[mine] = permute(places[mine], size, f"{key} {epoch}")
    return rows


def permute(places: Integers, size: int, key: str) -> Integers:
    """One permutation of range(size), looked up at `places`; `key` says which.

    A Feistel network permutes the numbers of an even number of bits; whoever lands at `size` or above walks
    on until he is below (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(((size - 1).bit_length() + 1) // 2, 1)
    keys = [np.uint64(xxhash.xxh64_intdigest(f"{key} {n}".encode())) for n in range(ROUNDS)]
    result = feistel(places.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(result >= size)):
        result[outside] = feistel(result[outside], half, keys)
    return result.astype(np.int64)


def feistel(values: NDArray[np.uint64], half: int, keys: Sequence[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of the numbers of 2 x `half` bits."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << bits) | right


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of x (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
