"""Cross-entropy over a large vocabulary.  Letters in shapes: N tokens, D model width, V vocabulary."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from hasten.core.batch import IGNORE
from hasten.ops.kernels.call import usable
from hasten.ops.kernels.cross_entropy import cross_entropy_rows

Head = Callable[[Tensor], Tensor]
"""Hidden states [..., D] to logits [..., V]."""
OverLogits = Callable[..., Tensor]
"""A function with the arguments of `loss_over_logits`, in its place."""
SLICE_NUMBERS = {"cpu": 2**18, "cuda": 2**27}
"""Logits in float32 at a time: a megabyte stays in a core's cache; a GPU wants large kernels instead."""


class Terms(NamedTuple):
    """What belongs to a loss besides logits and targets, as in `linear_cross_entropy`."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    soft_cap: float | None = None


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """Squeeze x smoothly into (-cap, cap), the identity near zero (Gemma 2, 2024)."""
    return cap * torch.tanh(x / cap)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    chunk_tokens: int | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
    over: OverLogits | None = None,
) -> Tensor:
    """Sum of -log softmax(hidden weight^T + bias)[target] over the targets that count.

    hidden [N, D], weight [V, D], targets [N], bias [V] -> float32 scalar.  With `chunk_tokens`, only that
    many tokens' logits exist at any time; None makes all at once, which is faster where [N, V] fits.

    `z_loss` adds its multiple of the squared log of the softmax's denominator, which keeps logits from
    drifting (Chowdhery et al. 2022).  `label_smoothing` moves that share of a target's weight to all of V.
    `soft_cap` squeezes the logits first.  `over` is told the logits of each chunk in place of
    `loss_over_logits`, where V is a part of a vocabulary.
    """
    terms, targets = Terms(z_loss, label_smoothing, soft_cap), targets.long()
    chunk = max(len(targets), 1) if chunk_tokens is None else chunk_tokens
    if over is None and chunk >= len(targets) and torch.compiler.is_compiling():
        return cross_entropy_sum(F.linear(hidden, weight, bias), targets, terms)  # a compiler fuses it itself
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias)):
        return LinearCrossEntropy.apply(hidden, weight, targets, bias, chunk, terms, over)
    nothing = (False,) * 3
    return loss_and_gradients(
        hidden, weight, targets, bias, chunk=chunk, terms=terms, wanted=nothing, over=over
    )[0]


def cross_entropy_sum(logits: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """The loss of `linear_cross_entropy` from any logits [N, V], written out in float32."""
    logits = logits.float() if terms.soft_cap is None else soft_cap(logits.float(), terms.soft_cap)
    smoothing = terms.label_smoothing
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    if terms.z_loss:
        counted = (targets != IGNORE).float()
        loss = loss + terms.z_loss * (logits.logsumexp(dim=-1).square() * counted).sum()
    return loss


class LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy`, whose gradients are made in the forward pass, while a chunk's logits are there.

    The gradient with respect to the logits takes their place, so nothing of shape [N, V] is kept, copied or
    computed again (as in Hsu et al. 2024, "Liger Kernel"); the backward pass multiplies by a number.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd has no keywords)
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        chunk: int,
        terms: Terms,
        over: OverLogits | None,
    ) -> Tensor:
        needed = ctx.needs_input_grad
        wanted = needed[0], needed[1], needed[3]
        loss, *gradients = loss_and_gradients(
            hidden, weight, targets, bias, chunk=chunk, terms=terms, wanted=wanted, over=over
        )
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = (
            None if x is None else x.to(dtype, copy=True).mul_(gradient)
            for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return hidden, weight, None, bias, None, None, None


def loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    chunk: int,
    terms: Terms,
    wanted: Sequence[bool],
    over: OverLogits | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Summed loss [] in float32, and its gradients by hidden states, weight and bias, if `wanted`.

    The weight's is summed over chunks in float32, and in the precision of the product where there is only
    one; the bias's always in float32.
    """
    dtype = product_dtype(hidden)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    total = torch.zeros((), device=hidden.device)
    dhidden, dweight = torch.empty_like(hidden) if wanted[0] else None, None
    dbias = torch.zeros(len(weight), device=hidden.device) if bias is not None and wanted[2] else None
    buffer = rows_apart(hidden, min(chunk, len(hidden)), len(weight))
    for start in range(0, len(hidden), chunk):
        piece = hidden[start : start + chunk]
        logits = torch.mm(piece, weight.t(), out=buffer[: len(piece)])
        its = targets[start : start + chunk]
        total += (over or loss_over_logits)(logits, its, terms, bias, gradient=any(wanted))
        if dhidden is not None:
            torch.mm(logits, weight, out=dhidden[start : start + chunk])
        if wanted[1]:
            share = torch.mm(logits.t(), piece)
            dweight = share if dweight is None else dweight.float().add_(share)
        if dbias is not None:
            dbias += logits.sum(dim=0)  # asking for float32 here takes ten times as long
    return total, dhidden, dweight, dbias


def rows_apart(like: Tensor, rows: int, width: int) -> Tensor:
    """An empty [rows, width] whose rows begin at multiples of 64 numbers.

    Read by columns, as for the weight's gradient, a matrix of odd width is slow: 50,257 columns, 1.2 times.
    A compiler refuses such rows as a product's output, and lays out memory by itself.
    """
    apart = 1 if torch.compiler.is_compiling() else 64
    return like.new_empty(rows, -(-width // apart) * apart)[:, :width]


def product_dtype(x: Tensor) -> torch.dtype:
    """In what precision a matrix product of x is computed here."""
    device = x.device.type
    if is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def loss_over_logits(
    logits: Tensor, targets: Tensor, terms: Terms, bias: Tensor | None = None, *, gradient: bool
) -> Tensor:
    """Summed loss [] of logits [N, V], to which a bias [V] comes in float32.

    Where the `gradient` is wanted, it takes the place of the logits.
    """
    if usable(logits, targets, *([] if bias is None else [bias])):
        return cross_entropy_rows(logits, targets, bias, gradient=gradient, **terms._asdict())
    if torch.compiler.is_compiling():
        return slice_loss(logits, targets, terms, bias, gradient)  # fused, it makes no copy in float32
    pieces = [slice_loss(x, its, terms, bias, gradient) for x, its in slices(logits, targets)]
    return torch.stack(pieces).sum()


def slice_loss(logits: Tensor, targets: Tensor, terms: Terms, bias: Tensor | None, gradient: bool) -> Tensor:
    """`loss_over_logits` in plain PyTorch, for rows whose copy in float32 is small."""
    counted = targets != IGNORE
    column = targets.masked_fill(~counted, 0)[:, None]
    scores = scores_of(logits, terms, bias)
    log_z = scores.logsumexp(dim=-1)
    mean = scores.mean(dim=-1) if terms.label_smoothing else None
    loss = loss_of(log_z, scores.gather(1, column)[:, 0], mean, terms)
    if gradient:
        hits = torch.ones_like(log_z)
        slope = slope_of(scores, log_z, column, hits, terms=terms, vocab_size=logits.shape[1])
        logits.copy_(slope.masked_fill_(~counted[:, None], 0))
    return loss.masked_fill(~counted, 0).sum()


def scores_of(logits: Tensor, terms: Terms, bias: Tensor | None) -> Tensor:
    """What the softmax is taken of: float32 [N, V]."""
    scores = logits.float() if bias is None else logits.float() + bias
    return scores if terms.soft_cap is None else soft_cap(scores, terms.soft_cap)


def loss_of(log_z: Tensor, hit: Tensor, mean: Tensor | None, terms: Terms) -> Tensor:
    """The loss [N] from the log of the softmax's denominator, the target's score and, to smooth, the mean."""
    if mean is not None:
        hit = (1 - terms.label_smoothing) * hit + terms.label_smoothing * mean
    return log_z - hit + terms.z_loss * log_z.square()


def slope_of(
    scores: Tensor, log_z: Tensor, column: Tensor, hits: Tensor, *, terms: Terms, vocab_size: int
) -> Tensor:
    """The gradient by logits [N, V], all of a vocabulary's or some.

    `column` [N, 1] is the target's, where `hits` [N] is 1; where it is 0, the target is none of these.
    """
    slope = (scores - log_z[:, None]).exp_()  # the softmax
    slope *= (1 + 2 * terms.z_loss * log_z)[:, None]
    slope -= terms.label_smoothing / vocab_size
    slope.scatter_add_(1, column, ((terms.label_smoothing - 1) * hits)[:, None])
    if terms.soft_cap is not None:
        slope *= 1 - (scores / terms.soft_cap).square()
    return slope


def slices(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of all tensors, as many at a time as make `SLICE_NUMBERS` logits, and at least one."""
    numbers = SLICE_NUMBERS.get(logits.device.type, SLICE_NUMBERS["cuda"])
    rows = max(1, numbers // logits.shape[1])
    return zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)


def token_log_probs(
    logits: Head, hidden: Tensor, targets: Tensor, *, chunk_tokens: int | None = None
) -> Tensor:
    """Log-probability of each target: hidden [..., D], targets [...] -> float32 [...]; 0 where IGNORE.

    In float64 where the logits are.  With `chunk_tokens`, only that many tokens' logits exist at any time:
    those that a gradient needs are made again for it (Chen et al. 2016).
    """
    states, wanted = hidden.flatten(0, -2), targets.flatten()
    if chunk_tokens is None or chunk_tokens >= len(wanted):
        return log_probs_of(logits, states, wanted).view(targets.shape)
    pieces = zip(states.split(chunk_tokens), wanted.split(chunk_tokens), strict=True)
    again = partial(checkpoint, log_probs_of, logits, use_reentrant=False, preserve_rng_state=False)
    scores = [again(*piece) for piece in pieces]
    return torch.cat(scores).view(targets.shape)


def log_probs_of(logits: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """`token_log_probs` of states [N, D] at once."""
    scores = logits(hidden)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return -F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="none")
