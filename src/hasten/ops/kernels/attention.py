"""`attend` in bfloat16 on a CPU: `cpu/attention.cpp` as a differentiable function.

Flash attention (Dao et al. 2022, arXiv:2205.14135): besides inputs and output the backward pass needs the
log-sum-exp of every query's scores alone, so memory grows with T and not with T x S.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hasten.ops.kernels.dropout import next_seed
from hasten.ops.kernels.library import address, kernels, on_cpu

Heads = tuple[Tensor, Tensor, Tensor]
WIDEST = 256
MOST_PAIRS = 2**31  # of a query and a key, in a head
EVERYTHING = 2**29


def kernel_attends(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    key_segments: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> bool:
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

    What else there is, T 256, causal (and not), ms: nothing 11.4 (18.6), fused 51 (52); a window of 64: 7.8;
    a bias and its gradient 13.5 (23.0), fused 57 (63); dropout 12.4 (20.4), fused 91 (84).  Pairs of
    sentences of 20 to 40 tokens, not causal: 6.2.
    """
    tokens, positions, width = query.shape[1], key.shape[1], query.shape[3]
    free = not causal and window is None  # no query has a position among the keys
    placed = key_segments is None and not (free and segments is None)
    return (
        not torch.compiler.is_compiling()
        and query.dtype == key.dtype == value.dtype == torch.bfloat16
        and dropout < 1
        and (scale is None or scale > 0)
        and width % 16 == 0
        and width <= WIDEST
        and tokens > 1
        and tokens * positions < MOST_PAIRS
        and (tokens <= positions if placed else free)
        and query.numel() > 0
        and key.numel() > 0
        and on_cpu(query, key, value)
    )


class Sight(NamedTuple):
    """Who sees whom, and what is done to scores and weights, as in `attend`.

    Segments are those of all positions that queries have, [B, n], and of the keys, [B, S], int64, contiguous.
    """

    causal: bool
    segments: Tensor | None
    key_segments: Tensor | None
    scale: float
    window: int | None
    soft_cap: float | None
    dropout: float
    seed: int


class Extras(ctypes.Structure):
    """The C struct of this name."""

    _fields_ = (
        ("soft_cap", ctypes.c_float),
        ("dropped", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("bias", ctypes.c_void_p),
        ("d_bias", ctypes.c_void_p),
    )


def kernel_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    segments: Tensor | None = None,
    key_segments: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    bias: Tensor | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """`attend` for what `kernel_attends`: query [B, T, H, K], key and value [B, S, G, K] -> [B, T, H, K].

    Heads may be views of any strides as long as the K numbers of each lie together: then nothing is copied.
    A query that sees no key gets 0, and gives no gradient.  What `dropout` drops is a hash of a
    number that torch's generator gives, of the row, the head, the query and the key.
    """
    query, key, value = (dense(x) for x in (query, key, value))
    segments, key_segments = (
        None if x is None else x.to(torch.int64).contiguous() for x in (segments, key_segments)
    )
    key_segments = segments if key_segments is None else key_segments
    check_shapes(query, key, segments, key_segments, bias)
    seed = next_seed() if dropout else 0
    scale = query.shape[3] ** -0.5 if scale is None else scale
    sight = Sight(causal, segments, key_segments, scale, window, soft_cap, dropout, seed)
    bias = None if bias is None else bias.float().contiguous()
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (query, key, value, bias)):
        out: Tensor = Attention.apply(query, key, value, bias, sight)
        return out
    return forward((query, key, value), bias, sight, lse=None)


class Attention(torch.autograd.Function):
    """Keeps query, key, value, bias, output and the log-sum-exp [B, H, T] float32."""

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd has no keywords)
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, sight: Sight
    ) -> Tensor:
        rows, tokens, heads, _ = query.shape
        lse = torch.empty(rows, heads, tokens)
        out = forward((query, key, value), bias, sight, lse)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.sight = sight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *heads, bias, out, lse = ctx.saved_tensors
        grads, d_bias = backward(
            tuple(heads), bias, ctx.sight, out=out, lse=lse, grad=grad, d_bias=ctx.needs_input_grad[3]
        )
        return *grads, d_bias, None


def forward(heads: Heads, bias: Tensor | None, sight: Sight, lse: Tensor | None) -> Tensor:
    """The output [B, T, H, K], contiguous; `lse` [B, H, T] is filled if it is there."""
    out = torch.empty(heads[0].shape, dtype=heads[0].dtype)
    kernels().attention_forward(
        sizes(*heads[:2], sight),
        strides(*heads),
        ctypes.c_float(sight.scale),
        extras(sight, bias, None),
        *map(address, (*heads, sight.segments, sight.key_segments, out, lse)),
    )
    return out


def backward(
    heads: Heads,
    bias: Tensor | None,
    sight: Sight,
    *,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    d_bias: bool = False,
) -> tuple[Heads, Tensor | None]:
    """Gradients of query, key and value, contiguous, and of the bias if asked, [H, T, S].

    `out` [B, T, H, K] and `lse` [B, H, T], contiguous, are what `forward` gave, or where these keys are a
    part of all that the queries see, what came out over all of them.
    """
    query, key, value = heads
    grad, grads = dense(grad), [torch.empty(x.shape, dtype=x.dtype) for x in heads]
    bias = None if bias is None else bias.mT.contiguous()  # [H, S, T]: the kernel has its keys in rows
    summed = torch.zeros_like(bias) if bias is not None and d_bias else None
    kernels().attention_backward(
        sizes(query, key, sight),
        strides(query, key, value, grad),
        ctypes.c_float(sight.scale),
        extras(sight, bias, summed),
        *map(address, (query, key, value, sight.segments, sight.key_segments, out, lse, grad, *grads)),
    )
    return (grads[0], grads[1], grads[2]), None if summed is None else summed.mT


def check_shapes(
    query: Tensor, key: Tensor, segments: Tensor | None, key_segments: Tensor | None, bias: Tensor | None
) -> None:
    """Nothing that C reads may be shorter than it takes it to be."""
    (rows, tokens, heads, _), positions = query.shape, key.shape[1]
    assert (segments is None) == (key_segments is None), "the keys have segments, so must the queries"
    if segments is not None and key_segments is not None:
        assert segments.shape[0] == rows and segments.shape[1] >= tokens, segments.shape
        assert key_segments.shape == (rows, positions), key_segments.shape
    assert bias is None or bias.shape == (heads, tokens, positions), bias.shape


def dense(heads: Tensor) -> Tensor:
    """The same heads with the K numbers of each next to each other."""
    return heads if heads.stride(3) == 1 else heads.contiguous()


def sizes(query: Tensor, key: Tensor, sight: Sight) -> ctypes.Array[ctypes.c_int64]:
    """The C struct `Sizes`: B, T, S, H, G, K, how far a query sees each way, and its segments' positions."""
    rows, tokens, heads, width = query.shape
    before = EVERYTHING if sight.window is None else sight.window - 1
    numbers = (rows, tokens, key.shape[1], heads, key.shape[2], width)
    after = 0 if sight.causal else EVERYTHING
    positions = tokens if sight.segments is None else sight.segments.shape[1]
    return (ctypes.c_int64 * 9)(*numbers, before, after, positions)


def extras(sight: Sight, bias: Tensor | None, d_bias: Tensor | None) -> Any:
    """The C struct `Extras`, by reference."""
    places = (None if x is None else x.data_ptr() for x in (bias, d_bias))
    return ctypes.byref(Extras(sight.soft_cap or 0, sight.dropout, sight.seed, *places))


def strides(*heads: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Of rows, positions and heads, tensor by tensor, as the C structs `Strides`."""
    flat = [stride for x in heads for stride in x.stride()[:3]]
    return (ctypes.c_int64 * len(flat))(*flat)
