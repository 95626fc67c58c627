"""Tensors on their way between neighbouring stages of a pipeline.

Every stage gives the one behind it results of forwards, and the one before it those of backwards; behind the
last comes the first, where stages have several chunks.  Each of these ways has a group of its own, so that
what is sent on one never waits for another, and carries its messages in the order in which they are read
(`tests/parallel/test_schedules.py` holds all schedules to that).
"""

from collections import deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup, Work

from hasten.parallel.grid import Grid, lines
from hasten.parallel.schedules import Kind, Op, reader_of, source_of

WINDOW = 2
"""Messages that may be on their way on one of the ways; with fewer a stage would wait for its reader."""
MOST_TENSORS = 2
"""Of a message: a stream, and the memory that a decoder reads."""
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Form(NamedTuple):
    """What a tensor of three dimensions looks like."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Way:
    """From one process to another."""

    def __init__(self, peer: int, group: ProcessGroup, device: torch.device) -> None:
        self.peer, self.group, self.device = peer, group, device
        self.leaving: deque[list[tuple[Work, Tensor]]] = deque()
        self.coming: list[tuple[Work, Tensor]] = []

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors away, which stay as they are until they have arrived."""
        while len(self.leaving) >= WINDOW:
            self.let_go()
        self.leaving.append([(self.isend(tensor), tensor) for tensor in tensors])

    def isend(self, tensor: Tensor) -> Work:
        """One tensor."""
        work = distributed.isend(tensor, self.peer, group=self.group)
        assert work is not None
        return work

    def let_go(self) -> None:
        """Wait until the oldest message has arrived."""
        for work, _ in self.leaving.popleft():
            work.wait()

    def expect(self, forms: Sequence[Form]) -> None:
        """Make room for a message, which may come from now on."""
        for shape, dtype in forms:
            room = torch.empty(shape, dtype=dtype, device=self.device)
            work = distributed.irecv(room, self.peer, group=self.group)
            assert work is not None
            self.coming.append((work, room))

    def take(self) -> list[Tensor]:
        """The message that was expected."""
        coming, self.coming = self.coming, []
        for work, _ in coming:
            work.wait()
        return [room for _, room in coming]


class Mail:
    """What a stage's operations give to those of others, and read of them.

    A `size` is what the shapes of a message depend on, equal on all stages: with the first forward of its
    size a message says what it looks like, and gradients look like what they are gradients of.
    """

    def __init__(self, grid: Grid) -> None:
        self.stage, stages = grid.place["pipeline"], grid.degrees["pipeline"]
        self.chunks, self.device = grid.config.chunks, grid.device
        self.forms = dict[tuple[int, Hashable], list[Form]]()
        self.outward, self.inward = dict[Kind, Way](), dict[Kind, Way]()
        several = grid.config.interleave > 1  # then behind the last stage comes the first
        for stage in range(stages if several else stages - 1):
            self.connect(grid, "forward", stage, (stage + 1) % stages)
            self.connect(grid, "backward", (stage + 1) % stages, stage)

    def connect(self, grid: Grid, kind: Kind, source: int, reader: int) -> None:
        """Open one way in every pipeline.

        A first message settles the connection: NCCL makes one at the first use, for which both ends wait.
        """
        for line in lines(("pipeline",), grid.degrees):
            group = distributed.new_group([line[source], line[reader]], timeout=grid.patience)
            if distributed.get_rank() == line[source]:
                self.outward[kind] = way = Way(line[reader], group, self.device)
                way.send([torch.zeros(1, device=self.device)])
                way.let_go()
            elif distributed.get_rank() == line[reader]:
                self.inward[kind] = way = Way(line[source], group, self.device)
                way.expect([Form((1,), torch.float32)])
                way.take()

    def expect(self, op: Op, size: Hashable) -> None:
        """Let what `op` reads come in while another operation runs, where it is known what it looks like."""
        forms = self.forms.get((border_before(op), size))
        if source_of(op, self.chunks) and forms:
            self.inward[op.kind].expect(forms)

    def receive(self, op: Op, size: Hashable) -> list[Tensor]:
        """What `op` reads of another stage; empty where that is nothing."""
        if not source_of(op, self.chunks):
            return []
        way, key = self.inward[op.kind], (border_before(op), size)
        if not way.coming:
            if key not in self.forms:
                way.expect([Form((MOST_TENSORS, 4), torch.int64)])
                self.forms[key] = read_forms(way.take()[0])
            way.expect(self.forms[key])
        return way.take()

    def send(self, op: Op, size: Hashable, tensors: Sequence[Tensor]) -> None:
        """Give what `op` has made to whoever reads it."""
        if not reader_of(op, self.chunks):
            return
        way, key = self.outward[op.kind], (border_behind(op), size)
        if key not in self.forms:
            self.forms[key] = [Form(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
            way.send([written(self.forms[key]).to(self.device)])
        way.send([tensor.detach().contiguous() for tensor in tensors])

    def finish(self) -> None:
        """Wait until all that was sent has arrived."""
        for way in self.outward.values():
            while way.leaving:
                way.let_go()


def border_before(op: Op) -> int:
    """Across which border between chunks comes what `op` reads: border c lies before chunk c."""
    return op.chunk if op.kind == "forward" else op.chunk + 1


def border_behind(op: Op) -> int:
    """Across which border goes what `op` makes."""
    return op.chunk + 1 if op.kind == "forward" else op.chunk


def written(forms: Sequence[Form]) -> Tensor:
    """Forms as numbers, int64 [MOST_TENSORS, 4]: a type and three sizes each; a type of -1 is none."""
    rows = [[TYPES.index(dtype), *shape] for shape, dtype in forms]
    return torch.tensor(rows + [[-1, 0, 0, 0]] * (MOST_TENSORS - len(rows)))


def read_forms(numbers: Tensor) -> list[Form]:
    """The reverse of `written`."""
    return [Form(tuple(shape), TYPES[kind]) for kind, *shape in numbers.tolist() if kind >= 0]
