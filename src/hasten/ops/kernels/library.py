"""The C++ of `cpu/`, compiled for this very processor at first use, kept for later runs, called by ctypes.

Plain C functions and no PyTorch headers: that compiles in seconds, where inductor or an extension module
takes a minute.  Where there is no compiler, or the processor lacks what a kernel is written for, `library()`
is None and every op goes its way in plain PyTorch.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from hasten.core.console import say
from hasten.core.runtime import cpu_flags

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni"}
"""What the kernels are written for: Zen 4, Sapphire Rapids, Cooper Lake and later."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where `why_not` has a reason."""
    if why_not() is not None:
        return None
    try:
        return ctypes.CDLL(str(built()))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        say(f"kernels: could not be compiled, PyTorch's own operations are used: {said.strip()[:500]}")
        return None


def kernels() -> ctypes.CDLL:
    """The library, for those who have seen that it is there."""
    found = library()
    assert found is not None
    return found


def why_not() -> str | None:
    """Why there are no kernels here, in words, or None."""
    if os.environ.get("HASTEN_KERNELS", "on") == "off":
        return "HASTEN_KERNELS is off"
    if platform.system() != "Linux" or not cpu_flags() >= NEEDED:
        return "the processor has no AVX-512 with bfloat16"
    if compiler() is None:
        return "there is no C++ compiler"
    return None


@cache
def compiler() -> str | None:
    """The C++ compiler to use: CXX, g++ or clang++."""
    names = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return next((path for name in names if (path := shutil.which(name))), None)


def built() -> Path:
    """The shared library for these sources, this compiler and this processor; compiled if not there yet."""
    path = cache_folder() / f"kernels-{fingerprint()}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            os.replace(compiled(Path(folder)), path)  # whole or not at all, whoever else compiles just now
    return path


def cache_folder() -> Path:
    """Where compiled code is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hasten"


def fingerprint() -> str:
    """Of everything that the library depends on."""
    version = subprocess.run(
        [str(compiler()), "--version"], capture_output=True, text=True, check=True
    ).stdout
    parts = [version, *FLAGS, *sorted(cpu_flags())]
    parts += [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sorted(SOURCES.iterdir())]
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())


def compiled(folder: Path) -> Path:
    """Compile every source, at once, and link them in `folder`."""
    objects = {source: folder / f"{source.stem}.o" for source in sorted(SOURCES.glob("*.cpp"))}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda item: command(*FLAGS, "-c", item[0], "-o", item[1]), objects.items()))
    # torch has loaded libgomp already, under this same name: all share one pool of threads.
    command("-shared", "-fopenmp", *objects.values(), "-o", folder / "kernels.so")
    return folder / "kernels.so"


def command(*words: str | Path) -> None:
    """Run the compiler; raises CalledProcessError with what it said."""
    subprocess.run([str(compiler()), *map(str, words)], check=True, capture_output=True, text=True)


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers begin, for a C function; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def on_cpu(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors: plain dense CPU memory, and a library is there."""
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" for t in tensors)
    return plain and library() is not None
