"""Find documents that are equal, or nearly, among more than fit into memory.

Near-duplicates: MinHash signatures (Broder 1997) of the sets of three-word runs, cut into bands of rows;
documents that agree in all rows of a band are compared (Leskovec, Rajaraman and Ullman, chapter 3.4) and
linked where the whole signatures agree as much as the threshold asks.  Of each group of linked
documents the first stays, and so does every further one that is not near to one that stays: a chain of
small changes does not take a document that differs from all that are kept.  One band at a time is in
memory, some thirty bytes a document.  Letters: D documents.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from rensa import RMinHash

from hasten.data.ngrams import Hashes, mix, shingles

SHINGLE_WORDS = 3
LEAST_WORDS = 10  # of shorter texts only equal ones are duplicates: "2 + 3 is 5" is not "2 + 4 is 6"
SIGNATURE = 128  # the estimate of a Jaccard index of 0.6 has a standard error of 0.04
BANDS, ROWS = 32, 4  # P(a pair is compared) = 1 - (1 - J ** 4) ** 32: 0.99 at 0.6, 0.87 at 0.5, 0.05 at 0.2
SEED = 1
PAIRS = 1 << 14  # compared together

Signatures = NDArray[np.uint32]
Numbers = NDArray[np.int64]


def signatures(texts: list[Hashes]) -> Signatures:
    """The words of texts -> [D, SIGNATURE] MinHash signatures.

    For two texts the share of equal entries estimates the Jaccard index of their sets of shingles.
    """
    sets = [shingles(words, SHINGLE_WORDS) for words in texts]
    if not sets:
        return np.empty((0, SIGNATURE), np.uint32)
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), offsets, SIGNATURE, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def bands(signed: Signatures) -> Hashes:
    """[D, SIGNATURE] -> [BANDS, D]: one number for the rows of each band."""
    keys = np.empty((BANDS, len(signed)), np.uint64)
    for band in range(BANDS):
        key = np.zeros(len(signed), np.uint64)
        for row in range(band * ROWS, (band + 1) * ROWS):
            key = mix(key + signed[:, row] + np.uint64(1))
        keys[band] = key
    return keys


def digest(text: str) -> int:
    """64 bits that stand for a text, blanks at both ends aside."""
    return xxhash.xxh3_64_intdigest(text.strip().encode())


def first_equal(values: NDArray[np.uint64]) -> Numbers:
    """[D] -> [D]: for each value the place of the first that is equal to it."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


class Rows:
    """Arrays [D1, ...], [D2, ...] on the disk, indexed by numbers of 0 to D1 + D2 + ... - 1."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.arrays = arrays
        self.first = np.cumsum([0, *map(len, arrays)])

    def __getitem__(self, numbers: Numbers) -> NDArray[Any]:
        which = np.searchsorted(self.first, numbers, side="right") - 1
        out = np.empty((len(numbers), *self.arrays[0].shape[1:]), self.arrays[0].dtype)
        for array in np.unique(which):
            mine = which == array
            out[mine] = self.arrays[array][numbers[mine] - self.first[array]]
        return out


def near_duplicates(
    keys: Iterable[Hashes], signed: Rows, alive: NDArray[np.bool_], threshold: float, fixed: NDArray[np.bool_]
) -> Numbers:
    """[D]: for each document the one that stays and that it nearly repeats, or itself.

    `keys` gives the bands, [D] each, one after the other; what is not `alive` is left out, and what is
    `fixed` stays whatever it repeats.
    """
    parents = np.arange(len(alive), dtype=np.int64)
    for key in keys:
        for first, second in pairs(key, alive):
            apart = parents[first] != parents[second]
            one, other = first[apart], second[apart]
            same = agreement(signed[one], signed[other]) >= threshold
            for pair in zip(one[same].tolist(), other[same].tolist(), strict=True):
                join(parents, *pair)
    likeness = np.arange(len(alive), dtype=np.int64)
    for members in groups(parents):
        likeness[members] = nearest_kept(members, signed, threshold, fixed)
    return likeness


def agreement(one: Signatures, other: Signatures) -> NDArray[np.float64]:
    """[N, SIGNATURE] twice -> [N] estimates of the Jaccard index."""
    return np.asarray((one == other).mean(axis=-1))


def groups(parents: Numbers) -> Iterator[Numbers]:
    """The linked documents, group by group, each in order; single ones are left out."""
    linked = np.flatnonzero(parents != np.arange(len(parents)))
    roots = np.array([root(parents, document) for document in linked.tolist()], np.int64)
    order = np.argsort(roots, kind="stable")
    begins = np.flatnonzero(np.diff(roots[order], prepend=-1))
    for members in np.split(linked[order], begins[1:]) if len(linked) else ():
        yield np.append(root(parents, int(members[0])), members)


def nearest_kept(members: Numbers, signed: Rows, threshold: float, fixed: NDArray[np.bool_]) -> Numbers:
    """For each member of a group, in order: the nearest one kept so far, or itself, which is then kept."""
    kept, leaders = [0], [int(members[0])]
    rows = signed[members]
    for place in range(1, len(members)):
        near = agreement(rows[kept], rows[place])
        best = int(near.argmax())
        if near[best] < threshold or fixed[members[place]]:
            kept.append(place)
            best = -1
        leaders.append(int(members[kept[best]]))
    return np.array(leaders, np.int64)


def pairs(key: Hashes, alive: NDArray[np.bool_]) -> Iterator[tuple[Numbers, Numbers]]:
    """Documents with equal keys, (earlier, later): each with the first of its group and the one before.

    All pairs of a group would be too many where thousands share a boilerplate.
    """
    living = np.flatnonzero(alive)
    order = living[np.argsort(key[living], kind="stable")]
    later = np.flatnonzero(key[order[1:]] == key[order[:-1]]) + 1  # places in `order` that continue a group
    begins = np.ones(len(order), bool)
    begins[later] = False
    group = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    for start in range(0, len(later), PAIRS):
        places = later[start : start + PAIRS]
        yield order[group[places]], order[places]
        yield order[places - 1], order[places]


def root(parents: Numbers, document: int) -> int:
    """The first document of a group."""
    while parents[document] != document:
        parents[document] = parents[parents[document]]
        document = int(parents[document])
    return document


def join(parents: Numbers, one: int, other: int) -> None:
    """Make two groups one, with the first document of both as its root."""
    one, other = root(parents, one), root(parents, other)
    parents[max(one, other)] = min(one, other)
