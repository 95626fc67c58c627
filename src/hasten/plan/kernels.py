"""What a training step on a CPU is made of: each kernel timed by itself, in a few sizes.

Kernels are timed as a step runs them: by the same functions, through autograd, on memory that is in no cache,
for between two uses of a tensor in a step hundreds of megabytes go by.  No step of any model is timed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from statistics import median

import torch
from torch import Tensor, nn

from hasten.ops.activation import gelu, relu_squared, swiglu
from hasten.ops.attention import attend
from hasten.ops.dropout import dropout
from hasten.ops.loss import linear_cross_entropy
from hasten.ops.norm import rms_norm
from hasten.ops.orthogonalize import flops, orthogonalize
from hasten.ops.rope import frequencies, rotary_angles, rotate
from hasten.parallel.gradients import clip_gradients

Features = Mapping[str, float]
Work = tuple[Callable[[], Tensor | None], Sequence[Tensor]]
"""A call, and the tensors whose gradients it leaves if what it returns is followed back."""

CACHE_BYTES, MOST_COPIES, NOISE = 48e6, 24, 10_007
"""Of inputs to go around in, more than caches hold; in how many copies at most; numbers to draw."""
REPEATS, SECONDS = 5, 0.02
"""How often, and how long, a kernel is timed at least.  The median counts, as it does of steps."""


@dataclass(frozen=True)
class Kernel:
    """A kernel: what its time grows with, how to set it up, and the sizes to time it in."""

    features: Callable[..., Features]
    build: Callable[..., Work]
    sizes: Sequence[tuple[int, ...]]


def product(tokens: float, inputs: float, outputs: float) -> Features:
    """A matrix product [T, I] x [I, O]: its operations, what it reads, writes and multiplies with."""
    operations = 2.0 * tokens * inputs * outputs
    return {"once": 1, "flops": operations, "in": tokens * inputs, "out": tokens * outputs,
            "weight": inputs * outputs}  # fmt: skip


def attention(tokens: float, heads: float, width: float, pairs: float) -> Features:
    """Attention of T tokens over all rows, each head having so many `pairs` of a query and a key it sees."""
    return {"once": 1, "flops": 4.0 * pairs * heads * width, "scores": pairs * heads,
            "tokens": tokens * heads * width}  # fmt: skip


def head_and_loss(tokens: float, width: float, vocabulary: float) -> Features:
    """The head's product with its gradients, and cross-entropy over the logits."""
    return {"once": 1, "flops": 6.0 * tokens * width * vocabulary, "logits": tokens * vocabulary,
            "weight": width * vocabulary}  # fmt: skip


def orthogonal(count: float, rows: int, columns: int) -> Features:
    """Orthogonalising so many matrices of one shape."""
    return {"once": 1, "flops": count * flops(rows, columns), "numbers": count * rows * columns}


def stream(*shape: float) -> Features:
    """A pass over numbers."""
    return {"once": 1, "numbers": prod(shape)}


def table(tokens: float, width: float, rows: float) -> Features:
    """Reading a table of so many rows by tokens; its gradient is as large as itself."""
    return {"once": 1, "tokens": tokens * width, "numbers": rows * width}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small random numbers, the same ones over and over: to draw them all would take longer than to time."""
    count, some = prod(shape), torch.randn(NOISE).mul_(0.1)
    return some.repeat(ceil(count / NOISE))[:count].view(shape).to(dtype)


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that wants a gradient."""
    return noise(*shape, dtype=dtype).requires_grad_()


def build_product(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> Work:
    """A linear layer: weights are float32, and cast where the product is in bf16."""
    x, weight = leaf(tokens, inputs, dtype=dtype), leaf(outputs, inputs)
    return lambda: nn.functional.linear(x, weight), (x, weight)


def build_attention(  # noqa: PLR0917 (a size)
    rows: int, length: int, heads: int, width: int, causal: int, dtype: torch.dtype
) -> Work:
    """Attention within each of some rows."""
    heads_of = [leaf(rows, length, heads, width, dtype=dtype) for _ in range(3)]
    return lambda: attend(*heads_of, causal=bool(causal)), heads_of


def build_loss(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> Work:
    """The head and its loss."""
    hidden, weight = leaf(tokens, width, dtype=dtype), leaf(vocabulary, width)
    targets = torch.randint(vocabulary, (tokens,))
    return lambda: linear_cross_entropy(hidden, weight, targets), (hidden, weight)


def build_norm(rows: int, width: int, dtype: torch.dtype) -> Work:
    """An RMS norm."""
    x, weight = leaf(rows, width, dtype=dtype), leaf(width)
    return lambda: rms_norm(x, weight, 1e-6), (x, weight)


def build_rotary(rows: int, width: int, dtype: torch.dtype) -> Work:
    """Heads of 64 turned to their positions."""
    x = leaf(1, rows, max(width // 64, 1), 64, dtype=dtype)
    angles = rotary_angles(torch.arange(rows), frequencies(64))
    return lambda: rotate(x, angles), (x,)


def build_gated(rows: int, width: int, dtype: torch.dtype) -> Work:
    """A gated activation."""
    gate, up = leaf(rows, width, dtype=dtype), leaf(rows, width, dtype=dtype)
    return lambda: swiglu(gate, up), (gate, up)


def build_plain(rows: int, width: int, dtype: torch.dtype) -> Work:
    """An activation of one input."""
    x = leaf(rows, width, dtype=dtype)
    return lambda: gelu(x), (x,)


def build_square(rows: int, width: int, dtype: torch.dtype) -> Work:
    """An activation without an exponential."""
    x = leaf(rows, width, dtype=dtype)
    return lambda: relu_squared(x), (x,)


def build_dropout(rows: int, width: int, dtype: torch.dtype) -> Work:
    """Dropout of a tenth."""
    x = leaf(rows, width, dtype=dtype)
    return lambda: dropout(x, 0.1), (x,)


def build_sum(rows: int, width: int, dtype: torch.dtype) -> Work:
    """A sum of two streams; going back it is nothing, and gradients that meet are added the same way."""
    x, y = noise(2, rows, width, dtype=dtype).unbind()
    return lambda: x + y, ()


def build_table(tokens: int, width: int, rows: int, dtype: torch.dtype) -> Work:
    """An embedding, in float32, cast where the stream is bf16."""
    weight, ids = leaf(rows, width), torch.randint(rows, (tokens,))
    return lambda: nn.functional.embedding(ids, weight).to(dtype), (weight,)


def build_adam(count: int, dtype: torch.dtype) -> Work:
    """AdamW on so many parameters."""
    weight = leaf(count)
    weight.grad = noise(count)
    adam = torch.optim.AdamW([weight], fused=True)
    adam.step()
    return adam.step, ()


def build_clip(count: int, dtype: torch.dtype) -> Work:
    """The norm of so many gradients, and their scaling."""
    weight = leaf(count)
    weight.grad = noise(count)
    return lambda: clip_gradients({"weight": weight}, 1.0), ()


def build_addition(count: int, dtype: torch.dtype) -> Work:
    """Gradients added to those of the micro-batch before."""
    there, here = noise(2, count).unbind()
    return lambda: there.add_(here), ()


def build_orthogonal(count: int, rows: int, columns: int, dtype: torch.dtype) -> Work:
    """Muon's direction of some matrices."""
    matrices = noise(count, rows, columns)
    return lambda: orthogonalize(matrices), ()


def attention_size(rows: float, length: float, heads: float, width: float, causal: float) -> Features:
    """The features of `build_attention`."""
    return attention(rows * length, heads, width, rows * length * ((length + 1) / 2 if causal else length))


STREAMS = ((512, 128), (2048, 256), (2048, 768))
KERNELS = {
    "product": Kernel(
        product,
        build_product,
        ((512, 128, 128), (2048, 128, 384), (2048, 256, 256), (1024, 256, 1024), (1024, 1024, 256),
         (4096, 384, 384), (1024, 512, 512), (2048, 512, 2048), (1024, 2048, 512), (512, 768, 768)),
    ),
    "attention": Kernel(
        attention_size,
        build_attention,
        ((8, 128, 4, 32, 1), (4, 128, 8, 64, 0), (8, 256, 4, 64, 1), (2, 256, 8, 64, 0), (2, 512, 8, 64, 1),
         (2, 1024, 4, 64, 1), (2, 512, 4, 128, 1)),
    ),
    "loss": Kernel(
        head_and_loss, build_loss, ((512, 128, 2048), (2048, 128, 1024), (1024, 256, 4096), (512, 512, 8192))
    ),
    "norm": Kernel(stream, build_norm, STREAMS),
    "rotary": Kernel(stream, build_rotary, STREAMS),
    "gated": Kernel(stream, build_gated, STREAMS),
    "plain": Kernel(stream, build_plain, STREAMS),
    "square": Kernel(stream, build_square, STREAMS),
    "dropout": Kernel(stream, build_dropout, STREAMS),
    "sum": Kernel(stream, build_sum, STREAMS),
    "table": Kernel(table, build_table, ((512, 128, 1024), (2048, 256, 4096), (1024, 512, 8192))),
    "adam": Kernel(stream, build_adam, ((2**16,), (2**20,), (2**22,))),
    "clip": Kernel(stream, build_clip, ((2**16,), (2**20,), (2**22,))),
    "addition": Kernel(stream, build_addition, ((2**16,), (2**20,), (2**22,))),
    "orthogonal": Kernel(
        orthogonal,
        build_orthogonal,
        ((4, 128, 128), (2, 128, 384), (4, 256, 256), (2, 256, 1024), (1, 512, 512)),
    ),
}  # fmt: skip


def timed(
    kernel: Kernel, size: tuple[int, ...], dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """The seconds of one call of a kernel, and those of its way back, 0 where there is none."""
    touched = 4 * sum(
        value for name, value in kernel.features(*size).items() if name not in ("once", "flops")
    )
    copies = min(max(ceil(CACHE_BYTES / touched), 2), MOST_COPIES)
    works = [kernel.build(*size, dtype) for _ in range(copies)]
    for work in works[:1]:
        once(work, dtype, clock)
    times, end = list[tuple[float, float]](), time.perf_counter() + SECONDS
    while len(times) < REPEATS or time.perf_counter() < end:
        times.append(once(works[len(times) % copies], dtype, clock))
    return median(forward for forward, _ in times), median(back for _, back in times)


def once(work: Work, dtype: torch.dtype, clock: Callable[[], float]) -> tuple[float, float]:
    """The seconds of one call, and of its way back."""
    call, leaves = work
    begun = clock()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = call()
    there = clock()
    if out is None or not out.requires_grad:
        return there - begun, 0.0
    gradient = torch.ones_like(out)
    turned = clock()
    out.backward(gradient)
    back = clock()
    for tensor in leaves:
        tensor.grad = None
    return there - begun, back - turned
