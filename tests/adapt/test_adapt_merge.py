"""Adapters folded into their base and taken out again, and how far two models are apart."""

from typing import Any

import pytest
import torch
from tiny_adapted import KINDS, disturb, fresh_adapted, inputs_of, plain_model, scores
from torch import nn

from hasten.adapt.lora import adapted_layers, put_beside
from hasten.adapt.merge import divergence, merged, random_inputs, unmerged
from hasten.core.errors import ConfigError

WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "nf4": {"base": "nf4"},
    "nf4 dora": {"base": "nf4", "dora": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_merged_model_is_plain_and_does_the_same(kind: str, way: str) -> None:
    base = plain_model(kind)
    model = disturb(fresh_adapted(base, **WAYS[way])).eval()
    plain = merged(model)
    assert not adapted_layers(plain) and not plain.training
    assert {name: p.shape for name, p in plain.named_parameters()} == {
        name: p.shape for name, p in base.named_parameters()
    }
    ours, theirs = scores(model), scores(plain)
    assert (ours - theirs).norm() <= 1e-6 * ours.norm()
    assert (scores(base) - theirs).norm() > 1e-2 * ours.norm()
    for name, layer in adapted_layers(model).items():
        x = torch.randn(7, layer.in_features)
        one, other = layer(x), plain.get_submodule(name)(x)
        assert (one - other).abs().max() <= 1e-6 * one.abs().max(), name


@torch.no_grad()
def test_each_merged_weight_is_the_written_out_sum() -> None:
    base = plain_model("llama")
    model = disturb(fresh_adapted(base))
    plain = merged(model)
    for name, layer in adapted_layers(model).items():
        full = base.get_parameter(f"{name}.weight").double()
        full += layer.scale * layer.lora_b.double() @ layer.lora_a.double()
        torch.testing.assert_close(plain.get_parameter(f"{name}.weight").double(), full, rtol=0, atol=1e-6)


@torch.no_grad()
def test_what_was_merged_is_taken_out_again() -> None:
    base = plain_model("bert")
    model = disturb(fresh_adapted(base))
    again = merged(model)
    put_beside(again, {name: layer.low_rank for name, layer in adapted_layers(model).items()})
    for name, layer in adapted_layers(again).items():
        layer.load_state_dict({**layer.state_dict(), **{
            part: model.get_parameter(f"{name}.{part}") for part in ("lora_a", "lora_b")
        }})  # fmt: skip
    back = unmerged(again)
    for name, layer in adapted_layers(model).items():
        weight = base.get_parameter(f"{name}.weight")
        assert (back.get_parameter(f"{name}.weight") - weight).abs().max() <= 1e-6, layer


def test_dora_is_not_taken_out() -> None:
    with pytest.raises(ConfigError, match="adapted by DoRA, which cannot be taken out of merged weights"):
        unmerged(fresh_adapted(plain_model("gpt2"), dora=True))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_divergence_is_the_textbooks(kind: str) -> None:
    one, other = plain_model(kind).eval(), disturb(fresh_adapted(plain_model(kind))).eval()
    inputs = inputs_of(one.config)
    p, q = (nn.functional.softmax(scores(m, **inputs).double(), dim=-1) for m in (one, other))
    found = divergence(one, other, inputs)
    assert found.kl == pytest.approx((p * (p / q).log()).sum(dim=-1).mean().item(), rel=1e-3)
    difference = (scores(one, **inputs) - scores(other, **inputs)).abs().max().item()
    assert found.largest == pytest.approx(difference)
    assert divergence(one, one, random_inputs(one)).kl == 0


@torch.no_grad()
def test_a_model_without_a_head_is_compared_by_its_hidden_states() -> None:
    base = plain_model("llama", head="none")
    found = divergence(base, disturb(fresh_adapted(base)), random_inputs(base))
    assert found.kl == 0 and found.largest > 0
