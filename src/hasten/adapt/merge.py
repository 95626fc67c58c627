"""Adapters folded into the weights they stand beside, taken out again, and how far apart two models are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.adapt.linear import LoraLinear
from hasten.adapt.lora import adapted_layers
from hasten.core.errors import ConfigError
from hasten.model.transformer import Seq2Seq, Transformer, assemble

ROWS, TOKENS = 2, 64
"""Of the random text that two models are compared on."""


def merged(model: Transformer) -> Transformer:
    """The plain model that does what an adapted one does; weights without a pair are shared with it.

    Weights that are packed are unpacked first: the pair is added to what it was trained beside.
    """
    return plain(model, LoraLinear.merged_weight)


def unmerged(model: Transformer) -> Transformer:
    """The plain model that this adapted one's pairs, merged, would make the weights here of.

    For a merged model that is all there is left, with the adapter loaded beside it.  ConfigError for DoRA:
    the lengths that rows had before they were stretched are in neither.
    """
    stretched = [name for name, layer in adapted_layers(model).items() if layer.lora_magnitude is not None]
    if stretched:
        raise ConfigError(
            f"{stretched[0]}: is adapted by DoRA, which cannot be taken out of merged weights, for the"
            " lengths of their rows are gone; go back to the model that was adapted"
        )
    return plain(model, lambda layer: layer.base_weight().double() - layer.delta())


def plain(model: Transformer, weight_of: Callable[[LoraLinear], Tensor]) -> Transformer:
    """A model without pairs, each adapted layer with the weight that `weight_of` makes of it."""
    with torch.device("meta"):
        other: Transformer = assemble(model.config)
    layers = {f"{name}.weight": layer for name, layer in adapted_layers(model).items()}
    held, weights = model.state_dict(), dict[str, Tensor]()
    for name in other.state_dict():
        layer = layers.get(name)
        weights[name] = held[name] if layer is None else weight_of(layer).to(layer.lora_a.dtype)
    other.load_state_dict(weights, assign=True)
    return other.train(model.training)


@dataclass(frozen=True)
class Divergence:
    """How far two models are apart on the same text."""

    largest: float
    """The largest absolute difference of a score, or of a number of a hidden state where there is no head."""
    kl: float
    """Mean Kullback-Leibler divergence of the second from the first, in nats a place; 0 without a head."""


@torch.no_grad()
def divergence(model: Transformer, other: Transformer, inputs: dict[str, Tensor]) -> Divergence:
    """How far `other` is from `model`, both in evaluation mode, on any text, such as `random_inputs`."""
    ours, theirs = scores(model, inputs), scores(other, inputs)
    largest = (ours - theirs).abs().max().item()
    if model.config.head == "none":
        return Divergence(largest, 0.0)
    log_p, log_q = F.log_softmax(ours, dim=-1), F.log_softmax(theirs, dim=-1)
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).double().sum(dim=-1).mean()
    return Divergence(largest, max(kl.item(), 0.0))  # rounding may take it below zero


def scores(model: Transformer, inputs: dict[str, Tensor]) -> Tensor:
    """Scores [B, T, V] in float32, or hidden states where the model has no head."""
    hidden = model(**inputs)
    return (hidden if model.config.head == "none" else model.logits(hidden)).float()


def random_inputs(model: Transformer, seed: int = 0) -> dict[str, Tensor]:
    """Random ids [B, T] for a model's forward pass, and for one that reads a source random ids of that."""
    config, random = model.config, torch.Generator().manual_seed(seed)
    shape, device = (ROWS, min(TOKENS, config.max_positions)), next(model.parameters()).device
    inputs = {"tokens": torch.randint(config.vocabulary, shape, generator=random).to(device)}
    if isinstance(model, Seq2Seq):
        source = torch.randint(config.source_vocabulary, shape, generator=random)
        inputs["source"] = source.to(device)
    return inputs
