"""How much of a batch fits through the model at once."""

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from hasten.core.errors import ConfigError
from hasten.parallel.config import ParallelConfig, Recompute
from hasten.train.footprint import Workload, footprint

GPU_SHARE, CPU_SHARE = 0.8, 0.4
"""Of the device's memory: a GPU is the run's own, a CPU's memory is shared with everything else."""
CPU_MICRO_BATCH_TOKENS = 4096
"""More at once is slower on a CPU, for activations leave its caches: 1.2x at 16,384 tokens of width 256."""


def device_memory(device: torch.device) -> int:
    """Bytes of memory that a process could use on this device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, container_limit() or physical)


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of tensors on a GPU, of this whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure would include the parent's, from before this program was loaded
        line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def container_limit() -> int | None:
    """The memory limit of the control group (Linux), None where there is none."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def resident_memory(device: torch.device) -> int:
    """Bytes that are held now: of tensors on a GPU, of this whole process on a CPU; 0 where nobody says."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/statm")
    return (
        resource.getpagesize() * int(status.read_text(encoding="ascii").split()[1]) if status.exists() else 0
    )


def memory_for_training(device: torch.device) -> float:
    """Bytes that a process may fill; processes on one CPU share its memory."""
    if device.type == "cuda":
        return GPU_SHARE * device_memory(device)
    return CPU_SHARE * device_memory(device) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def choose_micro_rows(whole: Workload, device: torch.device) -> int:
    """The most rows, a divisor of those that a replica has in a step, that fit through the model at once.

    `whole` has all of the replica's rows at once.  States and activations are divided as its degrees say, a
    process's share of them must fit.  A pipeline gets as many micro-batches as it has stages, where there are
    rows for that, and a multiple of them where it is interleaved.  Where not even one row fits as it is, one
    fits if activations are made again, unless `parallel.recompute` says otherwise.  Depends on nothing that
    changes from start to start: a resumed run cuts its batches as before.
    """
    sizes = micro_batch_sizes(whole, device)
    for mode in ways_to_recompute(whole.parallel):
        tried = [cut(whole, rows, mode) for rows in sizes]
        fitting = [work.micro_rows for work in tried if footprint(work).total <= memory_for_training(device)]
        if fitting:
            return max(fitting)
    raise ConfigError(too_large(tried[0], device))


def ways_to_recompute(parallel: ParallelConfig) -> tuple[Recompute, ...]:
    """What may be made again, the cheapest first."""
    return ("none", "selective", "full") if parallel.recompute == "auto" else (parallel.recompute,)


def micro_batch_sizes(whole: Workload, device: torch.device) -> list[int]:
    """Divisors of a replica's rows that are worth a thought, the smallest first."""
    rows, stages, interleaved = whole.micro_rows, whole.degree("pipeline"), whole.parallel.interleave > 1
    found = [n for n in range(1, rows + 1) if rows % n == 0]
    if interleaved:
        found = [n for n in found if rows // n % stages == 0]
        if not found:
            raise ConfigError(
                f"parallel.interleave: a pipeline of {stages} stages needs a multiple of {stages}"
                f" micro-batches, and each replica has {rows:,} rows; raise train.batch_tokens, or write"
                " interleave: 1"
            )
    if device.type != "cuda":
        most = CPU_MICRO_BATCH_TOKENS * whole.degree("context")
        found = [n for n in found if n == found[0] or n * whole.row_tokens <= most]
    return [n for n in found if rows // n >= stages] or found[:1]


def cut(whole: Workload, micro_rows: int, mode: Recompute = "none") -> Workload:
    """The same work with so many of its rows at a time."""
    micro_batches = whole.micro_rows // micro_rows
    return replace(whole, micro_rows=micro_rows, micro_batches=micro_batches, recompute=mode)


def choose_recompute(work: Workload, device: torch.device) -> tuple[Recompute, int | None]:
    """What to make again in the backward pass, and in how many of a process's first layers, None for all.

    `parallel.recompute` where it says so; else nothing if that fits, what is cheap in as few layers as will
    do, whole blocks in as few as will do.
    """
    asked = work.parallel.recompute
    if asked != "auto":
        return asked, None
    room = memory_for_training(device)
    if footprint(replace(work, recompute="none")).total <= room:
        return "none", None
    modes: tuple[Recompute, ...] = ("selective", "full")
    for mode in modes:
        for layers in range(1, work.layers + 1):
            if footprint(replace(work, recompute=mode, recompute_layers=layers)).total <= room:
                return mode, layers
    return "full", None


def too_large(work: Workload, device: torch.device) -> str:
    """What to say where not even the least fits."""
    needed, room = footprint(work), memory_for_training(device)
    rows = "one row" if work.micro_rows == 1 else f"{work.micro_rows} rows"
    kept = "weights, teacher and optimizer" if work.teacher else "weights and optimizer"
    return (
        f"model: {rows} of {work.row_tokens:,} tokens needs {(needed.total - needed.states) / 1e9:,.2g} GB"
        f" beside {needed.states / 1e9:,.2g} GB of {kept}, and what a process may fill of this"
        f" {device.type}'s memory is {room / 1e9:,.2g} GB; write a smaller model or fewer data.row_tokens, or"
        " spread it over more processes: parallel.shard"
    )
