"""Muon: momentum, orthogonalised, for the matrices inside blocks, held whole or in parts.

A matrix is orthogonalised as a whole.  Where processes hold boxes or copies of the same matrices, each matrix
has one owner that does so and sends everyone the box that it holds of the result (`parallel/exchange.py`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from hasten.ops.orthogonalize import flops, orthogonalize
from hasten.parallel.arrangement import Piece
from hasten.parallel.exchange import Exchange, Holdings, holdings, whole_everywhere

WORTH = 2000
"""From how many operations per byte of its result on, a matrix that every process holds whole is one's to
orthogonalise and to send.  While a byte arrives, a CPU core does 80 where the sender is on the same machine
(measured: 120 GFLOP/s, 1.5 GB/s) and 1,000 over 1 Gbit/s Ethernet; a GPU of 400 TFLOP/s does 1,300 at
300 GB/s and 8,000 at 50 GB/s.  A square matrix of R rows takes 19 R: what is left to everyone hardly counts.
Nothing is measured at run time: a run that is repeated has to round in the same places."""


class Place(NamedTuple):
    """A matrix's number, by which turns are counted over the whole model, and which box of it is here."""

    number: int
    piece: Piece


@dataclass(frozen=True)
class Stack:
    """Matrices of one shape, handled as one: what is here of each, [r, c], and their momenta, [N, r, c]."""

    group: dict[str, Any]  # torch's options for them
    matrices: list[Tensor]
    places: list[Place]
    momenta: Tensor
    turns: int

    @cached_property
    def members(self) -> list[list[int]]:
        """Which of the matrices move, at each turn."""
        numbers = [place.number % self.turns for place in self.places]
        return [[i for i, own in enumerate(numbers) if own == turn] for turn in range(self.turns)]

    @cached_property
    def indices(self) -> list[Tensor | slice]:
        """The same to index momenta with, on their device: a number copied there would wait for its queue."""
        if self.turns == 1:
            return [slice(None)]
        return [torch.tensor(own, dtype=torch.long, device=self.momenta.device) for own in self.members]

    @property
    def factor(self) -> float:
        """What makes a step's spectral norm that of its rate."""
        rows, cols = self.places[0].piece.whole
        return float(max(1, rows / cols) ** 0.5)

    def moving(self, turn: int) -> tuple[list[int], list[Tensor]]:
        """The numbers of those that move at a turn, and what is here of them."""
        own = self.members[turn]
        return [self.places[i].number for i in own], [self.matrices[i] for i in own]


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), for matrices W [rows, cols] with gradient G:

        M <- mu M + G
        W <- (1 - k eta lambda) W - k eta sqrt(max(1, rows / cols)) O(G + mu M)   at every k-th step

    O replaces every singular value by about 1 (`ops.orthogonalize`).  The factor is Jordan's: the step's
    spectral norm is eta times sqrt(rows / cols) whatever the size, so one rate serves narrow and wide models
    (the spectral condition of Yang, Simon and Bernstein 2023).  Moonlight's 0.2 sqrt(max(rows, cols)) would
    match AdamW's mean size instead, and its rate would have to be found again for every width.

    With `turns` k above 1 the matrices take turns, 1 / k of them at each step: O is most of the cost, and
    where the batch is small, a k times longer step at every k-th loses nothing (docs/DIARY.md).  Whose turn
    it is follows from the attribute `turn`, the number of the step, and a matrix's number.

    Matrices of one shape are handled as one batch [N, rows, cols], and their momenta are kept so.  As with
    torch's fused optimizers, an attribute `found_inf` of 1.0 leaves weights and momenta as they are.

    `places` says of each matrix where it belongs in the whole model, by default that all are whole and
    numbered as they come; `group` are the processes that hold parts or copies of the same matrices, all of
    which make their `Muon` and call `step` at the same moment.
    """

    found_inf: Tensor | None = None
    turn = 0

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        turns: int = 1,
        places: Mapping[Tensor, Place] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.turns = turns
        matrices = [matrix for options in self.param_groups for matrix in options["params"]]
        places = places or {matrix: Place(n, entire(matrix)) for n, matrix in enumerate(matrices)}
        held = holdings(group, dict(places.values())) if group is not None else []
        shared = to_share(held)
        self.alone = list(self.stacks({m: p for m, p in places.items() if p.number not in shared}))
        self.shared = list(self.stacks({m: p for m, p in places.items() if p.number in shared}))
        self.exchanges = list[Exchange]()
        if group is not None and shared:
            each = [{number for number in shared if number % turns == turn} for turn in range(turns)]
            self.exchanges = [make_exchange(group, held, own, matrices[0].device) for own in each]

    def stacks(self, places: Mapping[Tensor, Place]) -> Iterable[Stack]:
        """The matrices in `places` in stacks, with their state."""
        for options in self.param_groups:
            for matrices in by_shape([m for m in options["params"] if m in places], places):
                momenta = matrices[0].new_zeros(len(matrices), *matrices[0].shape)
                for matrix, slot in zip(matrices, momenta, strict=True):
                    self.state[matrix] = {"momentum": slot}
                yield Stack(options, matrices, [places[m] for m in matrices], momenta, self.turns)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix whose turn it is, and of every momentum."""
        turn = self.turn % self.turns
        for stack in self.alone:
            ahead = self.advance(stack, turn)
            if len(ahead):
                self.move(stack, turn, orthogonalize(ahead))
        if self.shared:
            self.step_together(turn)

    def step_together(self, turn: int) -> None:
        """The update of what is orthogonalised by its owners."""
        boxes = dict[int, Tensor]()
        for stack in self.shared:
            boxes |= zip(stack.moving(turn)[0], self.advance(stack, turn), strict=True)
        found = self.exchanges[turn].apply(orthogonalize, boxes)
        for stack in self.shared:
            if numbers := stack.moving(turn)[0]:
                self.move(stack, turn, torch.stack([found[number] for number in numbers]))

    def advance(self, stack: Stack, turn: int) -> Tensor:
        """M <- mu M + G for all of a stack; G + mu M of those that move, [n, r, c]."""
        gradient = torch.stack(
            [m.grad if m.grad is not None else torch.zeros_like(m) for m in stack.matrices]
        )
        momenta, momentum = stack.momenta, stack.group["momentum"]
        # Filled on the device: a number that is copied there would wait for all that is queued.
        keep = momenta.new_full((), momentum)
        if self.found_inf is not None:
            # x * 1 and x + (-0.0) are x for every x, -0.0 included; no wait for the device is needed.
            bad = self.found_inf.bool()
            gradient, keep = gradient.masked_fill(bad, -0.0), keep.masked_fill(bad, 1.0)
        momenta.mul_(keep).add_(gradient)
        own = stack.indices[turn]
        return gradient[own].add(momenta[own], alpha=momentum)

    def move(self, stack: Stack, turn: int, direction: Tensor) -> None:
        """One update of those of a stack that move, along their directions [n, r, c]."""
        _, matrices = stack.moving(turn)
        lr, direction = stack.group["lr"] * self.turns, direction.to(stack.momenta.dtype)
        shrink = stack.momenta.new_full((), 1 - lr * stack.group["weight_decay"])
        if self.found_inf is not None:
            bad = self.found_inf.bool()
            shrink = shrink.masked_fill(bad, 1.0)
            direction = direction.masked_fill(bad, 0.0)  # times a negative rate: -0.0
        torch._foreach_mul_(matrices, shrink)
        torch._foreach_add_(matrices, list(direction.unbind()), alpha=-lr * stack.factor)


def entire(matrix: Tensor) -> Piece:
    """The box that is the whole matrix."""
    return Piece((0,) * matrix.dim(), tuple(matrix.shape), tuple(matrix.shape))


def by_shape(matrices: Iterable[Tensor], places: Mapping[Tensor, Place]) -> list[list[Tensor]]:
    """Matrices in lists of equal shape and type, here and as a whole, in the order in which they appear."""
    shapes: dict[Any, list[Tensor]] = defaultdict(list)
    for matrix in matrices:
        shapes[matrix.shape, places[matrix].piece.whole, matrix.dtype, matrix.device].append(matrix)
    return list(shapes.values())


def to_share(held: Holdings) -> set[int]:
    """The matrices that are not orthogonalised by everyone: held in parts, or dear enough to be sent."""
    if not held:
        return set()
    everywhere = whole_everywhere(held)
    return {number for number in held[0] if number not in everywhere or dear(*held[0][number].whole)}


def dear(rows: int, columns: int) -> bool:
    """Whether a matrix takes longer to orthogonalise than its result, in bfloat16, takes to arrive."""
    return flops(rows, columns) > WORTH * 2 * rows * columns


def make_exchange(group: ProcessGroup, held: Holdings, numbers: set[int], device: torch.device) -> Exchange:
    """What carries some of the matrices to their owners, and the results back."""
    made = orthogonalize(torch.zeros(1, 1, 1, device=device)).flatten()
    # What goes in is normalised in float32 first: rounded before, it would not come out as from one process.
    given = made.to(torch.promote_types(made.dtype, torch.float32))
    part = [{number: own[number] for number in numbers} for own in held]
    return Exchange(group, part, lambda whole: flops(*whole), given, made)
