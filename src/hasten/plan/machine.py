"""This machine, as a step finds it: the laws of its kernels and of what its processes send each other.

They are measured once, in some seconds, by as many processes and threads at the same time as train, so that
what these take from each other (memory bandwidth, caches, the links between them) is in the laws; and kept in
a file.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

import hasten
from hasten.core.files import write_json
from hasten.core.runtime import Runtime, processor_name
from hasten.ops.kernels.library import cache_folder, library
from hasten.parallel.gradients import sum_over
from hasten.parallel.sequence import all_gather, reduce_scatter
from hasten.plan.kernels import KERNELS, Features, stream, timed
from hasten.plan.law import fit_law, seconds_of

Law = dict[str, float]
MESSAGES = (2**14, 2**18, 2**21)
"""Numbers in float32 that collectives are timed with."""
TIMES = 5


@dataclass(frozen=True)
class Machine:
    """What was measured: by kernel or collective, the laws of its ways forward and back."""

    laws: Mapping[str, tuple[Law, Law]]
    description: str

    def seconds(self, law: str, features: Features, forward: float = 1.0, back: float = 0.0) -> float:
        """So many calls there and back."""
        there, home = self.laws[law]
        return forward * seconds_of(there, features) + (back * seconds_of(home, features) if back else 0.0)


def this_machine(
    runtime: Runtime, precision: str, *, measure: bool = True, again: bool = False
) -> Machine | None:
    """The machine as these processes find it, from the file or measured now by all of them together.

    None where it is in no file and is not to be measured; `again` measures it whatever the file says.
    """
    name = identity(runtime, precision)
    found = [read(name) if runtime.rank == 0 and not again else None]
    if runtime.group is not None:
        distributed.broadcast_object_list(found, group=runtime.group)
    if found[0] is None and measure:
        laws = measure_laws(runtime, precision)
        if runtime.rank == 0:
            write(name, laws)
        found = [laws]
    return None if found[0] is None else Machine({n: (a, b) for n, (a, b) in found[0].items()}, name)


def identity(runtime: Runtime, precision: str) -> str:
    """All that the laws depend on, in words."""
    parts = (processor_name() or "CPU", f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads",
             f"{runtime.world_size} processes", precision, f"torch {torch.__version__}",
             f"hasten {hasten.__version__}", "kernels" if library() else "no kernels")  # fmt: skip
    return ", ".join(parts)


def machine_file() -> Path:
    """Where measured laws are kept, by `identity`."""
    return cache_folder() / "machine.json"


def read(name: str) -> dict[str, Any] | None:
    """The laws of a name; what cannot be read counts as not there."""
    try:
        laws: dict[str, Any] = json.loads(machine_file().read_text(encoding="utf-8"))[name]
        complete = all(len(laws[kernel]) == 2 for kernel in KERNELS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return laws if complete else None


def write(name: str, laws: Mapping[str, Sequence[Law]]) -> None:
    """Add laws to the file; another process that does so at the same moment may win."""
    path = machine_file()
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**known, name: laws})


def measure_laws(runtime: Runtime, precision: str) -> dict[str, tuple[Law, Law]]:
    """Time every kernel in every size, all processes at the same time, and fit the laws."""
    dtype, found = torch.float32 if precision == "fp32" else torch.bfloat16, {}
    for name, kernel in KERNELS.items():
        times = list[tuple[float, float]]()
        for size in kernel.sizes:
            meet(runtime)
            times.append(timed(kernel, size, dtype))
        features = [kernel.features(*size) for size in kernel.sizes]
        forward, back = (fit_law(features, each) for each in zip(*times, strict=True))
        found[name] = forward, back if any(b for _, b in times) else dict.fromkeys(back, 0.0)
    if runtime.group is not None:
        found |= collective_laws(runtime.group)
    return found


def meet(runtime: Runtime) -> None:
    """Wait for the other processes."""
    if runtime.group is not None:
        distributed.barrier(group=runtime.group)


def collective_laws(group: ProcessGroup) -> dict[str, tuple[Law, Law]]:
    """Sums over all processes, as gradients take them; gathering, scattered sums, messages in a ring."""
    world = distributed.get_world_size(group)

    def reduce(count: int) -> Callable[[], object]:
        numbers = torch.zeros(count)
        return lambda: sum_over(group, [numbers])

    def gather(count: int) -> Callable[[], object]:
        share, whole = torch.zeros(count // world), torch.zeros(count // world * world)
        return lambda: all_gather(whole, share, group=group)

    def scatter(count: int) -> Callable[[], object]:
        share, whole = torch.zeros(count // world), torch.zeros(count // world * world)
        return lambda: reduce_scatter(share, whole, group=group)

    def send(count: int) -> Callable[[], object]:
        here, there = torch.zeros(count), torch.zeros(count)
        rank = distributed.get_rank(group)

        def swap() -> None:
            work = [
                distributed.isend(here, distributed.get_global_rank(group, (rank + 1) % world), group=group),
                distributed.irecv(there, distributed.get_global_rank(group, (rank - 1) % world), group=group),
            ]
            for each in work:
                if each is not None:
                    each.wait()

        return swap

    kinds = {"reduce": reduce, "gather": gather, "scatter": scatter, "send": send}
    return {name: (collective_law(build, group), {}) for name, build in kinds.items()}


def collective_law(build: Callable[[int], Callable[[], object]], group: ProcessGroup) -> Law:
    """The law of one collective, by its numbers in float32."""
    seconds = []
    for count in MESSAGES:
        call, times = build(count), list[float]()
        for _ in range(TIMES):
            distributed.barrier(group=group)
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        seconds.append(sorted(times[1:])[len(times) // 2 - 1])
    return fit_law([stream(count) for count in MESSAGES], seconds)
