"""A function in several processes of this machine, joined by gloo."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from hasten.core.runtime import Runtime


def together(world_size: int, work: Callable[..., Any], *args: object) -> list[Any]:
    """`work(runtime, *args)` in each of `world_size` processes; what they return, in order of rank.

    `work` is a function of a module, and what goes in and out can be pickled.
    """
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(begin, (world_size, folder, work, args), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def begin(
    rank: int, world_size: int, folder: str, work: Callable[..., Any], args: tuple[object, ...]
) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    try:
        torch.save(work(Runtime(torch.device("cpu"), rank, world_size), *args), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()
