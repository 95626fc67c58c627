"""What goes wrong in the processes of a training: Python imports this where PYTHONPATH names the folder.

HASTEN_FAULTS is a JSON list of {rank, step, act}, and `once`, a file that keeps a fault from coming again:
kill (SIGKILL), launcher (SIGKILL to what started it), term (SIGTERM), nan (the loss of that rank), raise,
sleep.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any


def mine() -> list[dict[str, Any]]:
    """The faults of this process: none in the launcher."""
    faults = json.loads(os.environ.get("HASTEN_FAULTS", "[]")) if "RANK" in os.environ else []
    return [fault for fault in faults if fault["rank"] == int(os.environ["RANK"])]


def act(fault: dict[str, Any]) -> None:
    """Do what a fault says."""
    if "once" in fault:
        Path(fault["once"]).touch()
    match fault["act"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "launcher":  # the whole machine, as far as the others see
            os.kill(int(os.environ["HASTEN_LAUNCHER"]), signal.SIGKILL)
            time.sleep(600)
        case "raise":
            raise ArithmeticError("two and two")
        case "sleep":
            time.sleep(600)


def install(faults: list[dict[str, Any]]) -> None:
    """Put the faults in the way of the loop's steps."""
    from hasten.objective.cross_entropy import CrossEntropy
    from hasten.train.run import Run

    advance, loss, poisoned = Run.advance, CrossEntropy.loss, list[bool]()

    def spoilt_advance(run: Any, moment: Any) -> None:
        poisoned.clear()
        for fault in faults:
            if run.state.step + 1 == fault["step"] and not Path(fault.get("once", "/none")).exists():
                poisoned.extend([True] * (fault["act"] == "nan"))
                act(fault)
        advance(run, moment)

    def spoilt_loss(*arguments: Any, **options: Any) -> Any:
        value = loss(*arguments, **options)
        return value * float("nan") if poisoned else value

    Run.advance, CrossEntropy.loss = spoilt_advance, spoilt_loss  # type: ignore[method-assign]


if found := mine():
    install(found)
