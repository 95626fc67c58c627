"""A matrix as `cpu/project.h` reads it, and products with one of small integers (`cpu/quantized.h`).

Letters in shapes: M tokens, O outputs, I inputs, G groups of a row.
"""

from ctypes import Structure, byref, c_int64, c_void_p

import torch
from torch import Tensor

from hasten.ops.kernels.call import call
from hasten.ops.kernels.library import address, kernels

KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
TWELVE, MIXED = 3, 4
INTEGERS, PANELS = {8: 5, 4: 6}, {8: 7, 4: 8}
"""By their bits: as `Integers` has them, and laid out by `packed`."""
PLANES = {torch.float32: 3, torch.bfloat16: 2}
"""Bytes that hold a number of a token as finely as products of its type do."""


class Matrix(Structure):
    """`struct Matrix`, field by field."""

    _fields_ = [
        *(("weight", c_void_p), ("bias", c_void_p), ("outputs", c_int64), ("inputs", c_int64)),
        *(("exponents", c_void_p), ("odd", c_void_p), ("num_odd", c_int64), ("whole", c_void_p)),
        *(("kind", c_int64), ("scales", c_void_p), ("group", c_int64), ("planes", c_int64)),
    ]


def integer_matrix(values: Tensor, scales: Tensor, bits: int, inputs: int) -> Matrix:
    """The structure for values, int8 [O, I] or packed in pairs; scales float16 [O, G]; both outlive it."""
    group = inputs // scales.shape[1]
    shape = len(values), inputs
    return Matrix(values.data_ptr(), None, *shape, kind=INTEGERS[bits], scales=scales.data_ptr(), group=group)


def packed(matrix: Matrix) -> Tensor:
    """The panels of a matrix of small integers, uint8 [bytes]: in them decoding reads it."""
    size = kernels().panels_size
    size.restype = c_int64
    panels = torch.empty(size(byref(matrix)), dtype=torch.uint8)
    kernels().pack_panels(byref(matrix), address(panels))
    return panels


def product(x: Tensor, matrix: Matrix, bias: Tensor | None = None, *, planes: int = 3) -> Tensor:
    """x [M, I], float32 or bfloat16, times a matrix of small integers, with a bias float32 [O]: [M, O].

    What is read is cut into so many `planes` of bytes, and what comes out is in the type of x.
    """
    matrix.bias, matrix.planes = None if bias is None else bias.data_ptr(), planes
    out = torch.empty(len(x), matrix.outputs, dtype=x.dtype)
    call("quantized_product", x.dtype, byref(matrix), x, out, len(x), torch.get_num_threads())
    return out
