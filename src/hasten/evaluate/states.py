"""What a model makes of a batch, to be measured.  Letters in shapes: B rows, T tokens, D model width."""

import torch
from torch import Tensor

from hasten.core.batch import Batch
from hasten.model.evaluating import evaluating
from hasten.model.transformer import Transformer


def states(model: Transformer, batch: Batch, *, bf16: bool = False) -> Tensor:
    """The model's last hidden states [B, T, D] of a batch, on the model's device, without dropout."""
    device = next(model.parameters()).device
    here = batch.to(device)
    with evaluating(model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        hidden: Tensor = model(here.tokens, positions=here.positions, segments=here.segments, **here.extra)
    return hidden
