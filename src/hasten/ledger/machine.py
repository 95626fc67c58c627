"""What this machine can do, and what others take of it just now."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hasten.core.runtime import has_fast_bf16
from hasten.train.memory import device_memory
from hasten.train.metrics import measure_peak

MEGABYTES = 128
"""Of memory to copy and to read: far more than caches hold."""
INT8_SIZE = 1024
BUSY_CORES = 0.15
"""Others that use more than this are worth a warning: threads that wait for each other wait for them too."""


def measure_machine(device: torch.device, seconds: float = 0.5) -> dict[str, Any]:
    """Matrix peaks in FLOP/s, bandwidths in bytes/s, cores, memory, and what others use of the cores."""
    precisions = ["fp32", "bf16"] if has_fast_bf16(device) else ["fp32"]
    peaks = {precision: measure_peak(device, precision, seconds) for precision in precisions}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": device_memory(device),
        "peak": {**peaks, **int8_peak(device, seconds)},
        "bandwidth": bandwidth(device, seconds),
        "cores_used_by_others": others_now(),
    }


def int8_peak(device: torch.device, seconds: float) -> dict[str, float]:
    """The rate of int8 products, in operations/s; empty where PyTorch has none for this device."""
    a = torch.ones(INT8_SIZE, INT8_SIZE, dtype=torch.int8, device=device)
    try:
        torch._int_mm(a, a)
    except RuntimeError:
        return {}
    return {"int8": 2 * INT8_SIZE**3 / best_time(lambda: torch._int_mm(a, a), device, seconds)}


def bandwidth(device: torch.device, seconds: float) -> dict[str, float]:
    """Bytes/s of memory that are copied (read and written) and read, by one thread and by all."""
    source = torch.ones(MEGABYTES * 2**18, device=device)
    target, threads = torch.empty_like(source), torch.get_num_threads()
    size = source.numel() * source.element_size()
    found = {}
    for label, number in (("one_thread", 1), ("all_threads", threads)):
        torch.set_num_threads(number)
        found[f"copy_{label}"] = 2 * size / best_time(lambda: target.copy_(source), device, seconds)
        found[f"read_{label}"] = size / best_time(source.sum, device, seconds)
    torch.set_num_threads(threads)
    return found


def best_time(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time of `work` in `seconds`: what it takes when nobody is in the way."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, end = float("inf"), time.perf_counter() + seconds
    work()
    while best == float("inf") or time.perf_counter() < end:
        wait()
        began = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - began)
    return best


def others_now(seconds: float = 1.0) -> float | None:
    """Cores that other processes use while this one sleeps; None where the system does not tell."""
    before, began = busy_seconds(), time.perf_counter()
    if before is None:
        return None
    own = time.process_time()
    time.sleep(seconds)
    after, spent = busy_seconds() or before, time.process_time() - own
    return max(after - before - spent, 0.0) / (time.perf_counter() - began)


def busy_seconds() -> float | None:
    """Core-seconds that all processes, and the host's other guests, have used since the machine started."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
