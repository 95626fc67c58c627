"""Of several processes that ended badly: which was the first, and what to say of it."""

import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from hasten.core.errors import HastenError, LostContactError
from hasten.core.worker import HUNG, Failure


@dataclass(frozen=True)
class Cause:
    """Why a group of processes ended, told by the one that was at fault."""

    exit_code: int  # negative: of a signal
    sentence: str  # with the rank
    trace: str = ""

    @property
    def mendable(self) -> bool:
        """Whether the user has to change something: starting again would end alike."""
        return self.exit_code == HastenError.exit_code


def root_cause(failures: Mapping[int, ProcessFailure]) -> Cause:
    """The failure of {rank: failure} that the others followed from.

    A process that lost contact or was told to end did so because of another; of equals the earliest.
    """
    told = {rank: Failure.read(failure.error_file_data) for rank, failure in failures.items()}

    def order(rank: int) -> tuple[int, float, int]:
        known = told[rank]
        return blame(failures[rank].exitcode), known.time if known else float(failures[rank].timestamp), rank

    rank = min(failures, key=order)
    known, code = told[rank], failures[rank].exitcode
    if known and code == HUNG:
        return Cause(code, known.sentence, known.trace)  # it speaks of others than itself
    host = known.host if known else socket.gethostname()
    said = f": {known.sentence}" if known else f" {ending(code)}"
    return Cause(code, f"rank {rank} on {host}{said}", known.trace if known else "")


def blame(exit_code: int) -> int:
    """How far an ending is from the beginning of the trouble: 0 is nearest."""
    if exit_code == HastenError.exit_code:
        return 0
    if exit_code == HUNG:
        return 2
    if exit_code == LostContactError.exit_code:
        return 4
    if exit_code == -signal.SIGTERM:  # the agent's word to those that are left
        return 5
    return 1 if exit_code > 0 else 3


def ending(exit_code: int) -> str:
    """How a process ended that could not say so itself, in words."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    remark = " (perhaps the machine's memory was full)" if exit_code == -signal.SIGKILL else ""
    return f"was killed by {name}{remark}"
