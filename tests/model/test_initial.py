"""First weights: the same whatever is built around them, and a first loss of ln V."""

import math

import pytest
import torch
from torch import nn

from hasten.model.config import ModelConfig
from hasten.model.initial import first_value, init_weights
from hasten.model.transformer import Decoder, build

SHAPES = {
    "hasten": {"preset": "hasten-tiny", "num_layers": 2},
    "hasten tied": {"preset": "hasten-tiny", "num_layers": 2, "tied": True},
    "gpt2": {"preset": "gpt2", "num_layers": 2, "dim": 256, "num_heads": 4},
    "llama": {"preset": "smollm2-135m", "num_layers": 2},
    "plain": {"num_layers": 2},
    "biased": {"num_layers": 2, "attention_bias": True, "ffn_bias": True, "norm": "layer"},
}


def shape(name: str) -> ModelConfig:
    return ModelConfig.model_validate({**SHAPES[name], "vocab_size": 512})


@pytest.mark.parametrize("name", SHAPES)
def test_the_first_loss_is_that_of_guessing_among_all_tokens(name):
    model = build(shape(name), seed=0)
    tokens = torch.randint(0, 512, (4, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.logits(model(tokens[:, :-1]))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    # A tied head sees a little of each token in its own embedding, and favours it.
    assert loss.item() == pytest.approx(math.log(512), rel=0.03 if model.config.tied else 0.01)


@pytest.mark.parametrize("name", SHAPES)
def test_every_parameter_gets_a_finite_value_of_its_kind(name):
    model = build(shape(name), seed=0)
    for path, value in model.named_parameters():
        assert value.isfinite().all(), path
        if path.endswith("bias"):
            assert not value.any(), path
        elif path.split(".")[-2].endswith("norm"):
            assert (value == 1).all(), path


def test_weights_depend_on_seed_and_name_alone():
    """Layers built and drawn in another order, and some left out, are bit-identical."""
    config = shape("llama")
    whole = build(config, seed=7)
    part = Decoder(config)
    del part.layers["0"], part.embedding
    part.layers = nn.ModuleDict(reversed(list(part.layers.items())))
    torch.manual_seed(123)  # the global generator has no say
    init_weights(part, seed=7)
    expected = dict(whole.named_parameters())
    names = [name for name, _ in part.named_parameters()]
    assert names
    for name, value in part.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_another_seed_or_another_name_gives_other_weights():
    config = shape("plain")
    size = torch.Size([256, 256])
    first = first_value("layers.0.attention.query.weight", size, config, seed=1)
    assert not torch.equal(first, first_value("layers.0.attention.query.weight", size, config, seed=2))
    assert not torch.equal(first, first_value("layers.1.attention.query.weight", size, config, seed=1))


def test_drawing_weights_leaves_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(shape("plain"), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_outputs_that_start_at_zero_make_each_layer_the_identity():
    model = build(shape("hasten"), seed=0)
    x = torch.randn(1, 5, model.config.dim)
    angles = model.angles(torch.arange(5))
    for layer in model.layers.values():
        assert torch.equal(layer(x, angles, None), x)


def test_the_spread_is_the_configured_one_and_shrinks_with_depth_at_the_outputs():
    config = ModelConfig(vocab_size=64, dim=512, num_layers=8, num_heads=8, init_std=0.02)
    model = build(config, seed=0)
    layer = model.layers["3"]
    # Standard error of the spread of 262,144 draws: 0.14%.
    assert layer.attention.query.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert layer.attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.01)
