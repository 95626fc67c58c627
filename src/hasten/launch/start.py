"""A training in several processes: the launcher that `hasten train` becomes outside torchrun."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import DistStoreError
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from hasten.core.console import say
from hasten.core.errors import ConfigError, LostContactError, ProcessesError
from hasten.core.worker import LAUNCHER, STARTED
from hasten.launch.agent import ENDLESS, SIGNALS, Agent
from hasten.launch.network import LOOPBACK, address_towards, interface_with, is_here
from hasten.launch.options import LaunchConfig, gpus_here, processes_here
from hasten.parallel.grid import degrees_of
from hasten.recipe import Recipe
from hasten.train.restore import checkpoints_in
from hasten.train.run import Summary

MONITOR_SECONDS = 0.1
MEET_SECONDS = 1800
"""How long machines wait for each other: a replacement takes its time."""


def number_of_processes(recipe: Recipe, options: LaunchConfig) -> int:
    """How many processes to start here: 1 where this one is to train itself, alone or under torchrun.

    Raises ConfigError where launch settings are given to a process that another launcher started.
    """
    if "RANK" not in os.environ:
        return processes_here(recipe.parallel, options, gpus_here(recipe.device))
    given = options.model_dump(exclude_defaults=True)
    if given:
        raise ConfigError(
            f"{next(iter(given))} is for hasten's own launcher and another one (torchrun) started this"
            " process; leave it out, or start hasten train by itself"
        )
    return 1


def train(
    recipe: Recipe, words: Sequence[str], options: LaunchConfig, number: int, started: float
) -> Summary | None:
    """Train in `number` processes here, and as many on each other machine; what rank 0 made of it.

    `words` are those of `hasten train`, `started` is when the run's clock began.  None where the run's folder
    is another machine's.  Raises what the process at fault says in one sentence.
    """
    degrees = degrees_of(recipe.parallel, number * options.nodes)
    recipe.examples()
    recipe.check_batch(degrees["data"] * degrees["shard"])  # before any data is read
    recipe.prepared()  # once, and before anyone waits for anyone
    agent = run_agent(recipe, words, options, number, started)
    if agent.cause is None:
        return read_summary(recipe.output)
    sentence = agent.cause.sentence
    if agent.cause.mendable:
        raise ConfigError(sentence)
    if agent.stopping:
        raise ProcessesError(f"asked to stop, and {sentence}; the last checkpoint stands")
    times = (
        "at once" if not options.restarts else f"{agent.fruitless} times in a row without a new checkpoint"
    )
    raise ProcessesError(f"the processes ended {times}: {sentence}")


def run_agent(
    recipe: Recipe, words: Sequence[str], options: LaunchConfig, number: int, started: float
) -> Agent:
    """Let an agent start the processes and wait for their end."""
    logs = tempfile.mkdtemp(prefix="hasten-processes-")
    wanted = environment(number, options, started)
    say(opening(number, options, wanted))
    checkpoints = recipe.output / "checkpoints"
    try:
        with set_in_environment(wanted), silence("torch.distributed.elastic"), kept_signals():
            meeting = meet(options)
            spec = WorkerSpec(
                role="hasten",
                local_world_size=number,
                rdzv_handler=meeting,
                entrypoint=sys.executable,
                args=("-m", "hasten", "train", *words),
                max_restarts=ENDLESS,
                monitor_interval=MONITOR_SECONDS,
                local_addr=address_here(options),
            )
            agent = Agent(
                spec,
                DefaultLogsSpecs(log_dir=logs),
                restarts=options.restarts,
                progress=lambda: [path.name for path in checkpoints_in(checkpoints)],
            )
            with told_apart(options):
                try:
                    agent.run()
                finally:
                    meeting.shutdown()
            return agent
    finally:
        shutil.rmtree(logs, ignore_errors=True)


def meet(options: LaunchConfig) -> RendezvousHandler:
    """Where agents meet: in a store that this process holds, or one on another machine, once it is there.

    Raises ProcessesError where it does not come.
    """
    address = address_here(options)
    # Told, for torch would guess it from what the machine's own name stands for, which may be 127.0.1.1.
    hosts = [True, False] if options.meet is None or is_here(options.meet) else [False]
    last = time.monotonic() + MEET_SECONDS
    while True:
        for is_host in hosts:  # a second launcher on one machine finds the port taken by the first
            parameters = RendezvousParameters(
                backend="c10d",
                endpoint=options.meet or f"{LOOPBACK}:0",
                run_id="hasten" if options.nodes > 1 else uuid.uuid4().hex,
                min_nodes=options.nodes,
                max_nodes=options.nodes,
                local_addr=address,
                join_timeout=MEET_SECONDS,
                is_host=is_host,
            )
            try:
                return get_rendezvous_handler(parameters)
            except RendezvousConnectionError:
                continue
        if time.monotonic() > last:
            raise ProcessesError(
                f"meet: nobody answers at {options.meet}; start the same command on that machine too, and let"
                " the port through its firewall"
            )


def address_here(options: LaunchConfig) -> str:
    """The address under which the others reach this machine."""
    if options.nodes == 1 or options.meet is None:
        return LOOPBACK
    return address_towards(options.meet, MEET_SECONDS)


def environment(number: int, options: LaunchConfig, started: float) -> dict[str, str]:
    """What the workers need beside what the agent gives them: their share of the cores, and where to talk.

    What the user has set wins.
    """
    interface = interface_with(address_here(options))
    wanted = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // number))}
    if interface is not None:
        wanted["GLOO_SOCKET_IFNAME"] = interface
        if options.nodes > 1:
            wanted["NCCL_SOCKET_IFNAME"] = interface
    theirs = {name: os.environ.get(name, value) for name, value in wanted.items()}
    theirs["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # the agent's own is better: Agent._rendezvous
    return {**theirs, LAUNCHER: str(os.getpid()), STARTED: repr(started)}


def opening(number: int, options: LaunchConfig, environment: Mapping[str, str]) -> str:
    """The line that says what is started."""
    threads = int(environment["OMP_NUM_THREADS"])
    machines = (
        f" on each of {options.nodes} machines, which meet at {options.meet}" if options.nodes > 1 else ""
    )
    processes = f"{number} process{'es' if number > 1 else ''}"
    return f"starting {processes} of {threads} thread{'s' if threads > 1 else ''}{machines}"


def read_summary(folder: Path) -> Summary | None:
    """What rank 0 wrote at the end of the run in `folder`."""
    try:
        return Summary(**json.loads((folder / "training.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


@contextmanager
def told_apart(options: LaunchConfig) -> Iterator[None]:
    """Say in a sentence what kept the machines from meeting."""
    try:
        yield
    except RendezvousClosedError:
        raise ProcessesError("another machine gave up; what it printed says why") from None
    except (RendezvousConnectionError, DistStoreError):
        raise LostContactError(f"lost contact with {options.meet}, where the machines meet") from None
    except RendezvousError as error:
        raise ProcessesError(
            f"the {options.nodes} machines did not come together at {options.meet} within"
            f" {MEET_SECONDS // 60} minutes ({type(error).__name__}); give the same command on each"
        ) from None


@contextmanager
def set_in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that hold within `with`."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def silence(logger: str) -> Iterator[None]:
    """Let a library's logger say nothing: what happened is told by us, once."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def kept_signals() -> Iterator[None]:
    """Put the signal handlers of before back afterwards."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
