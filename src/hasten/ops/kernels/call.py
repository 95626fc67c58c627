"""How kernels for bfloat16 and float32 are called: `NAME_bf16` and `NAME_f32`, with plain C arguments."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from hasten.ops.kernels.library import address, kernels, on_cpu

SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}


def usable(*tensors: Tensor) -> bool:
    """Whether a kernel can take these, the first of which says its type; a compiled graph fuses by itself."""
    return not torch.compiler.is_compiling() and tensors[0].dtype in SUFFIX and on_cpu(*tensors)


def call(name: str, dtype: torch.dtype, *arguments: Any) -> int:
    """Run the C function `name` for tensors of `dtype`: Python's numbers are int64_t and float there.
    Tensors are their memory, and what ctypes has made stays as it is.

    What it returns has a meaning only where it is an int.
    """
    return getattr(kernels(), f"{name}_{SUFFIX[dtype]}")(*map(in_c, arguments))


def in_c(argument: Any) -> Any:
    """An argument as C takes it."""
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    return address(argument) if argument is None or isinstance(argument, Tensor) else argument
