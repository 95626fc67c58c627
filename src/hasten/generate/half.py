"""Half-precision weights for decoding on a CPU.

One token a row multiplies each matrix with a vector or few, and the time that takes is the time to read the
matrix: float16 is half the bytes of float32, and rounded eight times finer than bfloat16 (bench/generate.py).
"""

import ctypes
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.model.transformer import Decoder
from hasten.ops.kernels.library import address, kernels

WORTHWHILE_TOKENS, WORTHWHILE_PARAMETERS = 32, 2_000_000
"""Packing costs as much as about twenty tokens win; what fits into a cache is read fast anyway."""
ALIGNMENT = 64
"""Bytes of a cache line: every matrix begins on one."""


def worth_packing(model: Decoder, new_tokens: int) -> bool:
    """Whether copies of the weights save time: long texts, and enough to read.

    Only the settings of one text count, not how many there are: it is to be the same alone and in company.
    """
    size = sum(weight.numel() for weight in (*model.parameters(), *model.buffers()))
    return new_tokens >= WORTHWHILE_TOKENS and size >= WORTHWHILE_PARAMETERS


def half_weights(matrices: Sequence[Tensor]) -> list[Tensor] | None:
    """Float16 copies of float32 matrices, one behind the other in huge pages.

    None where float16 cannot hold a number, or they are not float32.
    """
    if any(matrix.dtype != torch.float32 for matrix in matrices):
        return None
    pack_half = kernels().pack_half
    pack_half.restype = ctypes.c_bool
    room = [-(-2 * matrix.numel() // ALIGNMENT) * ALIGNMENT for matrix in matrices]
    memory, copies = huge_pages(sum(room)), []
    for matrix, part in zip(matrices, memory.split([size // 2 for size in room]), strict=True):
        copy = part[: matrix.numel()].view(matrix.shape)
        if not pack_half(address(matrix), address(copy), ctypes.c_int64(matrix.numel())):
            return None
        copies.append(copy)
    return copies


def huge_pages(size: int) -> Tensor:
    """`size` bytes of float16 in pages of 2 MiB where the system has them: few entries to look up."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float16)
