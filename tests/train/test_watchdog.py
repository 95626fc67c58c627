"""A training that stands still: noticed in time, the right process named, all ended."""

import os
import re
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from hasten.core.runtime import Runtime
from hasten.core.worker import HUNG
from hasten.train import stuck
from hasten.train.agree import Agreement
from hasten.train.stuck import Answer, Heard, in_collective, stack_of, verdict
from hasten.train.watchdog import FLOOR_SECONDS, MARGIN, UNMEASURED, Watchdog

PROGRAM = Path(__file__).with_name("hang.py")
ALONE = Runtime(torch.device("cpu"), timeout_seconds=600.0)


class Group:
    """The processes of `hang.py`, with the store where the launcher has it: in a process of its own."""

    def __init__(self, *roles: str) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "GLOO_SOCKET_IFNAME": "lo",
            "WORLD_SIZE": str(len(roles)),
            "OMP_NUM_THREADS": "1",
        }
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), *roles],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(len(roles))
        ]

    def end(self, living: list[int]) -> str:
        """What all said, once those that live have ended; the others are killed."""
        try:
            codes = {rank: self.processes[rank].wait(timeout=120) for rank in living}
        finally:
            for process in self.processes:
                process.kill()
        assert set(codes.values()) == {HUNG}
        return "".join(process.communicate()[1] for process in self.processes)


@pytest.mark.slow
def test_the_processes_that_do_not_wait_and_those_that_do_not_answer_are_named_with_their_stack():
    said = Group("wait", "sleep", "stop").end([0, 1])
    assert said.count("hasten: ") == 1, "one process speaks"
    (sentence,) = (line for line in said.splitlines() if line.startswith("hasten: "))
    assert re.search(r"rank 2 on \S+, in step 6 \(step\), does not answer", sentence)
    assert re.search(r"rank 1 on \S+, in step 6 \(step\), does not wait for the others", sentence)
    assert sentence.endswith("; the other waits") and "rank 0" not in sentence
    assert "time.sleep(120)" in said and "rank 1 on" in said and "distributed.all_reduce" not in said
    (seconds,) = re.findall(r"nothing moved for (\d+) s", sentence)
    assert 2 <= int(seconds) <= 4, "within the time-out and two seconds"


@pytest.mark.slow
def test_processes_that_wait_for_different_things_are_shown_with_both():
    said = Group("wait", "other").end([0, 1])
    assert re.search(r"hasten: nothing moved for \d+ s: all 2 processes wait, and not for the same", said)
    assert "distributed.recv(ones" in said and "distributed.all_reduce(ones" in said


def answer(rank: int, *, step: int = 7, waits: bool = True, stack: tuple[str, ...] = ("line\n",)) -> Answer:
    return Answer(rank, f"host-{rank}", step, "step", 61.4, waits, list(stack))


def test_silence_is_told_with_what_was_heard_last():
    sentence, stacks = verdict([answer(0), answer(2)], {1: Heard("far", 1233, "validation"), 3: None}, 4)
    assert sentence == (
        "nothing moved for 61 s: rank 1 on far, in step 1,234 (validation), does not answer,"
        " rank 3 does not answer; the others wait"
    )
    assert stacks == "rank 0 on host-0 is here:\nline\n"


def test_where_all_wait_alike_their_collectives_are_shown_once_each():
    answers = [answer(0, stack=("a\n",)), answer(1, stack=("b\n",)), answer(2, stack=("a\n",))]
    sentence, stacks = verdict(answers, {}, 3)
    assert sentence == "nothing moved for 61 s: all 3 processes wait, and not for the same"
    assert stacks.count("a\n") == stacks.count("b\n") == 1


def test_of_processes_that_all_wait_those_with_the_fewest_steps_are_behind():
    sentence, stacks = verdict([answer(0), answer(1, step=6), answer(2)], {}, 3)
    assert sentence == "nothing moved for 61 s: rank 1 on host-1, in step 7 (step), is behind"
    assert stacks == "rank 1 on host-1 is here:\nline\n"


TORCH, DISTRIBUTED = stuck.TORCH, stuck.DISTRIBUTED
STACKS = {
    "a collective": ([("run.py", "x()"), (f"{DISTRIBUTED}/distributed_c10d.py", "work.wait()")], True),
    "a hook's collective": (
        [
            ("run.py", "loss.backward()"),
            (f"{TORCH}/_tensor.py", "b()"),
            (f"{DISTRIBUTED}/fsdp/hook.py", "w()"),
        ],
        True,
    ),
    "our own wait": ([("run.py", "x()"), ("ring.py", "request.wait()")], True),
    "a GPU": ([("run.py", "finite = bool(taken.outcome.finite)")], True),
    "a product": ([("run.py", "x()"), (f"{TORCH}/nn/linear.py", "return F.linear()")], False),
    "a product after a collective's wrapper": (
        [(f"{DISTRIBUTED}/x.py", "f()"), ("model.py", "y()"), (f"{TORCH}/nn/linear.py", "F.linear()")],
        False,
    ),
    "data": ([("prefetch.py", "queue.get()"), ("/usr/lib/python3/threading.py", "waiter.acquire()")], False),
    "nothing": ([], False),
}


@pytest.mark.parametrize("frames, waits", STACKS.values(), ids=STACKS)
def test_who_waits_is_read_off_the_stack(frames, waits):
    stack = [traceback.FrameSummary(file, 1, "f", lookup_line=False, line=line) for file, line in frames]
    assert in_collective(stack) is waits


def test_a_stack_is_that_of_the_thread_asked_for():
    found = list[tuple[list[str], bool]]()
    asked = threading.get_ident()
    thread = threading.Thread(target=lambda: found.append(stack_of(asked)))
    thread.start()
    thread.join()
    assert "thread." in "".join(found[0][0])  # it starts the other, or waits for it
    assert found[0][1] is False


def test_the_limit_follows_the_pace_between_a_floor_and_the_time_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watchdog = Watchdog(ALONE, Agreement(ALONE))
    assert watchdog.limit_seconds == UNMEASURED * 600
    for step in range(6):
        clock[0] += 1.0
        watchdog.beat(step)
    assert watchdog.limit_seconds == FLOOR_SECONDS, "steps of a second"
    clock[0] += 10.0
    watchdog.beat(6)
    assert watchdog.limit_seconds == MARGIN * 10
    watchdog.beat(6, "validation")
    assert watchdog.limit_seconds == UNMEASURED * 600, "has no measured pace"
    clock[0] += 500.0
    watchdog.beat(6)
    assert watchdog.limit_seconds == MARGIN * 10, "validation is no step"
    clock[0] += 100.0
    watchdog.beat(7)
    assert watchdog.limit_seconds == 600, "never more than the time-out"
    clock[0] += 3.0
    assert watchdog.silent_seconds(clock[0]) == 3.0
    watchdog.woke = clock[0]
    assert watchdog.silent_seconds(clock[0]) == 0.0, "time in which all was stopped does not count"


def test_a_single_process_is_not_watched():
    with Watchdog(ALONE, Agreement(ALONE)) as watchdog:
        watchdog.beat(1)
        assert not watchdog.thread.is_alive()
