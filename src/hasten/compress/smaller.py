"""What all methods that take parameters away share: the smaller model, and what is said of it."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from hasten.compress.statistics import linear_layers
from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.factored import factored_layers
from hasten.model.quantized import quantized_weights
from hasten.model.transformer import Transformer, assemble


def rebuilt(model: Transformer, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Transformer:
    """A plain model of `config` that holds these tensors, in the mode that `model` is in."""
    with torch.device("meta"):
        other: Transformer = assemble(config)
    other.load_state_dict(tensors, assign=True)
    return other.train(model.training)


def check_plain(model: nn.Module, method: str, *, factored: bool = False) -> None:
    """Refuse a model whose matrices are integers, or, but for `factored`, pairs of thin ones."""
    if next(quantized_weights(model), None):
        raise ConfigError(f"{method}: the model is quantised; write quantize after this step, as the last")
    if not factored and factored_layers(model):
        raise ConfigError(f"{method}: the model is in matrices of low rank; write low_rank after this step")


def chosen(model: nn.Module, skip: Sequence[str], method: str) -> dict[str, nn.Linear]:
    """The matrices in blocks whose names match no pattern of `skip`; ConfigError where there is none."""
    layers = {
        name: layer
        for name, layer in linear_layers(model).items()
        if not any(fnmatchcase(name, pattern) for pattern in skip)
    }
    if not layers:
        raise ConfigError(f"{method}.skip: {list(skip)} leaves no layer; write fewer patterns, or none")
    return layers


def num_parameters(model: nn.Module) -> int:
    """All numbers that a model is made of; a tied matrix is counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def tell(method: str, what: str, before: int, after: int) -> None:
    """Say in one line what a method took away, and what is left."""
    say(f"{method}: {what}; {before:,} -> {after:,} parameters ({after / before - 1:+.1%})")
