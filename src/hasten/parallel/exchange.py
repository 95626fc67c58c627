"""Whole matrices out of boxes that are spread over processes, each at one process, and the results back.

What is computed of a matrix as a whole is computed once: matrices are dealt out to the processes of a group,
boxes travel to the owners and boxes of the results travel back, in one message each way between any two
processes.  Who sends what to whom is settled once (ZeRO's owners: Rajbhandari et al. 2020; for Muon: Liu et
al. 2025, "Muon is scalable for LLM training").
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from hasten.parallel.arrangement import Piece

Holdings = Sequence[Mapping[int, Piece]]
"""What each process of a group holds: of a matrix, by its number, one box."""


class Parcel(NamedTuple):
    """A box of a matrix on its way; processes are told by their ranks in the group."""

    number: int
    piece: Piece
    sender: int
    receiver: int

    @property
    def numel(self) -> int:
        """How many elements travel."""
        return prod(self.piece.shape)


class Route:
    """Parcels that travel together, as elements of `like`; all processes make it from the same list."""

    def __init__(self, parcels: Sequence[Parcel], group: ProcessGroup, like: Tensor) -> None:
        here, everyone = distributed.get_rank(group), range(distributed.get_world_size(group))
        travelling = [parcel for parcel in parcels if parcel.sender != parcel.receiver and parcel.numel]
        self.group, self.like = group, like
        self.silent = not travelling  # the same everywhere: nobody waits for a message
        self.kept = [parcel for parcel in parcels if parcel.sender == parcel.receiver == here]
        # Both ends order what travels between them as `parcels` does.
        self.sent = sorted((p for p in travelling if p.sender == here), key=lambda p: p.receiver)
        self.received = sorted((p for p in travelling if p.receiver == here), key=lambda p: p.sender)
        self.sent_sizes = [sum(p.numel for p in self.sent if p.receiver == rank) for rank in everyone]
        self.received_sizes = [sum(p.numel for p in self.received if p.sender == rank) for rank in everyone]

    def carry(self, content: Callable[[Parcel], Tensor]) -> Iterator[tuple[Parcel, Tensor]]:
        """The parcels for this process, each with what is the `content` of it at its sender."""
        yield from ((parcel, content(parcel)) for parcel in self.kept)
        if self.silent:
            return
        leaving = self.like.new_empty(sum(self.sent_sizes))
        for parcel, room in zip(self.sent, leaving.split([p.numel for p in self.sent]), strict=True):
            room.view(parcel.piece.shape).copy_(content(parcel))
        arrived = self.like.new_empty(sum(self.received_sizes))
        distributed.all_to_all_single(
            arrived, leaving, self.received_sizes, self.sent_sizes, group=self.group
        )
        parts = arrived.split([parcel.numel for parcel in self.received])
        yield from ((p, part.view(p.piece.shape)) for p, part in zip(self.received, parts, strict=True))


class Exchange:
    """A function of whole matrices, of which the processes of a group hold boxes.

    `cost` says what the function costs for a matrix of some shape: owners get about equal sums.  Boxes travel
    as elements of `given`, those of the results as elements of `made`: empty tensors of a type and a device.
    """

    def __init__(
        self,
        group: ProcessGroup,
        held: Holdings,
        cost: Callable[[tuple[int, ...]], float],
        given: Tensor,
        made: Tensor,
    ) -> None:
        shapes = {number: piece.whole for number, piece in held[0].items()}
        owners = deal({number: cost(shape) for number, shape in shapes.items()}, len(held))
        self.given, self.made = given, made
        self.inward = Route(list(to_owners(held, owners)), group, given)
        self.outward = Route(list(from_owners(held, owners)), group, made)
        mine = [number for number, owner in owners.items() if owner == distributed.get_rank(group)]
        self.owned = {shape: [n for n in mine if shapes[n] == shape] for shape in set(shapes.values())}

    def apply(self, function: Callable[[Tensor], Tensor], boxes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """`function` of [N, rows, cols] on the matrices that `boxes` [r, c] belong to: its boxes [r, c]."""
        wholes, results = self.gather(boxes), dict[int, Tensor]()
        for shape, numbers in self.owned.items():
            if numbers:
                results |= zip(numbers, function(wholes[shape]), strict=True)
        found = {number: self.made.new_empty(box.shape) for number, box in boxes.items() if not box.numel()}
        carried = self.outward.carry(lambda parcel: results[parcel.number][parcel.piece.slices])
        return found | {parcel.number: part for parcel, part in carried}

    def gather(self, boxes: Mapping[int, Tensor]) -> dict[tuple[int, ...], Tensor]:
        """By their shape, the whole matrices [N, rows, cols] that are this process's to compute with."""
        stacks = {shape: self.given.new_empty(len(own), *shape) for shape, own in self.owned.items()}
        slots = {
            n: slot for shape, own in self.owned.items() for n, slot in zip(own, stacks[shape], strict=True)
        }
        for parcel, part in self.inward.carry(lambda parcel: boxes[parcel.number]):
            slots[parcel.number][parcel.piece.slices] = part
        return stacks


def holdings(group: ProcessGroup, own: Mapping[int, Piece]) -> Holdings:
    """What all processes of a group hold, in order of rank; all call this at the same moment."""
    held: list[dict[int, Piece]] = [{} for _ in range(distributed.get_world_size(group))]
    distributed.all_gather_object(held, dict(own), group=group)
    return held


def whole_everywhere(held: Holdings) -> set[int]:
    """The matrices of which every process holds all."""
    return {number for number in held[0] if all(one[number].shape == one[number].whole for one in held)}


def deal(costs: Mapping[int, float], hands: int) -> dict[int, int]:
    """An owner for each number: the dearest first, to whoever has the least (Graham 1969)."""
    loads, owners = [0.0] * hands, dict[int, int]()
    for number in sorted(costs, key=lambda number: (-costs[number], number)):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return dict(sorted(owners.items()))


def to_owners(held: Holdings, owners: Mapping[int, int]) -> Iterator[Parcel]:
    """Every box of every matrix once, from the nearest to its owner of those that hold it."""
    for number, owner in owners.items():
        holders: dict[Piece, list[int]] = defaultdict(list)
        for rank, own in enumerate(held):
            holders[own[number]].append(rank)
        covered, whole = sum(prod(piece.shape) for piece in holders), held[owner][number].whole
        assert covered == prod(whole), f"boxes of matrix {number} hold {covered} elements, not {prod(whole)}"
        for piece, ranks in holders.items():
            yield Parcel(number, piece, min(ranks, key=lambda rank: abs(rank - owner)), owner)


def from_owners(held: Holdings, owners: Mapping[int, int]) -> Iterator[Parcel]:
    """To each process its box of every result."""
    for number, owner in owners.items():
        for rank, own in enumerate(held):
            yield Parcel(number, own[number], owner, rank)
