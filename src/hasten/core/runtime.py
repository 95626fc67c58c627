"""Where a process runs: its device, its place among the others, its clocks."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import hasten
from hasten.core.errors import ConfigError


@dataclass(frozen=True)
class Runtime:
    """This process among `world_size`: rank 0 speaks and writes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def group(self) -> distributed.ProcessGroup | None:
        """The group over which counts, losses and gradients are summed; None for a single process."""
        return distributed.group.WORLD if self.world_size > 1 else None


def start(device: str = "auto") -> Runtime:
    """Choose the device and, under torchrun, join the other processes."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # what names no device (waiting, NCCL, kernels) means this one
    if world_size == 1:
        return Runtime(chosen)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Runtime(chosen, distributed.get_rank(), world_size)


def choose_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: '{name}' was asked for and there is no CUDA GPU here; write cpu or auto")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in fp32 here."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # earlier ones only imitate it
    features = cpu_flags()
    return bool(features & {"avx512_bf16", "amx_bf16", "bf16"})


def has_float8(device: torch.device) -> bool:
    """Whether there are matrix products in eight bits here: Ada, Hopper and later GPUs."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def cpu_flags() -> set[str]:
    """Feature words of the first processor, from the kernel (x86 and Arm Linux; empty elsewhere)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    words = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(words.partition(":")[2].split())


def environment() -> dict[str, Any]:
    """What a result depends on: versions, machine, commit."""
    return {
        "hasten": hasten.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def commit() -> str | None:
    """The commit of the checkout that this package runs from, or None where it is installed."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def processor_name() -> str:
    """The processor's model name where the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
