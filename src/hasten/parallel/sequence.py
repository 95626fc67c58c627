"""What processes that share matrices send each other, in pairs: one forward, its counterpart backward.

    function    forward          backward         where (Shoeybi et al. 2019; Korthikanti et al. 2022)
    shared      as it is         all-reduce       before matrices split by columns
    summed      all-reduce       as it is         after matrices split by rows
    gathered    all-gather       reduce-scatter   the same two places, where tokens are split in between
    scattered   reduce-scatter   all-gather
    parted      own part         all-gather       where the split of tokens begins
    joined      all-gather       own part         where it ends

Letters in shapes: B rows, T tokens, D width, p processes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from hasten.core.errors import ConfigError

Move = Callable[[Tensor, ProcessGroup], Tensor]
# torch 2.13 has renamed these two, and warns at the old names.
all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
reduce_scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor


class Pair(torch.autograd.Function):
    """One move for a tensor, another for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Move, back: Move, group: ProcessGroup) -> Tensor:
        ctx.back, ctx.group = back, group
        return there(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradient, ctx.group), None, None, None


def shared(x: Tensor, group: ProcessGroup) -> Tensor:
    """x as it is, whose gradient is the sum of what all processes make of it."""
    return Pair.apply(x, same, total, group)


def summed(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of all processes' x; each of them goes on with the same."""
    return Pair.apply(x, total, same, group)


def gathered(x: Tensor, group: ProcessGroup) -> Tensor:
    """All tokens, whose gradients add up: [B, T / p, D] -> [B, T, D]."""
    return Pair.apply(x, all_tokens, own_sum, group)


def scattered(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of all processes' x at this one's tokens: [B, T, D] -> [B, T / p, D]."""
    return Pair.apply(x, own_sum, all_tokens, group)


def parted(x: Tensor, group: ProcessGroup) -> Tensor:
    """This process's tokens of what all have alike: [B, T, D] -> [B, T / p, D].

    Raises ConfigError where they do not divide.
    """
    count, parts = x.shape[1], distributed.get_world_size(group)
    if count % parts:
        raise ConfigError(
            f"parallel: sequence_parallel divides the tokens of a row by tensor ({parts}), and a row has"
            f" {count:,}; make it {-(-count // parts) * parts:,}, or write sequence_parallel: false"
        )
    return Pair.apply(x, own_tokens, all_tokens, group)


def joined(x: Tensor, group: ProcessGroup) -> Tensor:
    """All tokens, for what all processes go on with alike: [B, T / p, D] -> [B, T, D]."""
    return Pair.apply(x, all_tokens, own_tokens, group)


def same(x: Tensor, group: ProcessGroup) -> Tensor:
    """x; a view, for autograd wants another tensor than it gave."""
    del group
    return x.view_as(x)


def total(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over all processes, in the precision of x."""
    x = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(x, group=group)
    return x


def all_tokens(x: Tensor, group: ProcessGroup) -> Tensor:
    """[B, T / p, D] -> [B, T, D]; a tensor of its own, for FSDP warns of views."""
    return torch.cat(stacked(x, group).unbind(), dim=1)


def stacked(x: Tensor, group: ProcessGroup) -> Tensor:
    """What all processes have, in order of rank: [...] -> [p, ...]."""
    parts = distributed.get_world_size(group)
    found = x.new_empty(parts * x.shape[0], *x.shape[1:])
    all_gather(found, x.contiguous(), group=group)
    return found.unflatten(0, (parts, x.shape[0]))


def own_sum(x: Tensor, group: ProcessGroup) -> Tensor:
    """[B, T, D] -> [B, T / p, D], in the precision of x."""
    parts = x.unflatten(1, (distributed.get_world_size(group), -1)).movedim(1, 0).contiguous()
    found = torch.empty_like(parts[0])
    reduce_scatter(found, parts.flatten(0, 1), group=group)
    return found


def own_tokens(x: Tensor, group: ProcessGroup) -> Tensor:
    """[B, T, D] -> [B, T / p, D]."""
    part = x.chunk(distributed.get_world_size(group), dim=1)[distributed.get_rank(group)]
    return part.clone(memory_format=torch.contiguous_format)  # a view would keep all of x alive
