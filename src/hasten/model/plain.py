"""Between the layers of a plain model and those that it has as integers or as two thin matrices."""

from typing import cast

import torch
from torch import Tensor, nn

from hasten.core.console import say
from hasten.model.factored import factored_layers
from hasten.model.quantized import (
    TABLES,
    Bits,
    Quantization,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedWeight,
    chosen,
    quantized_weights,
)

Weight = Tensor | QuantizedWeight


def plain_weights(model: nn.Module) -> dict[str, Weight]:
    """Every weight of `model` by name: integers as the layer that holds them, two thin matrices as one.

    The product of thin matrices is as large as the matrix that they took the place of: said once.
    """
    factored, quantised = factored_layers(model), dict(quantized_weights(model))
    inside = tuple(f"{name}." for name in factored)
    whole = (*inside, *(f"{name}." for name in quantised)) or ("\0",)
    live = model.state_dict(keep_vars=True)
    weights: dict[str, Weight] = {name: tensor for name, tensor in live.items() if not name.startswith(whole)}
    for name, layer in quantised.items():
        if not name.startswith(inside or ("\0",)):
            weights[f"{name}.weight"] = layer
            weights |= biased(name, getattr(layer, "bias", None))
    for name, pair in factored.items():
        weights[f"{name}.weight"] = pair.weight.detach()
        weights |= biased(name, pair.bias)
    if factored:
        say(f"{len(factored)} layers of low rank are written as whole matrices, which the format has alone")
    return weights


def biased(name: str, bias: Tensor | None) -> dict[str, Weight]:
    """The bias of a layer, where it has one."""
    return {} if bias is None else {f"{name}.bias": bias}


def numbers(weight: Weight) -> Tensor:
    """The weight as floats."""
    return weight.weight if isinstance(weight, QuantizedWeight) else weight


def type_of(weight: Weight) -> torch.dtype:
    """The type of the weight as floats."""
    return weight.like.dtype if isinstance(weight, QuantizedWeight) else weight.dtype


def put_integers(
    parent: nn.Module,
    name: str,
    integers: tuple[Tensor, Tensor],
    grid: tuple[Bits, int | None],
    *,
    activations: bool = False,
) -> None:
    """Put integers [O, I] with their scales [O, G] in the place of the layer `name` of `parent`.

    `grid` are their bits and group; with `activations` the layer rounds what it reads too.
    """
    layer = parent.get_submodule(name)
    twin: QuantizedWeight
    if isinstance(layer, nn.Embedding):
        twin = QuantizedEmbedding(layer, *grid)
    else:
        twin = QuantizedLinear(cast(nn.Linear, layer), *grid, integers=activations)
    twin.take(*integers)
    holder, _, last = name.rpartition(".")
    setattr(parent.get_submodule(holder), last, twin.to(cast(Tensor, layer.weight).dtype))


def quantization_of(model: nn.Module) -> Quantization | None:
    """Which layers of `model` are integers, as a checkpoint keeps it; None where none is.

    All must have groups of one size and read activations alike, as those that `put_quantized` makes have.
    """
    layers = dict(quantized_weights(model))
    if not layers:
        return None
    (group,) = {layer.group for layer in layers.values()}
    blocks = {name: layer for name, layer in layers.items() if name not in TABLES}
    bits: Bits = min((layer.bits for layer in blocks.values()), default=8)
    table = min((layer.bits for name, layer in layers.items() if name in TABLES), default=None)
    usual = Quantization(bits=bits, group_size=group, embedding_bits=table)
    return Quantization(
        bits=bits,
        group_size=group,
        activations="int8" if any(layer.integers for layer in blocks.values()) else "none",
        embedding_bits=table,
        eight_bits=tuple(name for name, layer in layers.items() if layer.bits != usual.bits_of(name)),
        skip=tuple(name for name in chosen(model, usual) if name not in layers),
    )
