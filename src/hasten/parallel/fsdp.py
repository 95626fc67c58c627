"""Weights, gradients and optimizer shared among replicas (FSDP2; ZeRO: Rajbhandari et al. 2020)."""

from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from hasten.model.transformer import Transformer
from hasten.parallel.grid import Grid


def shard(model: nn.Module, grid: Grid, *, half: bool = False) -> None:
    """Leave a share of each parameter here; whole ones are gathered for a block at a time.

    With `half` they are gathered in bf16, in which the products are made anyway: half of what is sent.  The
    shares and the sums of gradients stay float32.

    What is in no block (embedding, last norm, head) is the root's, and stays gathered until the end of the
    backward pass: a loss may use the head after the forward pass, on any number of chunks.  Gradients are
    summed, not averaged: the loss was divided once, by the count of the whole step.
    """
    # Inputs stay as they are: the cosines and sines of positions are not to be rounded.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in cast(Transformer, model).blocks():
        fully_shard(
            block, mesh=grid.fsdp_mesh, mp_policy=policy, reshard_after_forward=grid.config.stage == 3
        )
    fully_shard(model, mesh=grid.fsdp_mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def sum_at(model: nn.Module, now: bool, stage: int) -> None:
    """Say before a backward pass whether gradients are added up in it, as they are in a step's last.

    Where gradients are shared (stage 2 and 3) each pass adds them up, so that none is held whole.  The root's
    weights stay whole until the last pass: losses of a pipeline may wait for theirs, and use the head.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now or stage > 1)
        model.set_is_last_backward(now)
        model.set_reshard_after_backward(now, recurse=False)


def forget_whole(model: nn.Module) -> None:
    """Let go of gathered weights after a forward pass without a backward: the next update makes them old."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
