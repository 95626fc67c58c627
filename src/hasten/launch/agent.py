"""The elastic agent of torchrun, made to save before it stops, to speak once, and to know when to give up."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs

from hasten.core.console import say
from hasten.launch.causes import Cause, root_cause

ENDLESS = 10**9
"""Restarts that torch's own count allows: ours starts again with every new checkpoint."""
END_SECONDS = 3600
"""A machine whose processes have ended waits so long for the others: the last checkpoint takes its time."""
STORE_AT = "hasten/store"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Agent(LocalElasticAgent):
    """Starts the workers of this machine and starts all again when one of them fails.

    A signal is passed on to the workers, which save and end by themselves, however long that takes: torch's
    agent kills them after 30 s.  `progress` is any value that changes when something new was saved; after
    `restarts` in a row without that, `cause` says why it ended.
    """

    def __init__(
        self, spec: WorkerSpec, logs: LogsSpecs, *, restarts: int, progress: Callable[[], object]
    ) -> None:
        super().__init__(spec, logs, exit_barrier_timeout=END_SECONDS)
        self.address = spec.local_addr
        self.server: TCPStore | None = None  # of the workers that run now
        self.limit, self.progress = restarts, progress
        self.fruitless, self.saved = 0, progress()
        self.running, self.stopping = False, False
        self.cause: Cause | None = None

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Meet the other machines, and give the workers an empty store to meet in.

        torch's agent would give them the store of their predecessors, where the addresses of the dead still
        are, and would not tell a machine that takes another's place where that store is.
        """
        super()._rendezvous(worker_group)
        met = worker_group.store  # of this round alone
        assert met is not None and self.address is not None
        if worker_group.group_rank == 0:
            self.server = TCPStore(self.address, 0, is_master=True, wait_for_workers=False)
            met.set(STORE_AT, f"{self.address}:{self.server.port}")
        host, _, port = met.get(STORE_AT).decode().rpartition(":")
        worker_group.master_addr, worker_group.master_port = host, int(port)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start them and take the signals back, which torch's agent answers in its own way."""
        started = super()._start_workers(worker_group)
        self.running = True
        for number in SIGNALS:
            signal.signal(number, self.pass_on)
        return started

    def _stop_workers(self, worker_group: WorkerGroup, *arguments: Any, **options: Any) -> None:
        self.running = False
        super()._stop_workers(worker_group, *arguments, **options)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """How they are; a failure is judged before torch's agent acts on it."""
        if any(map(has_ended, self.pids())):
            self.wake()
        result = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY) and result.failures:
            self.judge(root_cause(result.failures))
        return result

    def pids(self) -> list[int]:
        """The process ids of the workers of this machine."""
        return list(self._pcontext.pids().values()) if self._pcontext is not None else []

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Ask the workers to save and end; where there are none just now, end at once."""
        self.stopping = True
        if not self.running:
            raise KeyboardInterrupt
        self.send(signal.SIGTERM if number == signal.SIGHUP else number)

    def send(self, number: int) -> None:
        """A signal to each worker that is left."""
        for pid in self.pids():
            if not has_ended(pid):
                os.kill(pid, number)

    def wake(self) -> None:
        """One that is stopped (SIGSTOP, a debugger) would not hear that it is to end."""
        self.send(signal.SIGCONT)

    def judge(self, cause: Cause) -> None:
        """Decide whether to start again, and say what happened."""
        saved = self.progress()
        self.fruitless = self.fruitless + 1 if saved == self.saved else 1
        self.saved = saved
        if cause.trace:
            print(cause.trace, file=sys.stderr, end="", flush=True)
        if self.stopping or cause.mendable or self.fruitless > self.limit:
            self.cause, self._remaining_restarts = cause, 0
            return
        say(f"{cause.sentence}; all processes start again from the last checkpoint")


def has_ended(pid: int) -> bool:
    """Whether a child has ended; who waits for it can still do so."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
