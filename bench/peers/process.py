"""The comparison's side of a worker: start it, give it turns, see what it cost."""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from peers.machine import busy_seconds, family, family_peak_bytes, family_seconds, memory

BENCH = Path(__file__).parents[1]
PATIENCE = 900.0
"""Seconds for an answer, a cold compilation on a busy machine included."""


class WorkerError(Exception):
    """A worker that cannot go on, with its last words."""


class MissingError(WorkerError):
    """A worker whose packages are not there."""


class Worker:
    """A system in a process of its own, idle but in its turns.

    It starts with a fresh folder for caches, so that the first step shows what compiling costs.
    """

    def __init__(
        self,
        family: str,
        shape: str,
        options: Mapping[str, Any],
        *,
        python: str,
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.started, self.folder = time.perf_counter(), folder
        folder.mkdir()
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        with (folder / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                [python, "-m", "peers.worker", family, shape, json.dumps(options)],
                cwd=BENCH,
                env={**environment, **caches},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )
        self.unread, self.idle_wall, self.idle_seconds = b"", 0.0, 0.0
        self.ended, self.used = 0.0, 0.0  # at the end of its last turn
        self.hello = self.answer()
        self.hello |= self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that it says."""
        end = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            assert self.process.stdout is not None
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.unread:
                if not selector.select(end - time.monotonic()):
                    raise WorkerError(f"no answer within {PATIENCE:.0f} s")
                piece = os.read(self.process.stdout.fileno(), 65_536)
                if not piece:
                    raise WorkerError(self.last_words())
                self.unread += piece
        line, _, self.unread = self.unread.partition(b"\n")
        said = dict(json.loads(line))
        if "missing" in said:
            raise MissingError(said["missing"])
        return said

    def last_words(self) -> str:
        """The last line of its stderr."""
        text = (self.folder / "stderr").read_text(encoding="utf-8", errors="replace").strip()
        return text.rpartition("\n")[2][-300:] or "it ended without a word"

    def turn(self, steps: int = 1) -> dict[str, Any]:
        """`steps` steps: the answer, and the cores that everybody else used meanwhile."""
        assert self.process.stdin is not None
        began, busy, own = time.perf_counter(), busy_seconds(), family_seconds(self.process.pid)
        if self.ended:
            self.idle_wall += began - self.ended
            self.idle_seconds += own - self.used
        try:
            self.process.stdin.write(f"{steps}\n".encode())
        except BrokenPipeError:
            raise WorkerError(self.last_words()) from None
        said = self.answer()
        self.ended, self.used = time.perf_counter(), family_seconds(self.process.pid)
        seconds, others = self.ended - began, busy_seconds() - busy - (self.used - own)
        if said["updates"] != steps:
            raise WorkerError(f"{said['updates']} updates in a turn of {steps} steps")
        return {**said, "others": round(max(0.0, others / seconds), 3)}

    def costs(self) -> dict[str, float]:
        """The most memory that the process ever held, alone and with its children; cores while idle."""
        return {
            "peak_bytes": memory(self.process.pid)["VmHWM"],
            "tree_peak_bytes": family_peak_bytes(self.process.pid),
            "idle_cores": self.idle_seconds / self.idle_wall if self.idle_wall else 0.0,
        }

    def stop(self) -> None:
        """End it and everything that it started."""
        assert self.process.stdin is not None
        everybody = family(self.process.pid)
        self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in everybody:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()
