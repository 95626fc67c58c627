"""Where a process runs: its device, its place among the others, its clocks."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import hasten
from hasten.core.errors import ConfigError, LostContactError
from hasten.core.worker import is_started_by_hasten

TIMEOUT_SECONDS = 600.0
"""What a step may take before the watchdog calls it stuck, where a recipe does not say."""
PATIENCE = 4.0
"""A collective waits for so many of those: the watchdog, which can tell who is at fault, comes first."""


@dataclass(frozen=True)
class Runtime:
    """This process among `world_size`: rank 0 speaks and writes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    timeout_seconds: float = TIMEOUT_SECONDS

    @property
    def patience(self) -> timedelta:
        """How long a collective waits for the other processes: give it to every group that is made."""
        return timedelta(seconds=PATIENCE * self.timeout_seconds)

    @property
    def group(self) -> distributed.ProcessGroup | None:
        """The group over which counts, losses and gradients are summed; None for a single process."""
        return distributed.group.WORLD if self.world_size > 1 else None


def start(device: str = "auto", timeout_seconds: float = TIMEOUT_SECONDS) -> Runtime:
    """Choose the device and, where a launcher started several processes, join the others."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # what names no device (waiting, NCCL, kernels) means this one
    if world_size == 1:
        return Runtime(chosen)
    here = Runtime(chosen, int(os.environ["RANK"]), world_size, timeout_seconds)
    if not distributed.is_initialized():
        with in_contact():
            distributed.init_process_group(
                "nccl" if chosen.type == "cuda" else "gloo",
                store=meeting_store(here.patience),
                rank=here.rank,
                world_size=world_size,
                timeout=here.patience,
            )
    return here


def meeting_store(patience: timedelta) -> distributed.Store:
    """The store in which the processes find each other, without what dead predecessors left there.

    hasten's launcher has a new one each time.  torchrun gives processes that it starts again the store of
    those before; on several machines nothing can be done about it here, for each counts restarts by itself.
    """
    if is_started_by_hasten():
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return distributed.TCPStore(address, port, is_master=False, timeout=patience)
    store, _, _ = next(distributed.rendezvous("env://", timeout=patience))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return distributed.PrefixStore(f"attempt-{attempt}", store) if alone else store


@contextmanager
def in_contact() -> Iterator[None]:
    """Say in one sentence what a collective says when another process is gone.

    Raises LostContactError from gloo's, NCCL's and the store's errors; all others pass.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        raise LostContactError(
            f"lost contact with another process ({first_words(str(error))}); look at what ended that one"
        ) from error


def is_lost_contact(error: BaseException) -> bool:
    """Whether a collective or the store failed; gloo's errors are plain RuntimeErrors that name its files."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def first_words(text: str, limit: int = 160) -> str:
    """The first sentence of a message from C++, without the place in the source that it begins with."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", text.strip())
    line = re.split(r"\n|\. ", text, maxsplit=1)[0].strip().rstrip(".")
    return line if len(line) <= limit else f"{line[:limit]}…"


def choose_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU; `cuda` is this process's GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: '{name}' was asked for and there is no CUDA GPU here; write cpu or auto")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"device: '{name}' is one GPU and every process needs its own; write cuda or auto")
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
