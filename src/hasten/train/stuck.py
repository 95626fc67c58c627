"""Which of several processes the others wait for, judged by what each says of itself."""

import re
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

TORCH = str(Path(torch.__file__).parent)
DISTRIBUTED = str(Path(torch.__file__).parent / "distributed")
WAITING = re.compile(r"\.wait\(|\.synchronize\(|\.item\(|\bbool\(")
"""A line of ours that may wait for a collective with nothing of Python's below it: in C++, or on a GPU."""
SHOWN = 4
"""Stacks of processes that all wait for each other; more say no more."""


@dataclass(frozen=True)
class Heard:
    """The last that was heard of a process."""

    host: str
    step: int  # that have ended
    doing: str


@dataclass(frozen=True)
class Answer:
    """Where a process is that answers."""

    rank: int
    host: str
    step: int
    doing: str
    seconds: float  # since something ended
    waits: bool  # for the other processes
    stack: list[str]  # of its main thread, outermost first


def stack_of(thread: int | None) -> tuple[list[str], bool]:
    """A thread's stack, as a traceback writes it, and whether the process waits in a collective."""
    frames = sys._current_frames()
    watchdog = threading.get_ident()
    stacks = {ident: traceback.extract_stack(frame) for ident, frame in frames.items() if ident != watchdog}
    main = stacks.get(thread or 0, traceback.StackSummary())
    # A backward pass on a GPU runs in threads of torch's, and the collectives of its hooks with it.
    backward = bool(main) and main[-1].name == "_engine_run_backward"
    waits = in_collective(main) or (backward and any(map(in_collective, stacks.values())))
    return main.format(), waits


def in_collective(stack: Sequence[traceback.FrameSummary]) -> bool:
    """Whether what was called last, seen from the last line that is not torch's, is a collective."""
    for frame in reversed(stack):
        if frame.filename.startswith(DISTRIBUTED):
            return True
        if not frame.filename.startswith(TORCH):
            innermost = frame is stack[-1]
            return innermost and bool(WAITING.search(frame.line or ""))
    return False


def verdict(
    answers: Sequence[Answer], silent: Mapping[int, Heard | None], world_size: int
) -> tuple[str, str]:
    """One sentence that names the processes at fault, and the stacks that show it.

    At fault are those that do not answer and those that answer and do not wait; where all wait, those that
    took the fewest steps; where these are all, their collectives do not match.
    """
    seconds = max((answer.seconds for answer in answers), default=0.0)
    begin = f"nothing moved for {seconds:,.0f} s: "
    busy = [answer for answer in answers if not answer.waits]
    parts = [gone(rank, heard) for rank, heard in silent.items()]
    parts += [f"{place(answer)} does not wait for the others" for answer in busy]
    if parts:
        rest = world_size - len(parts)
        waiting = f"; the other{'s wait' if rest > 1 else ' waits'}" if rest else ""
        return begin + ", ".join(parts) + waiting, stacks(busy or answers[:1])
    fewest = min(answer.step for answer in answers)
    behind = [answer for answer in answers if answer.step == fewest]
    if len(behind) < len(answers):
        return begin + ", ".join(f"{place(answer)} is behind" for answer in behind), stacks(behind)
    return begin + f"all {world_size} processes wait, and not for the same", stacks(different(answers))


def gone(rank: int, heard: Heard | None) -> str:
    """A process that does not answer, in words."""
    known = f" on {heard.host}, in step {heard.step + 1:,} ({heard.doing})," if heard else ""
    return f"rank {rank}{known} does not answer"


def place(answer: Answer) -> str:
    """`rank 1 on host-b, in step 12 (step),`."""
    return f"rank {answer.rank} on {answer.host}, in step {answer.step + 1:,} ({answer.doing}),"


def different(answers: Sequence[Answer]) -> list[Answer]:
    """One process for each innermost line that some are at."""
    return list({answer.stack[-1] if answer.stack else "": answer for answer in answers}.values())


def stacks(answers: Sequence[Answer]) -> str:
    """What each was doing, the innermost call last."""
    return "".join(
        f"rank {answer.rank} on {answer.host} is here:\n{''.join(answer.stack)}" for answer in answers[:SHOWN]
    )
