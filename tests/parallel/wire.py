"""What a process tells the others: every call of torch.distributed, and what a ring of links would carry."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "broadcast_": "broadcast",
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "send": "send",
}
"""Operations that send something; `recv_` and `barrier` do not."""


class Message(NamedTuple):
    """One call: `size` bytes, counted where they are whole, among `processes`."""

    kind: str
    size: int
    processes: int

    @property
    def wire(self) -> Fraction:
        """Bytes that each process sends in a ring: an all-reduce goes around twice."""
        share = Fraction(self.processes - 1, self.processes)
        times = {"all_reduce": 2 * share, "broadcast": Fraction(1), "send": Fraction(1)}
        return times.get(self.kind, share) * self.size


class Wire(TorchDispatchMode):
    """`with Wire() as wire: ...` and then `wire.messages` are what this process took part in."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        if func.namespace == "c10d" and (kind := NAMES.get(func._opname)):
            group = next(arg for arg in args if isinstance(arg, torch.ScriptObject))
            self.messages.append(Message(kind, largest(args), ProcessGroup.unbox(group).size()))
        return func(*args, **(kwargs or {}))


def bytes_of(messages: Iterable[Message]) -> Fraction:
    """What all of them cost each process."""
    return sum((message.wire for message in messages), Fraction(0))


def kinds(messages: Iterable[Message]) -> Counter[str]:
    """How many there are of each kind."""
    return Counter(message.kind for message in messages)


def largest(args: Iterable[Any]) -> int:
    """Bytes of the largest argument: of what is gathered or scattered, the whole."""
    return max(size(arg) for arg in args)


def size(arg: Any) -> int:
    """Bytes of all tensors in it."""
    if isinstance(arg, Tensor):
        return arg.nbytes
    return sum(map(size, arg)) if isinstance(arg, (list, tuple)) else 0
