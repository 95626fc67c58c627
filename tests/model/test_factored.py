"""Layers that are two thin ones, and models with some of their layers."""

import pytest
import torch
from torch import nn

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.factored import FactoredLinear, factored_layers, put_factored
from hasten.model.fewer import all_layers, renumbered, with_layers
from hasten.model.layout import role
from hasten.model.transformer import assemble, build

SHAPE = {"vocab_size": 50, "dim": 16, "num_layers": 3, "num_heads": 2, "ffn_dim": 24, "attention_bias": True}


def filled(inputs, outputs, rank, bias):
    layer = FactoredLinear(nn.Linear(inputs, outputs, bias=bias), rank)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return layer


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_it_is_the_linear_layer_of_its_weight(bias):
    layer = filled(12, 20, 5, bias)
    x = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4
    )
    assert (layer.bias is not None) == bias
    assert sum(p.numel() for p in layer.parameters()) == 5 * (12 + 20) + 20 * bias
    assert torch.linalg.matrix_rank(layer.weight.double(), rtol=1e-5) == 5


def test_the_bias_of_a_layer_stays():
    linear = nn.Linear(4, 6)
    assert torch.equal(FactoredLinear(linear, 2).bias, linear.bias)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_named_layers_are_swapped_and_their_halves_are_matrices(device):
    with torch.device(device):
        model = assemble(ModelConfig.model_validate(SHAPE))
    put_factored(model, {"layers.0.attention.query": 3, "layers.2.ffn.down": 7})
    assert {name: layer.rank for name, layer in factored_layers(model).items()} == {
        "layers.0.attention.query": 3,
        "layers.2.ffn.down": 7,
    }
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["layers.2.ffn.down.down.weight"] == (7, 24)
    assert shapes["layers.2.ffn.down.up.weight"] == (16, 7)
    assert role("layers.2.ffn.down.down.weight") == "matrix"
    assert role("layers.0.attention.query.up.bias") == "vector"
    assert {p.device.type for p in model.parameters()} == {device}


@torch.no_grad()
def test_a_model_computes_with_the_products_of_the_halves():
    config = ModelConfig.model_validate(SHAPE)
    model, plain = build(config, 0).eval(), build(config, 0).eval()
    put_factored(model, {"layers.1.ffn.up": 4, "layers.1.attention.value": 2})
    for name, layer in factored_layers(model).items():
        plain.get_submodule(name).weight.copy_(layer.weight)
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(model(tokens), plain(tokens))


@pytest.mark.parametrize(
    ("ranks", "sentence"),
    [
        ({"layers.0.attention": 2}, "'layers.0.attention' is no linear layer of this model"),
        ({"layers.9.ffn.up": 2}, "'layers.9.ffn.up' is no linear layer of this model"),
        ({"layers.0.ffn.up": 17}, "layers.0.ffn.up can have a rank from 1 to 16, got 17"),
        ({"layers.0.ffn.up": 0}, "layers.0.ffn.up can have a rank from 1 to 16, got 0"),
    ],
    ids=["no layer", "not there", "too much", "none"],
)
def test_ranks_that_cannot_be_are_one_sentence(ranks, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        put_factored(build(ModelConfig.model_validate(SHAPE), 0), ranks)


def test_layers_that_stay_are_numbered_anew_and_fit_their_configuration():
    config = ModelConfig.model_validate({**SHAPE, "kind": "seq2seq", "num_encoder_layers": 4})
    assert all_layers(config) == {"encoder.": [0, 1, 2, 3], "decoder.": [0, 1, 2]}
    stay = {"encoder.": [1, 3], "decoder.": [2]}
    model = build(config, 0)
    smaller = assemble(with_layers(config, stay))
    smaller.load_state_dict(renumbered(model.state_dict(), stay))
    for new, old in {"encoder.layers.1": "encoder.layers.3", "decoder.layers.0": "decoder.layers.2"}.items():
        pairs = zip(
            smaller.get_submodule(new).parameters(), model.get_submodule(old).parameters(), strict=True
        )
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
