"""Whether the compiler has seen a training before: its cache, and a note of what is in it."""

import os
from pathlib import Path

import torch
import xxhash

import hasten
from hasten.core.config import dump
from hasten.core.runtime import processor_name
from hasten.model.config import ModelConfig
from hasten.ops.kernels.library import cache_folder

INDUCTOR_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
COMPILED_PARTS = ("adapt", "model", "objective", "ops")
"""Packages whose code is in the graphs: where a line of them changes, the cache is of no use."""


def keep_compiled_code() -> Path:
    """The compiler's cache, set to a folder that outlives a restart, unless the environment names one."""
    return Path(os.environ.setdefault(INDUCTOR_FOLDER, str(cache_folder() / "inductor")))


def is_warm(note: str) -> bool:
    """Whether a run with this `note` was compiled here before."""
    return (keep_compiled_code() / "hasten" / note).exists()


def remember(note: str) -> None:
    """Note that all of a run's graphs are in the cache.  A folder that cannot be written is no harm."""
    folder = keep_compiled_code() / "hasten"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / note).touch()
    except OSError:
        return


def note_of(model: ModelConfig, shape: tuple[int, ...], precision: str, device: torch.device) -> str:
    """A name for all that the graphs of a training depend on; `shape` is a micro-batch's, (B, T, ...)."""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    threads = torch.get_num_threads()  # generated C++ is made for as many
    facts = (torch.__version__, machine, str(threads), precision, str(shape), dump(model), source())
    return xxhash.xxh3_128_hexdigest("\0".join(facts).encode())


def source() -> str:
    """A digest of the code that is compiled."""
    folder = Path(hasten.__file__).parent
    paths = sorted(path for part in COMPILED_PARTS for path in (folder / part).rglob("*.py"))
    return xxhash.xxh3_128_hexdigest(b"\0".join(path.read_bytes() for path in paths))
