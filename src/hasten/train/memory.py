"""How much of a batch fits through the model at once."""

import os
import resource
import sys
from math import ceil
from pathlib import Path

import torch

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig

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


def choose_micro_rows(
    config: ModelConfig,
    rows: int,
    row_tokens: int,
    *,
    device: torch.device,
    precision: str,
    optimizer: str,
    chunk_tokens: int | None = None,
    head_share: float = 1.0,
) -> int:
    """The most rows, a divisor of this rank's `rows`, whose activations fit beside the training's state.

    `head_share` of the tokens go through the head, `chunk_tokens` at a time.  Depends on nothing that
    changes from start to start, so that a resumed run cuts its batches as before.
    """
    share = GPU_SHARE if device.type == "cuda" else CPU_SHARE
    memory = device_memory(device)
    room = share * memory - config.state_bytes("muon" if optimizer == "muon" else "adamw")
    width = 4 if precision == "fp32" else 2
    needed = {
        n: config.activation_bytes(
            n,
            row_tokens,
            bytes_per_number=width,
            chunk_tokens=min(chunk_tokens or n * row_tokens, ceil(head_share * n * row_tokens)),
        )
        for n in range(1, rows + 1)
        if rows % n == 0 and (n == 1 or device.type == "cuda" or n * row_tokens <= CPU_MICRO_BATCH_TOKENS)
    }
    fitting = [n for n, size in needed.items() if size <= room]
    if not fitting:
        raise ConfigError(
            f"model: one row of {row_tokens:,} tokens needs {needed[1] / 1e9:,.1f} GB beside"
            f" {config.state_bytes() / 1e9:,.1f} GB of weights and optimizer, and {share:.0%} of this"
            f" {device.type}'s memory is {share * memory / 1e9:,.1f} GB; write a smaller model or fewer"
            " data.row_tokens"
        )
    return max(fitting)
