"""Gradients of the whole batch: their sum over processes, their norm, their clipping."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, distributed
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

BUCKET_BYTES = 64 * 2**20


@torch.no_grad()
def sum_gradients(parameters: Sequence[Tensor], group: distributed.ProcessGroup | None) -> None:
    """Add up each parameter's gradient over the group, in place; None is a group of one.

    A parameter without a gradient counts as zero, so that every process sends the same tensors whatever
    its share of the batch touched.
    """
    if group is None:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sent = []
    for bucket in buckets([p.grad for p in parameters if p.grad is not None]):
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
def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `max_norm`; return the norm before, []."""
    held = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([p.grad for p in held if p.grad is not None], foreach=True)
    if max_norm is not None:
        clip_grads_with_norm_(held, max_norm, norm, foreach=True)
    return norm
