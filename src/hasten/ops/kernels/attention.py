"""`attend` in bfloat16 on a CPU: `cpu/attention.cpp` as a differentiable function.

Flash attention (Dao et al. 2022, arXiv:2205.14135): besides inputs and output the backward pass needs the
log-sum-exp of every query's scores alone, so memory grows with T and not with T x S.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hasten.ops.kernels.library import address, kernels, on_cpu

WIDEST = 256


def kernel_attends(query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float) -> bool:
    """Whether `kernel_attention` can take these heads: then it is the fastest way, as measured.

    Forward and backward, one thread of a Zen 4, eager, interleaved, 6 heads of 64, 2,048 tokens, least CPU
    time in ms, causal (and the same in documents of 200 tokens); the rate counts the pairs of the triangle,
    where a matrix product reaches 219 GFLOP/s:

                  kernel        blocks        fused       GFLOP/s
        T  128     8.0           26            44            88
        T  256    12   (9.5)     39  (29)      49  (49)     118
        T  512    19  (11)       61  (56)      84  (88)     146
        T 1024    34  (11)      120 (108)     101 (156)     164
        T 2048    66  (12)      228 (219)     177 (325)     172

    Other shapes against the better of the others: K 16, T 256: 6.5 times as fast; K 128 and K 256, T 512: 2.5
    and 2.0; 8 heads on 2 keys, T 512: 3.6; not causal, T 256: 2.6; 64 new positions after 960, no gradients:
    3.0; 2 positions after 1,022: 2.4; and rows of 2 to 4 tokens with gradients: the same.
    """
    return (
        not torch.compiler.is_compiling()
        and query.dtype == key.dtype == value.dtype == torch.bfloat16
        and dropout == 0
        and (scale is None or scale > 0)
        and query.shape[3] % 16 == 0
        and query.shape[3] <= WIDEST
        and 1 < query.shape[1] <= key.shape[1]
        and query.numel() > 0
        and on_cpu(query, key, value)
    )


class Sight(NamedTuple):
    """Who sees whom, as in `attend`: segments [B, S] int64, contiguous."""

    causal: bool
    segments: Tensor | None
    scale: float


def kernel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`attend` for what `kernel_attends`: query [B, T, H, K], key and value [B, S, G, K] -> [B, T, H, K].

    Heads may be views of any strides as long as the K numbers of each lie together: then nothing is copied.
    """
    query, key, value = (dense(x) for x in (query, key, value))
    segments = None if segments is None else segments.to(torch.int64).contiguous()
    sight = Sight(causal, segments, query.shape[3] ** -0.5 if scale is None else scale)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        out: Tensor = Attention.apply(query, key, value, sight)
        return out
    return forward(query, key, value, sight, lse=None)


class Attention(torch.autograd.Function):
    """Keeps query, key, value, output and the log-sum-exp [B, H, T] float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
        rows, tokens, heads, _ = query.shape
        lse = torch.empty(rows, heads, tokens)
        out = forward(query, key, value, sight, lse)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.sight = sight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grad = dense(grad)
        grads = [torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        kernels().attention_backward(
            sizes(query, key, ctx.sight.causal),
            strides(query, key, value, grad),
            ctypes.c_float(ctx.sight.scale),
            *map(address, (query, key, value, ctx.sight.segments, out, lse, grad, *grads)),
        )
        return *grads, None


def forward(query: Tensor, key: Tensor, value: Tensor, sight: Sight, lse: Tensor | None) -> Tensor:
    """The output [B, T, H, K], contiguous; `lse` [B, H, T] is filled if it is there."""
    out = torch.empty(query.shape, dtype=query.dtype)
    kernels().attention_forward(
        sizes(query, key, sight.causal),
        strides(query, key, value),
        ctypes.c_float(sight.scale),
        *map(address, (query, key, value, sight.segments, out, lse)),
    )
    return out


def dense(heads: Tensor) -> Tensor:
    """The same heads with the K numbers of each next to each other."""
    return heads if heads.stride(3) == 1 else heads.contiguous()


def sizes(query: Tensor, key: Tensor, causal: bool) -> ctypes.Array[ctypes.c_int64]:
    """B, T, S, H, G, K and whether causal, as the C struct `Sizes`."""
    rows, tokens, heads, width = query.shape
    return (ctypes.c_int64 * 7)(rows, tokens, key.shape[1], heads, key.shape[2], width, causal)


def strides(*heads: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Of rows, positions and heads, tensor by tensor, as the C structs `Strides`."""
    flat = [stride for x in heads for stride in x.stride()[:3]]
    return (ctypes.c_int64 * len(flat))(*flat)
