"""Low-rank adaptation of a whole model: which layers it changes, what is trained, and how it is switched off.

    adapt(model, config, rank)   structure: on any device, the meta device too
    ...                          weights of the base, first values of the pairs (`model/initial.py`)
    settle(model)                what first values need the base for

Whoever copies the base's weights by name hands those over that are packed (`nf4.packed_weights`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hasten.adapt.config import ALL_LINEAR, LoraConfig, LowRank
from hasten.adapt.linear import LoraLinear
from hasten.adapt.nf4 import PackedLoraLinear
from hasten.core.errors import ConfigError, did_you_mean
from hasten.model.transformer import Transformer
from hasten.ops.low_rank import row_norms

TRAINED_WHOLE = ("head", "head_bias", "pooler", "transform")
"""Between the last hidden state and the classes: new with a task, and small."""


def adapt(model: Transformer, config: LoraConfig, rank: int) -> None:
    """Freeze `model` and put thin pairs of this rank beside the linear layers that `config.targets` names.

    In place, and on any device: no weight is read.  Names of parameters stay, packed weights' apart.
    Raises ConfigError for a pattern that matches nothing.
    """
    places = targets_of(model, config.targets)
    double = config.double_quantization if config.base == "nf4" else None
    put_beside(model, dict.fromkeys(places, config.low_rank(rank)), double)


def put_beside(model: Transformer, pairs: Mapping[str, LowRank], double: bool | None = None) -> None:
    """Freeze `model` and put these pairs beside the layers so named, which `double`, if given, packs."""
    model.requires_grad_(False)
    for name, low_rank in pairs.items():
        linear = model.get_submodule(name)
        assert type(linear) is nn.Linear, f"{name} is a {type(linear).__name__}: a model is adapted once"
        packed = None if double is None else PackedLoraLinear(linear, low_rank, double=double)
        above, _, key = name.rpartition(".")
        setattr(model.get_submodule(above), key, packed or LoraLinear(linear, low_rank))
    for name in trained_whole(model):
        model.get_parameter(name).requires_grad_(True)


def targets_of(model: Transformer, patterns: tuple[str, ...]) -> list[str]:
    """The names of the linear layers in blocks that match one of `patterns`; `all-linear` matches each."""
    known = block_linears(model)
    if missed := next((p for p in patterns if not any(matches(name, p) for name in known)), None):
        kinds = sorted({f"*.{name.rpartition('.')[2]}" for name in known})
        near = did_you_mean(missed, [*kinds, *known])
        raise ConfigError(
            f"adapt.targets: {missed!r} matches no linear layer of a block.{near} There are"
            f" {', '.join(kinds)}, each by its name, such as {known[0]}, and {ALL_LINEAR} for every one"
        )
    return [name for name in known if any(matches(name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
    """Whether a linear layer in a block is meant by a pattern."""
    return pattern == ALL_LINEAR or fnmatchcase(name, pattern)


def block_linears(model: Transformer) -> list[str]:
    """The names of all linear layers of all blocks that are here, in the model's order."""
    inside = {id(module) for block in model.blocks() for module in block.modules()}
    named = model.named_modules()
    return [name for name, module in named if isinstance(module, nn.Linear) and id(module) in inside]


def trained_whole(model: Transformer) -> list[str]:
    """The parameters that are trained beside the pairs: of a head of classes, a pooler, a transform."""
    classes = model.config.head in ("pooled_classes", "token_classes")
    names = TRAINED_WHOLE if classes else ("pooler", "transform")
    return [name for name, _ in model.named_parameters() if name.partition(".")[0] in names]


def trained_names(model: nn.Module) -> list[str]:
    """The names of all parameters that training changes."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def adapted_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers that have a pair beside them, by name; none in a plain model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Set what depends on the weights of the base, once they are there and before the first step.

    That is the magnitudes of DoRA: the lengths of the base's rows.  A resumed training has them already.
    """
    for layer in adapted_layers(model).values():
        if layer.lora_magnitude is not None:
            weight, b = here(layer.base_weight()), torch.zeros_like(here(layer.lora_b))
            # By the same sums as in a forward pass, so that at first nothing is stretched, to the bit.
            norms = row_norms(weight, b.new_zeros(b.shape[1], weight.shape[1]), b, layer.scale)
            here(layer.lora_magnitude).copy_(norms)


def here(tensor: torch.Tensor) -> torch.Tensor:
    """What of it this process holds, as FSDP shares it: whole rows."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """The model without its pairs: the reference that a training by preferences compares with.

    What is trained whole, such as a head of classes, stays as it is.
    """
    layers = adapted_layers(model).values()
    before = [layer.active for layer in layers]
    for layer in layers:
        layer.active = False
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active
