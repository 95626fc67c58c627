"""A thread that notices when a training in several processes stands still, and says for whom it waits.

Every process sees for itself that no step has ended for too long.  The first that does raises an alarm in
the store; each that lives answers with its main thread's stack; who neither answers nor waits in a
collective is at fault.  One of them prints that, and all end, so that the launcher can start them again.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import distributed

from hasten.core.runtime import Runtime
from hasten.core.worker import ERROR_FILE, HUNG, Failure
from hasten.train.agree import Agreement
from hasten.train.stuck import Answer, Heard, stack_of, verdict

STEP = "step"
FLOOR_SECONDS, MARGIN, DECAY = 120.0, 20.0, 0.98
"""A step is stuck after 20 times the longest of the last, after two minutes at least: some compile late."""
UNMEASURED, WARM_STEPS = 3.0, 3
"""So many time-outs are granted to the first steps, and to what is no step: validation, saving."""
LOOK_SECONDS, ANSWER_SECONDS, STORE_SECONDS = 0.5, 1.0, 1.0
PROCESSES_A_SECOND = 2000.0
"""What one store is asked to bear of heartbeats: with more processes each is heard less often."""
ASLEEP_SECONDS = 5.0
"""A watchdog that has not run for so long was itself stopped, with all the rest, as schedulers do."""


@dataclass(frozen=True)
class Beat:
    """The last sign of life of the main thread."""

    step: int  # steps that have ended
    doing: str
    at: float  # by `time.monotonic()`


class Watchdog:
    """Within `with`, `beat(step)` after each step keeps it quiet; a single process is not watched.

    Made by all processes at the same moment.  `runtime.timeout_seconds` is the longest that a step may take.
    """

    def __init__(self, runtime: Runtime, agreement: Agreement) -> None:
        self.rank, self.world_size = runtime.rank, runtime.world_size
        self.timeout_seconds = runtime.timeout_seconds
        # A name of its own: the store may hold the alarm of processes that were here before.
        self.name = agreement.led(uuid.uuid4().hex if agreement.leads else None)
        self.latest = Beat(0, "start", time.monotonic())
        self.longest, self.measured = 0.0, 0
        self.woke = self.latest.at
        self.main = threading.main_thread().ident
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat(self.latest.step, "start")
        self.main = threading.get_ident()
        if self.world_size > 1:
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        if self.world_size > 1:
            self.thread.join(2 * STORE_SECONDS)
            faulthandler.cancel_dump_traceback_later()

    def beat(self, step: int, doing: str = STEP) -> None:
        """So many steps have ended, and this is what comes next."""
        now, before = time.monotonic(), self.latest
        if before.doing == doing == STEP and step != before.step:
            self.longest = max(DECAY * self.longest, now - before.at)
            self.measured += 1
        self.latest = Beat(step, doing, now)

    @property
    def limit_seconds(self) -> float:
        """How long what goes on now may take."""
        if self.latest.doing != STEP or self.measured < WARM_STEPS:
            return UNMEASURED * self.timeout_seconds
        return min(self.timeout_seconds, max(FLOOR_SECONDS, MARGIN * self.longest))

    def silent_seconds(self, now: float) -> float:
        """How long nothing has ended, time that the whole process was stopped not counted."""
        return now - max(self.latest.at, self.woke)

    def watch(self) -> None:
        """Look twice a second, until the training ends or something is stuck."""
        store = self.open_store()
        interval = max(LOOK_SECONDS, self.world_size / PROCESSES_A_SECOND)
        last = time.monotonic()
        while not self.ended.wait(interval):
            now = time.monotonic()
            if now - last > ASLEEP_SECONDS + interval:
                self.woke = now
            last = now
            # Code that keeps Python's lock for ever keeps this thread from running too: C has its own clock.
            faulthandler.dump_traceback_later(self.limit_seconds + ASLEEP_SECONDS, file=2)
            try:
                if self.silent_seconds(now) > self.limit_seconds or self.is_alarmed(store, now):
                    self.give_up(store)
            except RuntimeError:  # the store is gone: the time-out alone decides
                if self.silent_seconds(now) > self.limit_seconds:
                    self.end(self.without_store())

    def open_store(self) -> distributed.Store:
        """A connection of this thread's own: the main thread may be waiting on its."""
        store: Any = distributed.distributed_c10d._get_default_store()
        store = store.clone()
        store.set_timeout(timedelta(seconds=STORE_SECONDS))
        return distributed.PrefixStore(f"watchdog-{self.name}", store)

    def is_alarmed(self, store: distributed.Store, now: float) -> bool:
        """Leave a heartbeat, and see whether some process has raised an alarm."""
        heard = Heard(socket.gethostname(), self.latest.step, self.latest.doing)
        store.set(f"beat/{self.rank}", json.dumps(asdict(heard)))
        return store.check(["alarm"])

    def give_up(self, store: distributed.Store) -> None:
        """Raise the alarm, answer it, let one process tell what all answered, and end."""
        store.set("alarm", str(self.rank))
        store.set(f"answer/{self.rank}", json.dumps(asdict(self.answer())))
        if store.add("tellers", 1) > 1:
            self.end(self.told(store))
        answers = self.collect(store)
        sentence, stacks = verdict(answers, self.heard(store, answers), self.world_size)
        print(f"hasten: {sentence}\n{stacks}", end="", file=sys.stderr, flush=True)
        store.set("verdict", sentence)
        self.end(sentence)

    def told(self, store: distributed.Store) -> str:
        """What the process that collects the answers makes of them, if it lives to tell."""
        until = time.monotonic() + ANSWER_SECONDS + STORE_SECONDS
        while time.monotonic() < until:
            if store.check(["verdict"]):
                return store.get("verdict").decode()
            time.sleep(LOOK_SECONDS / 10)
        return f"rank {self.rank}: nothing moved, and the process that was to say why does not answer either"

    def answer(self) -> Answer:
        """Where this process is."""
        stack, waits = stack_of(self.main)
        seconds = self.silent_seconds(time.monotonic())
        latest = self.latest
        return Answer(self.rank, socket.gethostname(), latest.step, latest.doing, seconds, waits, stack)

    def collect(self, store: distributed.Store) -> list[Answer]:
        """The answers of all that live: who takes longer than a second is taken for dead."""
        until, answers = time.monotonic() + ANSWER_SECONDS, dict[int, Answer]()
        while len(answers) < self.world_size and time.monotonic() < until:
            for rank in set(range(self.world_size)) - answers.keys():
                if store.check([f"answer/{rank}"]):
                    answers[rank] = Answer(**json.loads(store.get(f"answer/{rank}")))
            time.sleep(LOOK_SECONDS / 20)
        return [answers[rank] for rank in sorted(answers)]

    def heard(self, store: distributed.Store, answers: list[Answer]) -> dict[int, Heard | None]:
        """The last heartbeat of each process that did not answer."""
        silent = set(range(self.world_size)) - {answer.rank for answer in answers}
        return {
            rank: Heard(**json.loads(store.get(f"beat/{rank}"))) if store.check([f"beat/{rank}"]) else None
            for rank in sorted(silent)
        }

    def without_store(self) -> str:
        """What can be said where the others cannot be asked."""
        answer = self.answer()
        print("".join(answer.stack), file=sys.stderr, flush=True)
        return (
            f"rank {self.rank} on {answer.host}: no step ended for {answer.seconds:.0f} s, and the process"
            " that holds the store does not answer; it or its machine hangs"
        )

    def end(self, sentence: str) -> None:
        """Leave at once, with the reason where the launcher looks for it."""
        if file := os.environ.get(ERROR_FILE):
            Failure(self.rank, socket.gethostname(), sentence, time=time.time()).write(Path(file))
        os._exit(HUNG)
