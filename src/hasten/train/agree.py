"""What ranks must decide alike: clocks and signals differ between processes, steps may not."""

from typing import TypeVar

import torch
from torch import distributed

from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime

T = TypeVar("T")


class Agreement:
    """A group beside that of the gradients, over the CPU, so that agreeing does not wait for a GPU."""

    def __init__(self, runtime: Runtime) -> None:
        self.leads = runtime.rank == 0
        self.group = None
        if runtime.group is not None:
            self.group = distributed.new_group(backend="gloo", timeout=runtime.patience)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on some rank."""
        if self.group is None:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self.group)
        return bool(flags)

    def led(self, value: T | None) -> T:
        """Rank 0's value, on every rank."""
        if self.group is None:
            assert value is not None
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self.group)
        assert box[0] is not None
        return box[0]

    def gathered(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """Every rank's values, one after the other."""
        if self.group is None:
            return values
        boxes: list[tuple[str, ...]] = [()] * distributed.get_world_size(self.group)
        distributed.all_gather_object(boxes, values, group=self.group)
        return tuple(value for box in boxes for value in box)

    def same(self, value: str, what: str) -> None:
        """Refuse to go on where processes hold different values: machines may have been given other files.

        Raises ConfigError, on every rank, that names the first rank unlike rank 0; `what` is the value.
        """
        values = self.gathered((value,))
        other = next((rank for rank, theirs in enumerate(values) if theirs != values[0]), None)
        if other is not None:
            raise ConfigError(
                f"{what} of rank {other} is not that of rank 0; give all machines the same recipe, overrides"
                " and sources"
            )
