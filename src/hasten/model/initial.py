"""First weights, each drawn from (seed, name) alone: no order, no subset and no device changes them."""

import hashlib

import torch
from torch import Tensor, nn

from hasten.model.config import ModelConfig

EMBEDDING_STD = 0.02
LOGIT_STD = 0.1
"""Spread of the first logits: close enough to none that the loss begins at ln V."""


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Give every parameter of `model` (with its `.config`) its first value, in place."""
    config = model.config
    assert isinstance(config, ModelConfig)
    for name, parameter in model.named_parameters():
        parameter.copy_(first_value(name, parameter.shape, config, seed))


def first_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """The value of the parameter `name` before training, float32 on the CPU.

    Of a pair of thin matrices beside a frozen one the second is zero, so that at first nothing changes (Hu et
    al. 2022).  What depends on the frozen weights, such as their packed form, is zero until they are there.
    """
    kind = name.rpartition(".")[2]
    if kind == "lora_a":  # as PEFT draws it: Kaiming's uniform of slope sqrt(5)
        return torch.empty(shape).uniform_(-1, 1, generator=generator_of(seed, name)).mul_(shape[1] ** -0.5)
    if kind.endswith("bias") or kind.startswith(("lora_", "nf4_")):
        return torch.zeros(shape)
    if len(shape) == 1:  # a norm's weight
        return torch.zeros(shape) if config.norm_offset else torch.ones(shape)
    drawn = torch.empty(shape).normal_(generator=generator_of(seed, name))
    return drawn.mul_(initial_std(name, shape, config))


def generator_of(seed: int, name: str) -> torch.Generator:
    """The random numbers of one parameter."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def initial_std(name: str, shape: torch.Size, config: ModelConfig) -> float:
    """Standard deviation of a matrix at the start."""
    match name.split("."):
        case ["embedding", _] if config.embedding_norm and not config.tied:
            return 1.0  # its scale is normalised away; at one, Adam's rate is relative to it
        case ["embedding", _] if not config.zero_init_outputs or not config.tied:
            return config.init_std or EMBEDDING_STD
        case [*_, "positions" | "token_types" | "relative" | "source_embedding", _]:
            return config.init_std or EMBEDDING_STD
        case ["embedding" | "head", _]:
            return LOGIT_STD / config.dim**0.5
        case [*_, "out" | "down", _]:
            if config.zero_init_outputs:
                return 0.0
            # Two branches a layer add up: with this the stream's variance does not grow with depth (GPT-2).
            return (config.init_std or shape[1] ** -0.5) / (2 * config.num_layers) ** 0.5
        case _:
            return config.init_std or shape[1] ** -0.5
