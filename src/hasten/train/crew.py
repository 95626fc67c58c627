"""The processes that write one folder together: each does its part, all learn what became of the others'."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from torch import distributed
from torch.distributed import ProcessGroup

from hasten.core.errors import CheckpointError, HastenError
from hasten.core.runtime import in_contact

T = TypeVar("T")
LONGEST = timedelta(hours=2)
"""What the slowest disk may take: a process that writes no more is for the watchdog to find."""


@dataclass
class Outcome:
    """What a process's part of the work came to."""

    value: Any = None
    failure: str | None = None  # in words


class Crew:
    """Processes with a group of their own, so that a thread may use it beside the training; or one alone.

    A failure of one is raised on all of them, with its rank: none waits for what does not come, and none
    takes half a folder for a whole one.  The first process leads.
    """

    def __init__(self, together: bool = False) -> None:
        # Made by all processes of the training at the same moment; over the CPU whatever trains.
        self.group: ProcessGroup | None = None
        if together:
            self.group = distributed.new_group(backend="gloo", timeout=LONGEST)
        self.rank = 0 if self.group is None else distributed.get_rank(self.group)
        self.size = 1 if self.group is None else distributed.get_world_size(self.group)

    @property
    def leads(self) -> bool:
        """Whether this process is the first."""
        return self.rank == 0

    def each(self, work: Callable[[], T]) -> list[T]:
        """Every process does `work`; what they returned, in order of rank, for the first, [] for others."""
        if self.group is None:
            return [work()]
        outcomes: list[Outcome] | None = [Outcome()] * self.size if self.leads else None
        mine, error = attempt(work)
        with in_contact():
            distributed.gather_object(mine, outcomes, dst=0, group=self.group)
        self.settle(first_failure(outcomes or []), error)
        return [outcome.value for outcome in outcomes or []]

    def first(self, work: Callable[[], T]) -> T:
        """The first process does `work`; all get what it returned."""
        if self.group is None:
            return work()
        mine, error = attempt(work) if self.leads else (Outcome(), None)
        return cast(T, self.settle(mine, error).value)

    def settle(self, found: Outcome, error: Exception | None) -> Outcome:
        """What the first process `found`, on all; raised where it is a failure."""
        box = [found]
        with in_contact():
            distributed.broadcast_object_list(box, src=0, group=self.group)
        if error is not None and not isinstance(error, HastenError):
            raise error  # a mistake of ours: with its own traceback
        if box[0].failure is not None:
            raise CheckpointError(box[0].failure) from error
        return box[0]


def attempt(work: Callable[[], Any]) -> tuple[Outcome, Exception | None]:
    """Do `work`; what it came to, and what it raised."""
    try:
        return Outcome(work()), None
    except Exception as error:
        words = str(error) if isinstance(error, HastenError) else f"{type(error).__name__}: {error}"
        return Outcome(failure=f"rank {distributed.get_rank()}: {words}"), error


def first_failure(outcomes: list[Outcome]) -> Outcome:
    """The failure of the lowest rank, or no failure."""
    return next((Outcome(failure=o.failure) for o in outcomes if o.failure is not None), Outcome())
