"""Some steps in several processes, and then one that does not end: `python hang.py ROLE ROLE ...`.

A role is what the rank does then: `wait` for the others, `sleep`, `stop` (SIGSTOP); or, a step earlier,
`other`: wait for a message that nobody sends.
"""

import os
import signal
import sys
import time

import torch
from torch import distributed

from hasten.core.runtime import start
from hasten.train.agree import Agreement
from hasten.train.watchdog import LOOK_SECONDS, Watchdog

STEPS = 5


def main(roles: list[str]) -> None:
    torch.set_num_threads(1)
    runtime = start("cpu", timeout_seconds=2.0)
    role, ones = roles[runtime.rank], torch.ones(2)
    with Watchdog(runtime, Agreement(runtime)) as watchdog:
        for step in range(1, STEPS + 1):
            if step == STEPS and role == "other":
                distributed.recv(ones, 1 - runtime.rank)
            distributed.all_reduce(ones)
            watchdog.beat(step)
        if role == "stop":
            time.sleep(2 * LOOK_SECONDS)  # a heartbeat is left
            os.kill(os.getpid(), signal.SIGSTOP)
        if role == "sleep":
            time.sleep(120)
        distributed.all_reduce(ones)


if __name__ == "__main__":
    main(sys.argv[1:])
