"""Untrusted programs, run where they can do no harm: a process of its own for each, and little to touch.

A program sees no network, no file but the interpreter's own, no process but itself; it cannot start another,
and processor time, wall time, memory, threads and open files are limited.  What it prints goes nowhere.
`sandboxed.py` arranges that by what Linux offers to everyone; where a machine withholds part of it, programs
are not run, unless that part is waived by name.

A verdict is about programs that models write.  One that was written against `harness.py` could find the
token that says "passed" in its own process, or return objects that are equal to everything: it does no harm,
and its score means nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import hasten
from hasten.core.config import Config
from hasten.core.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Guard = Literal["network", "files", "processes", "system_calls"]
Kind = Literal["passed", "failed", "error", "exited", "timeout", "memory", "crashed"]
GRACE_SECONDS = 30.0
"""Beyond its time, after which the guard itself is taken for dead."""
MEANS = {
    "network": "the network",
    "files": "the files of this machine",
    "processes": "the other processes",
    "system_calls": "dangerous system calls",
    "user": "the rights of this user",
}


class SandboxConfig(Config):
    """What a program may use before it is ended, and what it is not kept from."""

    cpu_seconds: Positive = 5
    wall_seconds: float = Field(15.0, gt=0, description="for programs that wait")
    memory_mb: Annotated[int, Field(ge=64)] = Field(1024, description="of addresses, the interpreter's too")
    threads: Positive = 16
    open_files: Annotated[int, Field(ge=16)] = 64
    workers: Positive | Literal["auto"] = Field(
        "auto", description="programs at a time; auto: one a processor"
    )
    waive: tuple[Guard, ...] = Field(
        (),
        description="protections to do without where a machine has them not: network, files, processes,"
        " system_calls; only for programs that you trust",
    )


@dataclass(frozen=True)
class Program:
    """A text of Python, and tests: statements to run after it, in its namespace, of which none may raise."""

    text: str
    tests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What came of a program.

    "passed": all tests ran to their end.  "failed": an assertion of a test was false.  "error": another
    exception, in the program or in a test.  "exited": it ended before the tests were through.  "timeout",
    "memory": it came to a limit.  "crashed": a signal ended it.
    """

    kind: Kind
    detail: str = ""
    tests_passed: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether it did what the tests ask."""
        return self.kind == "passed"


def run(
    programs: Sequence[Program],
    config: SandboxConfig | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> list[Verdict]:
    """The verdict on each program; `on_done` is told how many there are by now.

    Raises ConfigError, before any of them runs, where this machine does not give what keeps them in.
    """
    config = config or SandboxConfig()
    check(config)
    verdicts = []
    with ThreadPoolExecutor(processors() if config.workers == "auto" else config.workers) as pool:
        for verdict in pool.map(lambda program: run_one(program, config), programs):
            verdicts.append(verdict)
            on_done(len(verdicts))
    return verdicts


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def check(config: SandboxConfig) -> None:
    """Refuse limits and machines on which the empty program does not pass."""
    if sys.platform != "linux":
        raise ConfigError(f"generated programs run in a sandbox of Linux, and this is {sys.platform}")
    verdict = run_one(Program(""), config)
    if not verdict.passed:
        raise ConfigError(
            f"an empty program does not pass in the sandbox ({verdict.kind}: {verdict.detail}); raise its"
            " memory_mb, cpu_seconds or open_files"
        )


def run_one(program: Program, config: SandboxConfig) -> Verdict:
    """The verdict on one program.  Raises ConfigError where a protection is missing."""
    with tempfile.TemporaryDirectory(prefix="hasten-sandbox-") as root:
        request = {
            **config.model_dump(mode="json"),
            "program": program.text,
            "tests": program.tests,
            "root": root,
            "harness": (Path(__file__).with_name("harness.py")).read_text(encoding="utf-8"),
        }
        verdict = ask(json.dumps(request).encode(), config.wall_seconds + GRACE_SECONDS)
    if verdict["kind"] == "unavailable":
        raise ConfigError(complaint(verdict["guard"], verdict["detail"]))
    return Verdict(**verdict)


def complaint(guard: str, reason: str) -> str:
    """What to say of a protection that this machine does not give; the user's own rights are never waived."""
    waive = "" if guard == "user" else f", or for programs that you trust sandbox.waive=[{guard}]"
    return (
        f"the sandbox cannot keep generated programs from {MEANS[guard]} here ({reason}); it needs Linux 5.12"
        f" or later, and root or namespaces of users{waive}"
    )


def ask(request: bytes, patience: float) -> dict[str, Any]:
    """What `sandboxed.py` answers.  It ends, and all that it started, when its standard input is closed."""
    with started(patience) as process:
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # what it says, or does not, tells why
            process.stdin.write(len(request).to_bytes(8, "big") + request)
            process.stdin.flush()
        answer = process.stdout.read()
    line = answer.splitlines()[0] if answer else b""
    return json.loads(line) if line else {"kind": "crashed", "detail": "the sandbox ended without an answer"}


@contextmanager
def started(patience: float) -> Iterator[subprocess.Popen[bytes]]:
    """The process that watches a program, ended after this block, or after `patience` seconds."""
    with subprocess.Popen(
        command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,  # a Ctrl-C is ours to pass on
    ) as process:
        too_late = threading.Timer(patience, end, [process])
        too_late.daemon = True
        too_late.start()
        try:
            yield process
        finally:
            too_late.cancel()
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Close its standard input, at which the guard goes, and kill what waits for the guard."""
    assert process.stdin is not None
    with suppress(OSError):  # it is gone already
        process.stdin.close()
    process.kill()


def command() -> list[str]:
    """An interpreter outside any virtual environment, which sees this package and the standard library."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    source = str(Path(hasten.__file__).resolve().parent.parent)
    start = f"import sys; sys.path.insert(0, {source!r}); from hasten.evaluate import sandboxed"
    return [interpreter, "-I", "-S", "-B", "-c", f"{start}; sandboxed.main()"]
