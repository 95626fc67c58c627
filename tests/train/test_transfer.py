"""Rates that follow the size, checked by the coordinates of models trained for a few steps."""

from dataclasses import replace
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.batch import Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train.engine import Whole
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer, Rates
from hasten.train.step import train_step
from hasten.train.transfer import KINDS, LARGEST, Base, factors, kind

VOCAB, STEPS = 64, 10
WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8)
FLAT = 0.1
"""The slope in log-log that counts as none."""
Config = MuonConfig | AdamWConfig


def shape(dim: int = 64, num_layers: int = 2) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "preset": "hasten-tiny",
            "vocab_size": VOCAB,
            "dim": dim,
            "num_heads": dim // 32,
            "num_layers": num_layers,
        }
    )


def make_batch(step: int) -> Batch:
    """Rows in which four tokens out of five follow from the one before."""
    random = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (8, 33), generator=random)
    for i in range(1, 33):
        follows = torch.rand(8, generator=random) < 0.8
        tokens[:, i] = torch.where(follows, (5 * tokens[:, i - 1] + 7) % VOCAB, tokens[:, i])
    return Batch(tokens[:, :-1], tokens[:, 1:])


def trained(config: ModelConfig, optimizer: Config) -> Decoder:
    """A model after STEPS steps at its size's rates; with Muon, at half of them, it is still learning."""
    multiplier = 0.5 if optimizer.kind == "muon" else 1.0
    model = build(config, seed=0)
    engine = Whole(model, CrossEntropy(), Runtime(torch.device("cpu")), precision="fp32", compiled=False)
    rates = Rates.at(optimizer, config, Base().batch_tokens)
    update = Optimizer(model, optimizer, replace(rates, turns=1))
    for step in range(STEPS):
        train_step(engine, update, [make_batch(step)], multiplier=multiplier)
    return model


@torch.no_grad()
def coordinates(model: Decoder) -> dict[str, float]:
    """Mean |activation| of what leaves each layer, and how far the right token stands out."""
    found: dict[str, float] = {}

    def note(name: str) -> Any:
        return lambda _module, _inputs, output: found.update({name: output.abs().mean().item()})

    handles = [block.register_forward_hook(note(f"layer {n}")) for n, block in model.layers.items()]
    batch = make_batch(STEPS)
    logits = model.logits(model(batch.tokens))
    for handle in handles:
        handle.remove()
    right: Tensor = logits.gather(-1, batch.targets[..., None])[..., 0]
    return {**found, "margin": (right - logits.mean(-1)).mean().item()}


def slope(sizes: tuple[int, ...], values: list[float]) -> float:
    """Of the straight line through log value over log size."""
    xs, ys = [log(size) for size in sizes], [log(value) for value in values]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def over_width(optimizer: Config) -> dict[str, float]:
    """Slopes of what leaves each layer, and of the margin."""
    found = [coordinates(trained(shape(dim=dim), optimizer)) for dim in WIDTHS]
    return {name: slope(WIDTHS, [each[name] for each in found]) for name in found[0]}


def over_depth(optimizer: Config) -> float:
    """Slope of what leaves the last layer."""
    found = [coordinates(trained(shape(num_layers=depth), optimizer)) for depth in DEPTHS]
    return slope(DEPTHS, [each[f"layer {depth - 1}"] for depth, each in zip(DEPTHS, found, strict=True)])


def test_with_muon_the_rules_keep_every_layer_and_the_margin_flat_in_width() -> None:
    ruled, plain = over_width(MuonConfig()), over_width(MuonConfig(base=None))
    assert all(abs(each) < FLAT for each in ruled.values()), ruled
    assert plain["margin"] > 5 * FLAT, plain  # the head is the one that needs a rule


def test_with_adamw_the_rules_keep_every_layer_and_the_margin_flat_in_width() -> None:
    rates = AdamWConfig(learning_rate=3e-3)
    ruled, plain = over_width(rates.model_copy(update={"base": Base()})), over_width(rates)
    assert all(abs(each) < FLAT for each in ruled.values()), ruled
    assert min(plain.values()) > 5 * FLAT, plain


@pytest.mark.parametrize("optimizer", [MuonConfig(), AdamWConfig(learning_rate=3e-3, base=Base())])
def test_the_stream_is_flat_in_depth_with_the_rules_and_not_without(optimizer: Config) -> None:
    assert abs(over_depth(optimizer)) < FLAT
    assert over_depth(optimizer.model_copy(update={"base": None})) > 1.5 * FLAT


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_rules_change_nothing_at_the_base_and_without_one(optimizer: str) -> None:
    base = Base(dim=64, num_layers=2, batch_tokens=512)
    assert factors(base, shape(), 512, optimizer=optimizer) == dict.fromkeys(KINDS, 1.0)
    assert factors(None, shape(dim=512), 999, optimizer=optimizer) == dict.fromkeys(KINDS, 1.0)


def test_every_factor_is_the_power_that_the_rules_state() -> None:
    base = Base(dim=32, num_layers=1, batch_tokens=512)
    assert factors(base, shape(dim=64, num_layers=4), 2048, optimizer="muon") == {
        "matrix": 2.0,
        "output": 0.5,
        "embedding": 2.0,
        "head": 1.0,
        "vector": 2.0,
        "adapter": 2.0,
    }
    assert factors(base, shape(dim=64, num_layers=4), 512, optimizer="adamw") == {
        "matrix": 0.5,
        "output": 0.125,
        "embedding": 1.0,
        "head": 0.5,
        "vector": 1.0,
        "adapter": 1.0,
    }


def test_batches_of_any_size_at_most_double_the_rates() -> None:
    found = factors(Base(batch_tokens=512), shape(), 2**20, optimizer="muon")
    assert found["vector"] == LARGEST == 2.0


def test_matrices_that_end_a_branch_are_told_by_their_names() -> None:
    model = build(shape(), seed=0)
    assert {name for name, _ in model.named_parameters() if kind(name) == "output"} == {
        f"layers.{i}.{end}.weight" for i in range(2) for end in ("attention.out", "ffn.down")
    }


def test_the_optimizer_uses_the_rates_of_the_size() -> None:
    config, optimizer = shape(num_layers=4), MuonConfig(base=Base(dim=64, num_layers=2, batch_tokens=512))
    rates = Rates.at(optimizer, config, batch_tokens=512)
    model = build(config, seed=0)
    update = Optimizer(model, optimizer, rates)
    used = {update.names[p]: group["lr"] for group in update.groups for p in group["params"]}
    assert used == {name: rates[kind(name)] for name, _ in model.named_parameters()}
    assert rates["output"] == optimizer.learning_rate / 2
