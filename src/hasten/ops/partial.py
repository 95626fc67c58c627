"""Attention over a part of the keys, to be joined with attention over the others.

Besides its output a part gives the log-sum-exp of every query's scores, by which outputs of parts are weighed
against each other; with the log-sum-exp over *all* keys the gradient of each part can be had alone (Dao et
al. 2022, arXiv:2205.14135; Liu et al. 2023, arXiv:2310.01889).

Letters in shapes as in `attention.py`.
"""

import importlib.util
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from hasten.ops import flex
from hasten.ops.blockwise import block_size
from hasten.ops.kernels import attention as kernel
from hasten.ops.kernels.attention import Heads
from hasten.ops.sight import Sight

Corner = tuple[slice, slice]
"""Which queries and which keys."""
MOST_SCORES = 2**22
"""Scores of a block that are written out at a time."""


class Part(NamedTuple):
    """How some queries look at some keys.

    If `causal`, or in a window, the two are the same places, or stand as such: query t is at key t.  The
    numbers of queries [B, T] and keys [B, S] are in `sight`, both or neither.
    """

    sight: Sight
    scale: float
    soft_cap: float | None = None


class Result(NamedTuple):
    """What came out over all keys that some queries see."""

    out: Tensor  # [B, T, H, K]
    lse: Tensor  # [B, H, T]
    grad: Tensor  # [B, T, H, K], of the loss with respect to the output


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, part: Part, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """query [B, T, H, K], key, value [B, S, G, K], bias [H, T, S] -> output [B, T, H, K], lse [B, H, T].

    The log-sum-exp is in float32 at least.  A query that sees none of these keys has the output 0 and the
    log-sum-exp -inf.
    """
    if kernel_takes(query, key, value, part):
        lse = torch.empty(query.shape[0], query.shape[2], query.shape[1])
        out = kernel.forward(dense((query, key, value)), placed(bias), kernel_sight(part), lse)
        return out, lse * math.log(2)  # the kernel counts in powers of two
    if flex_takes(query, bias):
        return flex_part(query, key, value, part)
    return written_part(query, key, value, part, bias)


def part_gradients(
    heads: Heads, part: Part, result: Result, bias: Tensor | None = None
) -> tuple[Heads, Tensor | None]:
    """What these keys and queries have of the gradients of query, key and value, and that of the bias."""
    if kernel_takes(*heads, part):
        out, lse, grad = result.out.contiguous(), (result.lse / math.log(2)).contiguous(), result.grad
        return kernel.backward(
            dense(heads),
            placed(bias),
            kernel_sight(part),
            out=out,
            lse=lse,
            grad=grad,
            d_bias=bias is not None,
        )
    if flex_takes(heads[0], bias):
        return flex_gradients(heads, part, result), None
    return written_gradients(heads, part, result, bias)


def join(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Add what other keys gave to `out` [B, T, H, K] and `lse` [B, H, T], in place, in their precision."""
    total = torch.logaddexp(lse, more_lse)
    base = total.masked_fill(
        total == -math.inf, 0.0
    )  # whoever saw nothing yet has weights of 0, not of 0 / 0
    out.mul_(by_query((lse - base).exp())).add_(more * by_query((more_lse - base).exp()))
    lse.copy_(total)


def by_query(figures: Tensor) -> Tensor:
    """[B, H, T] as [B, T, H, 1]."""
    return figures.transpose(1, 2)[..., None]


def kernel_takes(query: Tensor, key: Tensor, value: Tensor, part: Part) -> bool:
    """Whether `cpu/attention.cpp` does it; any sight of a `Part` suits it."""
    return kernel.kernel_attends(query, key, value, causal=False, scale=part.scale)


def kernel_sight(part: Part) -> kernel.Sight:
    """Who sees whom, in the kernel's words."""
    numbers = part.sight.segments, part.sight.key_segments
    mine, theirs = (None if x is None else x.to(torch.int64).contiguous() for x in numbers)
    return kernel.Sight(
        part.sight.causal, mine, theirs, part.scale, part.sight.window, part.soft_cap, dropout=0.0, seed=0
    )


def dense(heads: Heads) -> Heads:
    """Heads whose K numbers lie next to each other."""
    query, key, value = (kernel.dense(x) for x in heads)
    return query, key, value


def placed(bias: Tensor | None) -> Tensor | None:
    """The bias as the kernel reads it."""
    return None if bias is None else bias.float().contiguous()


def flex_takes(query: Tensor, bias: Tensor | None) -> bool:
    """Whether FlexAttention has its kernel for this, on a GPU."""
    return (
        query.device.type == "cuda"
        and bias is None
        and query.dtype != torch.float64
        and query.shape[3] >= flex.NARROWEST_HEAD
        and importlib.util.find_spec("triton") is not None
    )


@cache
def flex_kernel() -> Any:
    """FlexAttention compiled; without a compiler it writes out all scores."""
    return torch.compile(flex_attention, dynamic=False)


def flex_part(query: Tensor, key: Tensor, value: Tensor, part: Part) -> tuple[Tensor, Tensor]:
    """`attend_part` by FlexAttention, which passes over tiles that hold no visible pair."""
    cap = part.soft_cap

    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score if cap is None else cap * torch.tanh(score / cap)

    out, aux = flex_kernel()(
        *(x.transpose(1, 2) for x in (query, key, value)),
        score_mod=None if cap is None else capped,
        block_mask=flex.tile_mask(part.sight, query.shape[1], key.shape[1], query.device),
        scale=part.scale,
        enable_gqa=query.shape[2] != key.shape[2],
        return_aux=AuxRequest(lse=True),
    )
    return out.transpose(1, 2), aux.lse


def flex_gradients(heads: Heads, part: Part, result: Result) -> Heads:
    """`part_gradients` by FlexAttention's own backward pass, from a second forward pass.

    A weight over all keys is p = w p', with w = exp(own lse - lse) and p' the weight over these.  The
    scores' gradient p (dP - out grad) is p' (w dP - w own_out grad + w (own_out - out) grad): just what that
    pass makes of w grad for its output's gradient and w (own_out - out) grad for its log-sum-exp's.
    """
    out, lse, grad = result
    with torch.enable_grad():
        leaves = query, key, value = [x.detach().requires_grad_() for x in heads]
        own, own_lse = flex_part(query, key, value, part)
    seen = own_lse.detach()
    share = (seen - lse.masked_fill(lse == -math.inf, 0.0)).exp()  # [B, H, T]
    ahead = ((own.detach().float() - out.float()) * grad.float()).sum(dim=-1).transpose(1, 2)
    directions = (grad * by_query(share)).to(own.dtype), (share * ahead).to(own_lse.dtype)
    d_query, d_key, d_value = torch.autograd.grad((own, own_lse), leaves, directions)
    return d_query, d_key, d_value


def written_part(
    query: Tensor, key: Tensor, value: Tensor, part: Part, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`attend_part` from the formula, some queries at a time, in float32 at least."""
    query, key, value = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
    query, out = query * part.scale, torch.empty_like(query)
    lse = query.new_empty(query.shape[0], query.shape[2], query.shape[1])
    for corner in blocks(query, key, part.sight):
        rows, columns = corner
        scores, _ = scored(query[:, rows], key[:, columns], part, bias, corner)
        top = scores.amax(dim=-1)
        weights = weighed(scores, top)
        total = weights.sum(dim=-1)
        lse[..., rows] = top + total.log()
        out[:, rows] = mixed(weights, value[:, columns]) / by_query(total.masked_fill(total == 0, 1.0))
    return out, lse


def written_gradients(
    heads: Heads, part: Part, result: Result, bias: Tensor | None
) -> tuple[Heads, Tensor | None]:
    """`part_gradients` from the formula."""
    query, key, value, out, grad = (
        x.to(torch.promote_types(x.dtype, torch.float32)) for x in (*heads, result.out, result.grad)
    )
    d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
    d_bias = None if bias is None else torch.zeros_like(bias)
    delta = (out * grad).sum(dim=-1).transpose(1, 2)  # [B, H, T]
    query = query * part.scale
    for corner in blocks(query, key, part.sight):
        rows, columns = corner
        scores, slope = scored(query[:, rows], key[:, columns], part, bias, corner)
        weights = weighed(scores, result.lse[..., rows])
        d_value[:, columns] += gathered(weights, grad[:, rows], value.shape[2])
        d_scores = products(grad[:, rows], value[:, columns]).sub_(delta[..., rows, None]).mul_(weights)
        if d_bias is not None:
            d_bias[:, rows, columns] += d_scores.sum(dim=0)
        if slope is not None:
            d_scores *= slope
        d_query[:, rows] = mixed(d_scores, key[:, columns]) * part.scale
        d_key[:, columns] += gathered(d_scores, query[:, rows], key.shape[2])
    return (d_query, d_key, d_value), d_bias


def blocks(query: Tensor, key: Tensor, sight: Sight) -> Iterator[Corner]:
    """Queries to be scored together, and what keys their places let any of them see."""
    rows, tokens, heads, _ = query.shape
    size = min(block_size(tokens), max(1, MOST_SCORES // (rows * heads * key.shape[1])))
    for start in range(0, tokens, size):
        end = min(start + size, tokens)
        first = 0 if sight.window is None else max(0, start - sight.window + 1)
        yield slice(start, end), slice(first, end if sight.causal else key.shape[1])


def scored(
    query: Tensor, key: Tensor, part: Part, bias: Tensor | None, corner: Corner
) -> tuple[Tensor, Tensor | None]:
    """The scores [B, H, t, s] of scaled queries, -inf where hidden, and the slope of a soft cap there."""
    scores, slope = products(query, key), None
    if part.soft_cap is not None:
        share = torch.tanh(scores / part.soft_cap)
        scores, slope = part.soft_cap * share, 1 - share.square()
    if bias is not None:
        scores += bias[(slice(None), *corner)]
    hidden = hidden_pairs(part.sight, *corner, query.device)
    return (scores if hidden is None else scores.masked_fill_(hidden, -math.inf)), slope


def hidden_pairs(sight: Sight, rows: slice, columns: slice, device: torch.device) -> Tensor | None:
    """Which pairs of a block do not see each other, bool [B or 1, 1, t, s]; None if all do."""
    query = torch.arange(rows.start, rows.stop, device=device)[:, None]
    key = torch.arange(columns.start, columns.stop, device=device)
    hidden = None
    if sight.causal:
        hidden = (key > query)[None, None]
    if sight.window is not None:
        far = (key <= query - sight.window)[None, None]
        hidden = far if hidden is None else hidden | far
    if sight.segments is not None and sight.key_segments is not None:
        others = sight.segments[:, None, rows, None] != sight.key_segments[:, None, None, columns]
        hidden = others if hidden is None else hidden | others
    return hidden


def weighed(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse), in place: scores [B, H, t, s], lse [B, H, t]; 0 where nothing is seen."""
    return scores.sub_(lse.masked_fill(lse == -math.inf, 0.0)[..., None]).exp_()


def products(query: Tensor, key: Tensor) -> Tensor:
    """Every query with every key: query [B, t, H, K], key [B, s, G, K] -> [B, H, t, s]."""
    rows, tokens, heads, _ = query.shape
    return (stacked(query, key.shape[2]) @ key.permute(0, 2, 3, 1)).view(rows, heads, tokens, -1)


def mixed(weights: Tensor, value: Tensor) -> Tensor:
    """Values by weights: [B, H, t, s] and [B, s, G, K] -> [B, t, H, K]."""
    rows, heads, tokens, _ = weights.shape
    shared = weights.reshape(rows, value.shape[2], -1, weights.shape[3]) @ value.transpose(1, 2)
    return shared.view(rows, heads, tokens, -1).transpose(1, 2)


def gathered(weights: Tensor, query: Tensor, groups: int) -> Tensor:
    """Queries by weights, for each key: [B, H, t, s] and [B, t, H, K] -> [B, s, G, K]."""
    by_group = weights.reshape(weights.shape[0], groups, -1, weights.shape[3])
    return (by_group.transpose(2, 3) @ stacked(query, groups)).transpose(1, 2)


def stacked(query: Tensor, groups: int) -> Tensor:
    """The R heads that share a key below each other: [B, t, H, K] -> [B, G, R t, K]."""
    rows, _, _, width = query.shape
    return query.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(rows, groups, -1, width)
