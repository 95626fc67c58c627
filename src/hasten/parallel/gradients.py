"""Gradients of the whole batch: their sum over processes, their norm, their clipping."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hasten.parallel.arrangement import Arrangement, local

BUCKET_BYTES = 64 * 2**20


@torch.no_grad()
def sum_gradients(model: nn.Module, arrangement: Arrangement) -> None:
    """Add up each parameter's gradient over all processes that saw a part of it, in place.

    A parameter without a gradient counts as zero, so that every process sends the same tensors whatever
    its share of the batch touched.  FSDP has added up over rows and tokens what it shards.
    """
    if arrangement.grid.alone:
        return
    held = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in held.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grid = arrangement.grid
    rows = [p for p in held.values() if not isinstance(p, DTensor)]
    partial = [p for name, p in held.items() if name in arrangement.partial]
    work = [(rows, grid.group("data", "shard", "context")), (partial, grid.group("tensor"))]
    # Several stages hold a tied table; each has a group for it, and the names come in one order everywhere.
    work += [([held[name]], arrangement.stages[name]) for name in sorted(arrangement.stages.keys() & held)]
    for parameters, group in work:
        if group is not None:
            sum_over(group, [local(p.grad) for p in parameters if p.grad is not None])


def sum_over(group: ProcessGroup, gradients: Sequence[Tensor]) -> None:
    """Add up tensors over a group, in place, in few messages."""
    sent = []
    for bucket in buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        sent.append((bucket, flat, distributed.all_reduce(flat, group=group, async_op=True)))
    for bucket, flat, work in sent:
        work.wait()
        pieces = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])


def buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type in lists of about BUCKET_BYTES: few messages, each of a good size."""
    bucket, size = list[Tensor](), 0
    for gradient in gradients:
        if bucket and (size >= BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


@torch.no_grad()
def clip_gradients(
    parameters: Mapping[str, Tensor], max_norm: float | None, arrangement: Arrangement | None = None
) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `max_norm`; return the norm before, [].

    `parameters` are by name what is here of each.  Of boxes that several processes hold one counts.
    """
    held = [parameter for parameter in parameters.values() if parameter.grad is not None]
    norm = joint_norm({n: p.grad for n, p in parameters.items() if p.grad is not None}, arrangement)
    if max_norm is not None:
        clip_grads_with_norm_(held, max_norm, norm, foreach=True)
    return norm


def joint_norm(gradients: Mapping[str, Tensor], arrangement: Arrangement | None) -> Tensor:
    """The L2 norm [] of all gradients of a model, equal on all processes."""
    if arrangement is None or arrangement.all_here:
        return get_total_norm(gradients.values(), foreach=True)
    mine = [gradient for name, gradient in gradients.items() if arrangement.speaks_for[name]]
    square = get_total_norm(mine, foreach=True).square() if mine else torch.zeros(())
    square = square.to(arrangement.grid.device)
    distributed.all_reduce(square)
    return square.sqrt()
