"""One process of several: which of them speaks, and how a failure reaches whoever started them.

Nothing here needs torch, so that the command line can use it before anything large is loaded.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.core.errors import HastenError

LAUNCHER = "HASTEN_LAUNCHER"
"""Set by `hasten` for the processes that it starts: its own process id."""
STARTED = "HASTEN_STARTED"
"""Set by it too: when the run's clock began, in seconds of `time.monotonic()`."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where the elastic agent looks for what ended a process."""
PR_SET_PDEATHSIG = 1
"""Linux's prctl(2)."""
FAILED, HUNG = 1, 76
"""Exit codes: an exception that nobody foresaw; stopped by the watchdog.  Those of errors are with them."""


@dataclass(frozen=True)
class Failure:
    """What ended a process, as it says so itself."""

    rank: int
    host: str
    sentence: str
    trace: str = ""  # of an exception that nobody foresaw
    time: float = 0.0  # seconds since 1970

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """What `error` comes to on this process."""
        foreseen = isinstance(error, HastenError)
        sentence = str(error) if foreseen else traceback.format_exception_only(error)[-1].strip()
        trace = "" if foreseen else "".join(traceback.format_exception(error))
        return cls(rank() or 0, socket.gethostname(), sentence, trace, time.time())

    @classmethod
    def read(cls, data: dict[str, Any]) -> "Failure | None":
        """What `write` left, or None where something else did."""
        fields = data.get("hasten")
        return cls(**fields) if isinstance(fields, dict) else None

    def write(self, path: Path) -> None:
        """Leave it where the agent looks, whole or not at all, in the form that the agent knows."""
        extra = {"py_callstack": self.trace or self.sentence, "timestamp": str(int(self.time))}
        data = {"message": {"message": self.sentence, "extraInfo": extra}, "hasten": asdict(self)}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(data), encoding="utf-8")
        os.replace(temporary, path)


def rank() -> int | None:
    """This process's number among several; None where it is alone."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def is_started_by_hasten() -> bool:
    """Whether another `hasten` started this process and will say what becomes of it."""
    return LAUNCHER in os.environ and "RANK" in os.environ


def clock_began(here: float) -> float:
    """When the run's clock began: with the launcher for its first processes, `here` for those started again.

    A resumed run counts the seconds before by itself.
    """
    first = is_started_by_hasten() and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    return float(os.environ.get(STARTED, here)) if first else here


def die_with_launcher() -> None:
    """Let the kernel end this process when its launcher is killed: two of them would write one run's folder.

    Nothing is lost by it but what was not saved: checkpoints are whole or absent.
    """
    if not is_started_by_hasten():
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ[LAUNCHER]):  # it was killed before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def hush() -> None:
    """What all processes say on standard output is said once, by rank 0."""
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def tell(error: BaseException) -> int:
    """Tell in one sentence what ended this process, and the rank where there are several; the exit code.

    Goes into a file for the `hasten` that started it, which chooses whose failure came first; else to
    standard error.
    """
    failure, file = Failure.of(error), os.environ.get(ERROR_FILE)
    if file:
        failure.write(Path(file))
    if not (file and is_started_by_hasten()):
        where = "" if rank() is None else f"rank {failure.rank}: "
        print(f"{failure.trace}hasten: {where}{failure.sentence}", file=sys.stderr)
    return error.exit_code if isinstance(error, HastenError) else FAILED
