"""How kernels are judged: against float64, and no worse there than PyTorch's own operations."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from hasten.ops.kernels.library import library, why_not

needs_kernels = pytest.mark.skipif(
    library() is None, reason=f"no kernels here: {why_not() or 'not compiled'}"
)
DTYPES = [torch.bfloat16, torch.float32]
Op = Callable[..., Tensor]
ALLOWANCE = {torch.bfloat16: 2.0**-12, torch.float32: 2.0**-22}


def results(op: Op, inputs: Sequence[Tensor], gradient: Tensor | None = None) -> list[Tensor]:
    """The value of `op` and its gradients with respect to every input of floating point."""
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    out = op(*inputs)
    wanted = [x for x in inputs if x.requires_grad]
    return [out, *torch.autograd.grad(out, wanted, None if gradient is None else gradient.to(out.dtype))]


def assert_as_good(kernel: Op, plain: Op, inputs: Sequence[Tensor], gradient: Tensor | None = None) -> None:
    """`kernel` stands as near to `plain` in float64 as `plain` in the inputs' precision does, within 1.5.

    Errors are root mean squares; a sixteenth of a rounding of bfloat16, or two of
    float32, are allowed in any case.
    """
    exact = results(plain, [x.double() if x.is_floating_point() else x for x in inputs], gradient)
    mine, theirs = results(kernel, inputs, gradient), results(plain, inputs, gradient)
    for found, other, truth in zip(mine, theirs, exact, strict=True):
        assert (found.dtype, found.shape) == (other.dtype, other.shape)
        size = truth.square().mean().sqrt()
        error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (found, other))
        assert error <= 1.5 * allowed + ALLOWANCE[found.dtype] * size, (error, allowed, size)


def assert_threads_do_not_matter(op: Op, inputs: Sequence[Tensor], gradient: Tensor | None = None) -> None:
    """Bit for bit the same on one thread and on two."""
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(results(op, inputs, gradient))
    torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
