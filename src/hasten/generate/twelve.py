"""Bfloat16 weights in twelve bits for decoding on a CPU, exactly (`ops/kernels/cpu/project.h`).

One token a row takes the time of reading the matrices, and a quarter of a bfloat16 matrix tells nothing:
nearly all of its exponents are among fifteen neighbours.  Float32 weights that came from a bfloat16
checkpoint are as good, for the half of them that is zero is left out.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.generate.half import huge_pages
from hasten.ops.kernels.library import address, kernels

BLOCK, BLOCK_BYTES = 32, 48
"""Numbers that are packed together, and what they take."""
ODD_SHARE = 0.01
"""Of a matrix's numbers; with more, reading what is kept beside it costs what packing saves."""


@dataclass(frozen=True)
class Packed:
    """A matrix in twelve bits: its blocks, its 16 exponents, and the numbers that have none of them."""

    blocks: Tensor  # int16, whatever they are
    exponents: Tensor  # int32 [16]
    odd: Tensor  # int32 [n, 3]: output, input, and a float32's bits
    whole: Tensor  # bfloat16 [outputs, inputs], which several rows read together

    @property
    def nbytes(self) -> int:
        """What a token reads."""
        return self.blocks.nbytes + self.odd.nbytes


def twelve_bits(matrices: Sequence[Tensor]) -> list[Packed] | None:
    """Copies [outputs, inputs] of bfloat16 matrices, or of float32 ones that are bfloat16 at heart.

    None where one is neither, has inputs that are no multiple of 32, or exponents that differ too much.
    """
    if any(matrix.shape[1] % BLOCK for matrix in matrices):
        return None
    sizes = [matrix.numel() // BLOCK * BLOCK_BYTES for matrix in matrices]
    parts = huge_pages(sum(sizes)).view(torch.int16).split([size // 2 for size in sizes])
    packed = []
    for matrix, blocks in zip(matrices, parts, strict=True):
        copy = pack(matrix, blocks)
        if copy is None:
            return None
        packed.append(copy)
    return packed


def pack(matrix: Tensor, blocks: Tensor) -> Packed | None:
    """One matrix, into `blocks`."""
    short = as_bfloat16(matrix)
    if short is None:
        return None
    room = int(ODD_SHARE * matrix.numel())
    exponents, odd = torch.empty(16, dtype=torch.int32), torch.empty(room, 3, dtype=torch.int32)
    pack_twelve = kernels().pack_twelve
    pack_twelve.restype = ctypes.c_int64
    shape = (ctypes.c_int64(size) for size in matrix.shape)
    count = pack_twelve(
        address(short), *shape, address(blocks), address(exponents), address(odd), ctypes.c_int64(room)
    )
    return None if count < 0 else Packed(blocks, exponents, odd[:count].clone(), short)


def as_bfloat16(matrix: Tensor) -> Tensor | None:
    """The same numbers in bfloat16, None where that would round one."""
    if matrix.dtype == torch.bfloat16:
        return matrix
    if matrix.dtype != torch.float32 or (matrix.view(torch.int32) & 0xFFFF).any():
        return None
    return matrix.bfloat16()
