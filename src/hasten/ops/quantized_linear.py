"""Products with a matrix of small integers.  Letters in shapes: M tokens, O outputs, I inputs, G groups."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.ops.kernels import matrix as kernel
from hasten.ops.kernels.library import on_cpu
from hasten.ops.quantize import dequantize, integer_product, unpack4


class Integers(NamedTuple):
    """A matrix [O, I] of `bits`: int8 [O, I], or bytes [O, ceil(I / 2)] as of `pack4`, and scales [O, G]."""

    values: Tensor
    scales: Tensor
    bits: int
    inputs: int

    def chosen(self, rows: Tensor) -> "Integers":
        """Those rows of the matrix alone."""
        return self._replace(values=self.values[rows], scales=self.scales[rows])

    def unpacked(self) -> Tensor:
        """The integers, int8 [O, I]."""
        return self.values if self.bits == 8 else unpack4(self.values, self.inputs)


def dense(weight: Integers, kind: torch.dtype) -> Tensor:
    """The matrix [O, I] in a floating type."""
    return dequantize(weight.unpacked(), weight.scales).to(kind)


def quantized_linear(x: Tensor, weight: Integers, bias: Tensor | None, *, integers: bool) -> Tensor:
    """x W^T + bias in the type of x: x [..., I] -> [..., O].

    With `integers` each token of x is rounded to eight bits, and products of integers are summed exactly.
    """
    flat = x.flatten(0, -2)
    if native(x, weight):
        single = None if bias is None else bias.float()
        planes = 1 if integers else kernel.PLANES[x.dtype]
        out = kernel.product(flat.contiguous(), kernel.integer_matrix(*weight), single, planes=planes)
    elif integers:
        out = integer_product(flat, weight.unpacked(), weight.scales).to(x.dtype)
        out = out if bias is None else out + bias.to(x.dtype)
    else:
        out = F.linear(flat, dense(weight, x.dtype), None if bias is None else bias.to(x.dtype))
    return out.view(*x.shape[:-1], out.shape[-1])


def native(x: Tensor, weight: Integers) -> bool:
    """Whether the kernels can read both; x takes no gradient then."""
    values, scales = weight.values, weight.scales
    return (
        not torch.compiler.is_compiling()
        and x.dtype in kernel.PLANES
        and not (torch.is_grad_enabled() and x.requires_grad)
        and on_cpu(x, values, scales)
        and values.is_contiguous()
        and scales.is_contiguous()
        and scales.dtype == torch.float16
    )
