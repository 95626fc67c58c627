"""Which of a model's layers a Hugging Face folder keeps as integers, and these layers out of a folder."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hasten.core.console import say
from hasten.core.errors import CheckpointError
from hasten.model.compressed_tensors import FIELD, Scheme, Unpacked, described, scheme_of, tensors_of_layer
from hasten.model.families.base import Family, Source, combine
from hasten.model.plain import Weight, put_integers
from hasten.model.quantized import QuantizedLinear, QuantizedWeight
from hasten.model.transformer import Transformer
from hasten.ops.quantize import RANGE

Parts = Mapping[str, Mapping[int, str]]
"""Their tensors, and the parameter of ours that each part of one is."""


@dataclass
class Kept:
    """What a folder has of layers that are integers."""

    tensors: dict[str, Tensor] = field(default_factory=dict)  # by their names in the file
    weights: set[str] = field(default_factory=set)  # names of the plain tensors in whose place they are
    config: dict[str, Any] = field(default_factory=dict)  # what `config.json` says of them


def kept_integers(
    model: Transformer,
    weights: Mapping[str, Weight],
    parts: Parts,
    sources: Mapping[str, Source],
    family: Family,
) -> Kept:
    """The linear layers that are integers, for a folder; nothing of a plain model.

    Tables of tokens are written as floats, which is said.  CheckpointError where their layer is not linear,
    or one matrix of theirs is several layers of ours of which some are floats.
    """
    kept, schemes = Kept(), dict[str, Scheme]()
    for theirs, ours in parts.items():
        layers = {part: weights[name] for part, name in ours.items()}
        found = {part: layer for part, layer in layers.items() if isinstance(layer, QuantizedLinear)}
        if found:
            module = theirs.removesuffix(".weight")
            schemes[module] = one_scheme(module, found, len(ours), sources[ours[0]])
            values = combine({p: layer.stored.unpacked() for p, layer in found.items()}, sources[ours[0]])
            scales = combine({p: layer.scales for p, layer in found.items()}, sources[ours[0]])
            kept.tensors |= tensors_of_layer(module, values, scales, schemes[module])
            kept.weights.add(theirs)
        elif any(isinstance(layer, QuantizedWeight) for layer in layers.values()):
            say(f"'{theirs}' is written as floats: compressed-tensors has linear layers as integers")
    if schemes:
        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        floats = {theirs for theirs, ours in parts.items() if ours[0].removesuffix(".weight") in linear}
        kept.config = {FIELD: described(schemes, ignored({*floats, *family.copies(model.config)}))}
    return kept


def ignored(weights: Collection[str]) -> list[str]:
    """The modules that these weights belong to."""
    return sorted(name.removesuffix(".weight") for name in weights)


def one_scheme(name: str, layers: Mapping[int, QuantizedLinear], parts: int, source: Source) -> Scheme:
    """The scheme of a matrix of theirs."""
    schemes = {scheme_of(layer) for layer in layers.values()}
    widest = max(schemes, key=lambda scheme: scheme.bits)  # it has the integers of the others too
    if source.transposed:
        raise CheckpointError(
            f"'{name}' is no linear layer in transformers but one that compressed-tensors leaves out; write"
            " the model to=gguf"
        )
    if len(layers) < parts:
        raise CheckpointError(
            f"'{name}' is one matrix there and several layers here, of which some are no integers; quantise"
            " them all, or none"
        )
    return widest


@torch.no_grad()
def hold_integers(
    model: Transformer, sources: Mapping[str, Source], names: Mapping[str, str], tensors: Unpacked
) -> None:
    """Put the integers of a folder in the place of the floats that they stand for.

    `names` are those in the file of tensors by their plain names.  Where hasten has no layer for them they
    stay floats, which is said: scales that float16 does not hold, groups of several sizes.
    """
    holders = {name.removesuffix(".weight"): source for name, source in sources.items()}
    layers = dict(model.named_modules())
    found = {
        name: (source, names[source.name].removesuffix(".weight"))
        for name, source in holders.items()
        if name in layers and names.get(source.name, "").removesuffix(".weight") in tensors.modules
    }
    read = {name: (source, tensors.layer(module)) for name, (source, module) in found.items()}
    kinds = {(scheme.group, scheme.activations) for _, (_, _, scheme) in read.values()}
    if len(kinds) > 1 or not all(holdable(source, *layer) for source, layer in read.values()):
        say(f"{tensors.where}: its integers become floats, for hasten has no layer for such groups or scales")
        return
    for name, (source, (values, scales, scheme)) in read.items():
        integers = source.extract(values), source.extract(scales)
        grid, activations = (scheme.bits, scheme.group), scheme.activations == "int8"
        put_integers(model, name, integers, grid, activations=activations)


def holdable(source: Source, values: Tensor, scales: Tensor, scheme: Scheme) -> bool:
    """Whether a layer of ours can hold these exactly."""
    short = scales.to(torch.float16)
    lowest, highest = RANGE[scheme.bits]
    inside = lowest <= int(values.min()) and int(values.max()) <= highest
    return not source.transposed and inside and torch.equal(short.to(scales.dtype), scales)
