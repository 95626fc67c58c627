"""Layers that are integers already, in the blocks of GGUF: the same integers and scales, not rounded again.

A block has 32 numbers and a scale.  Groups of any multiple of 32 are blocks that share theirs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.model.gguf.names import Place
from hasten.model.gguf.quant import BLOCK, Q4_0, Q8_0, Bytes, Format, pack
from hasten.model.quantized import QuantizedWeight

Layers = Sequence[tuple[Place, QuantizedWeight]]


def format_of_integers(name: str, layers: Layers, parts: int) -> Format:
    """The format that has the integers of a tensor's `layers`, Q8_0 where some have four bits and some eight.

    CheckpointError where there is none.
    """
    layer = layers[0][1]
    if len(layers) < parts:
        raise CheckpointError(
            f"'{name}' is one matrix in GGUF and several layers here, of which some are no integers; quantise"
            " them all, or none"
        )
    inputs, group = layer.shape[1], group_of(layer)
    if group % BLOCK:
        raise CheckpointError(
            f"'{name}' has {inputs:,} inputs in groups of {group:,}, and GGUF has"
            f" blocks of {BLOCK}; quantise with group_size: {BLOCK}, or write dtype=float16"
        )
    return common_format(layers)


def common_format(layers: Layers) -> Format:
    """The smallest format that has the integers of all layers."""
    return Q8_0 if any(layer.bits == 8 for _, layer in layers) else Q4_0


def repack(layers: Layers) -> Bytes:
    """The bytes of a tensor whose rows are those of `layers` in the order of their parts."""
    ordered = sorted(layers, key=lambda layer: layer[0].part)
    values = torch.cat([place.theirs(layer.stored.unpacked()) for place, layer in ordered])
    scales = torch.cat([place.theirs(scale_of_blocks(layer)) for place, layer in ordered])
    integers = values.to(torch.int8).contiguous().numpy().reshape(-1, BLOCK)
    return pack(
        integers, scales.contiguous().numpy().astype(np.float32).reshape(-1, 1), common_format(layers)
    )


def scale_of_blocks(layer: QuantizedWeight) -> Tensor:
    """The scale of each block of 32: [O, I / 32]."""
    return layer.scales.repeat_interleave(group_of(layer) // BLOCK, dim=1)


def group_of(layer: QuantizedWeight) -> int:
    """How many numbers of a row share a scale."""
    return layer.shape[1] // layer.scales.shape[1]
