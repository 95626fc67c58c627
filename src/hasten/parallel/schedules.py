"""Pipeline schedules as programs of operations, and their exact simulation.

Stage i of p runs its own list of operations in order.  A forward of a micro-batch needs that of the chunk
before, a backward that of the chunk after.  With interleaving stage i has the chunks i, p + i, 2p + i, ...
(Narayanan et al. 2021).  Times may be integers, so that bubbles come out exactly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from hasten.core.errors import ConfigError
from hasten.parallel.config import Order

Kind = Literal["forward", "backward"]
Time = float | int | Fraction


class Op(NamedTuple):
    """One operation: which way, which micro-batch, which chunk of all p x v."""

    kind: Kind
    micro_batch: int
    chunk: int


@dataclass(frozen=True)
class Span:
    """An operation with its time."""

    op: Op
    start: Time
    end: Time


@dataclass(frozen=True)
class Timeline:
    """What every stage did when."""

    stages: list[list[Span]]
    micro_batches: int
    interleave: int

    @property
    def makespan(self) -> Time:
        """From the first operation's start to the last one's end."""
        return max(spans[-1].end for spans in self.stages)

    def busy(self, stage: int) -> Time:
        """Time in which a stage computes."""
        return sum((span.end - span.start for span in self.stages[stage]), 0)

    @property
    def bubble(self) -> Time:
        """Idle time of the busiest stage as a share of its work; a Fraction where times are integers."""
        work = max(self.busy(stage) for stage in range(len(self.stages)))
        idle = self.makespan - work
        return Fraction(idle, work) if isinstance(idle, int) and isinstance(work, int) else idle / work

    def peak_in_flight(self, stage: int) -> int:
        """The most forwards of a stage's chunks whose backward is still to come."""
        held = most = 0
        for span in self.stages[stage]:
            held += 1 if span.op.kind == "forward" else -1
            most = max(most, held)
        return most


class DeadlockError(ConfigError):
    """A schedule in which every unfinished stage waits for another."""


def program(order: Order, stages: int, micro_batches: int, interleave: int = 1) -> list[list[Op]]:
    """The operations of every stage, in order."""
    if stages < 1 or micro_batches < 1 or interleave < 1:
        raise ConfigError("a pipeline needs a stage, a micro-batch and a chunk at least; write 1 or more")
    if interleave > 1 or order == "interleaved":
        if micro_batches % stages:
            raise ConfigError(
                f"an interleaved pipeline of {stages} takes a multiple of {stages} micro-batches, not"
                f" {micro_batches}; change the batch, or write interleave=1"
            )
        return [interleaved(stage, stages, micro_batches, interleave) for stage in range(stages)]
    write = gpipe if order == "gpipe" else one_forward_one_backward
    return [write(stage, stages, micro_batches) for stage in range(stages)]


def source_of(op: Op, chunks: int) -> Op | None:
    """The operation whose result this one reads, of `chunks` chunks in all; None for what reads none."""
    chunk = op.chunk + (-1 if op.kind == "forward" else 1)
    return op._replace(chunk=chunk) if 0 <= chunk < chunks else None


def reader_of(op: Op, chunks: int) -> Op | None:
    """The operation that reads the result of this one."""
    chunk = op.chunk + (1 if op.kind == "forward" else -1)
    return op._replace(chunk=chunk) if 0 <= chunk < chunks else None


def gpipe(stage: int, stages: int, micro_batches: int) -> list[Op]:
    """All forwards, then all backwards (Huang et al. 2019)."""
    del stages
    forward = [Op("forward", micro, stage) for micro in range(micro_batches)]
    return [*forward, *(Op("backward", micro, stage) for micro in range(micro_batches))]


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Op]:
    """Forwards until the first backward can come, then one of each in turn (PipeDream-Flush)."""
    forward = [Op("forward", micro, stage) for micro in range(micro_batches)]
    backward = [Op("backward", micro, stage) for micro in range(micro_batches)]
    return in_turn(forward, backward, warm_up=stages - 1 - stage)


def interleaved(stage: int, stages: int, micro_batches: int, interleave: int) -> list[Op]:
    """1F1B over `interleave` chunks a stage: p micro-batches through each chunk in turn."""
    steps, round_ = micro_batches * interleave, stages * interleave

    def at(step: int, kind: Kind) -> Op:
        group, place = divmod(step, round_)
        chunk = place // stages if kind == "forward" else interleave - 1 - place // stages
        return Op(kind, group * stages + place % stages, chunk * stages + stage)

    forward = [at(step, "forward") for step in range(steps)]
    backward = [at(step, "backward") for step in range(steps)]
    ahead = stages - 1 - stage
    return in_turn(forward, backward, warm_up=ahead if interleave == 1 else 2 * ahead + round_ - stages)


def forwards(stage: int, stages: int, micro_batches: int, interleave: int = 1) -> list[Op]:
    """What a stage runs where nothing is learned: up to p micro-batches through each chunk in turn."""
    rounds = [range(at, min(at + stages, micro_batches)) for at in range(0, micro_batches, stages)]
    return [
        Op("forward", micro, place * stages + stage)
        for round_ in rounds
        for place in range(interleave)
        for micro in round_
    ]


def in_turn(forward: list[Op], backward: list[Op], warm_up: int) -> list[Op]:
    """`warm_up` forwards, then one forward and one backward in turn, then what backwards are left."""
    warm_up = min(warm_up, len(forward))
    pairs = zip(forward[warm_up:], backward, strict=False)
    middle = [op for pair in pairs for op in pair]
    return [*forward[:warm_up], *middle, *backward[len(forward) - warm_up :]]


def simulate(
    stages: Sequence[Sequence[Op]],
    duration: Callable[[Op], Time],
    *,
    transfer: Time = 0,
    channel: int | None = None,
) -> Timeline:
    """Run the programs.  `channel`: results that may wait unread before their sender must; None: any number.

    One stage gives another all results of one kind through one channel, whichever chunk they are of.

    Raises `DeadlockError` where no stage can go on.
    """
    run = Simulation(stages, duration, transfer, channel)
    while run.unfinished():
        ran = sum(run.advance(stage) for stage in range(len(stages)))
        if not ran:
            waiting = ", ".join(f"stage {s} for {stages[s][run.place[s]]}" for s in run.unfinished())
            raise DeadlockError(f"the schedule deadlocks: {waiting}; change the order, or use wider channels")
    forwards = [op for program in stages for op in program if op.kind == "forward"]
    micro_batches = 1 + max(op.micro_batch for op in forwards)
    chunks = 1 + max(op.chunk for op in forwards)
    return Timeline(run.spans, micro_batches, chunks // len(stages))


@dataclass
class Simulation:
    """The state between two operations."""

    programs: Sequence[Sequence[Op]]
    duration: Callable[[Op], Time]
    transfer: Time
    channel: int | None
    place: list[int] = field(init=False)
    free: list[Time] = field(init=False)
    begun: list[Time | None] = field(init=False)
    spans: list[list[Span]] = field(init=False)
    ends: dict[Op, Time] = field(default_factory=dict)
    taken: dict[tuple[Kind, int], list[Time]] = field(default_factory=dict)
    sent: dict[tuple[Kind, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.programs)
        self.place, self.free, self.spans = [0] * count, [0] * count, [[] for _ in range(count)]
        self.begun = [None] * count
        self.chunks = 1 + max(op.chunk for program in self.programs for op in program)

    def unfinished(self) -> list[int]:
        """Stages with operations left."""
        return [stage for stage, ops in enumerate(self.programs) if self.place[stage] < len(ops)]

    def sender(self, op: Op) -> tuple[Kind, int]:
        """The channel into which the result of `op` goes: its kind, and the stage it comes from."""
        return op.kind, op.chunk % len(self.programs)

    def advance(self, stage: int) -> bool:
        """Run what a stage can run now; whether it was anything."""
        ran = False
        while self.place[stage] < len(self.programs[stage]):
            op = self.programs[stage][self.place[stage]]
            if self.begun[stage] is None:
                if not self.can_begin(op):
                    return ran
                self.begin(stage, op)
                ran = True
            room = self.room(op)
            if room is None:
                return ran
            self.finish(stage, op, room)
            ran = True
        return ran

    def can_begin(self, op: Op) -> bool:
        """Whether what an operation reads has been made."""
        source = source_of(op, self.chunks)
        lacks_own = op.kind == "backward" and op._replace(kind="forward") not in self.ends
        return not lacks_own and (source is None or source in self.ends)

    def begin(self, stage: int, op: Op) -> None:
        """Take what an operation reads out of its channel, and start."""
        source = source_of(op, self.chunks)
        arrived = self.ends[source] + self.transfer if source else 0
        start = max(self.free[stage], arrived)
        if source:
            self.taken.setdefault(self.sender(source), []).append(start)
        self.begun[stage] = start

    def room(self, op: Op) -> Time | None:
        """When there is room for the result of `op`, None where that is not known yet."""
        key = self.sender(op)
        before = -1 if self.channel is None else self.sent.get(key, 0) - self.channel
        if before < 0 or reader_of(op, self.chunks) is None:
            return 0
        reads = self.taken.get(key, [])
        return reads[before] if before < len(reads) else None

    def finish(self, stage: int, op: Op, room: Time) -> None:
        """Note an operation; with a full channel its stage waits before it gives the result away."""
        start = self.begun[stage]
        assert start is not None
        end = start + self.duration(op)
        self.spans[stage].append(Span(op, start, end))
        self.ends[op] = self.free[stage] = max(end, room)
        if reader_of(op, self.chunks) is not None:
            self.sent[self.sender(op)] = self.sent.get(self.sender(op), 0) + 1
        self.begun[stage] = None
        self.place[stage] += 1


def bubble_share(order: Order, stages: int, micro_batches: int, interleave: int = 1) -> Fraction:
    """Idle time over work where all stages are equal: (p - 1) / (v m)."""
    del order  # GPipe and 1F1B differ in memory only
    return Fraction(stages - 1, interleave * micro_batches)


@lru_cache(maxsize=4096)
def split_layers(layers: int, chunks: int, head: float) -> tuple[int, ...]:
    """Layers of each chunk, so that the dearest costs least; the last also has a head worth `head` layers.

    Of equally good splits the evenest is taken, so that what divides is divided.
    """
    if chunks == 1:
        return (layers,)
    if chunks > layers:  # the ends, with embedding and head, may go without a layer
        empty = chunks - layers
        return (*[0] * (empty // 2), *[1] * layers, *[0] * (empty - empty // 2))
    tries = []
    for last in range(layers - chunks + 2):
        widest = -(-(layers - last) // (chunks - 1))
        tries.append((max(widest, last + head), abs(last - layers / chunks), last))
    last = min(tries)[2]
    each, more = divmod(layers - last, chunks - 1)
    return (*(each + (place < more) for place in range(chunks - 1)), last)
