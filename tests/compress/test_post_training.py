"""`Quantize` on whole models: every kind, every method, block after block, and what it refuses."""

import pytest
import torch
from pydantic import ValidationError
from tiny_quantized import SHAPES, make, texts
from torch import nn

from hasten.compress.quantize import Quantize, size_of
from hasten.compress.rtn import nearest, output_error
from hasten.compress.statistics import BlockAt, Moments, linear_layers
from hasten.core.batch import Batch
from hasten.core.config import parse
from hasten.core.errors import ConfigError
from hasten.model.quantized import QuantizedEmbedding, QuantizedLinear, quantized_weights
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy

METHODS = ["rtn", "awq", "gptq"]


def distance(model: Transformer, other: Transformer, batches: list[Batch]) -> float:
    """How far the hidden states of two models are apart, where there is no padding."""
    with torch.no_grad():
        pairs = [
            (model(**CrossEntropy().inputs(batch)), other(**CrossEntropy().inputs(batch)), batch.segments > 0)
            for batch in batches
        ]
    return sum(float((one[kept] - two[kept]).square().sum()) for one, two, kept in pairs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_kind_of_model_is_quantised_by_every_method(shape, method):
    model, original = make(shape), make(shape)
    names = set(linear_layers(model))
    batches = texts(model)
    result = Quantize(method=method, group_size=16).apply(model, batches if method != "rtn" else ())
    assert result is model
    layers = dict(quantized_weights(model))
    blocks = {name for name in layers if "layers." in name}
    assert blocks == names
    assert {name for name in blocks if layers[name].bits == 8} == {n for n in blocks if n.endswith("value")}
    assert {layers[name].bits for name in set(layers) - blocks} == {8}
    assert size_of(model) < 0.45 * size_of(original)
    with torch.no_grad():
        signal = sum(float(original(**CrossEntropy().inputs(b)).square().sum()) for b in batches)
    assert distance(model, original, batches) < 0.2 * signal  # 1 in 15 of a weight's range, layer upon layer


def test_methods_that_read_are_nearer_to_the_model_than_rounding_to_nearest():
    shapes = ["llama", "gemma2", "squared"]
    found = dict.fromkeys(METHODS, 0.0)
    for shape in shapes:
        original = make(shape)
        batches, unseen = texts(original, count=40), texts(original, count=8, seed=7)
        for method in METHODS:
            search = method != "rtn"
            plain = Quantize(
                method=method, group_size=None, embedding_bits=None, eight_bits=(), search=search
            )
            found[method] += distance(plain.apply(make(shape), batches), original, unseen)
    assert found["gptq"] < found["rtn"]
    assert found["awq"] < found["rtn"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_the_error_of_gptq_is_not_above_that_of_rounding_to_nearest_in_any_layer(shape, bits, monkeypatch):
    model, original, read = make(shape), make(shape), dict[str, Moments]()
    measure = BlockAt.moments

    def keep(at: BlockAt, gram: bool = True) -> dict[str, Moments]:
        found = measure(at, gram)
        read.update(found)
        return found

    monkeypatch.setattr(BlockAt, "moments", keep)
    Quantize(bits=bits, group_size=16, eight_bits=()).apply(model, texts(model, count=6))
    for name, layer in linear_layers(original).items():
        weight, gram = layer.weight.detach(), read[name].gram
        ours = output_error(model.get_submodule(name).weight - weight, gram)
        theirs = output_error(nearest(weight, bits, 16).weight - weight, gram)
        assert ours <= theirs * 1.0001, name


def test_a_few_layers_have_eight_bits_some_stay_and_the_table_too():
    model = make("llama")
    quantize = Quantize(
        method="rtn", group_size=None, eight_bits=("*.down",), skip=("layers.0.*",), embedding_bits=None
    )
    quantize.apply(model)
    found = {name: layer.bits for name, layer in quantized_weights(model)}
    layers = ("attention.query", "attention.key", "attention.value", "attention.out", "ffn.gate", "ffn.up")
    assert found == {**{f"layers.1.{name}": 4 for name in layers}, "layers.1.ffn.down": 8}
    assert isinstance(model.embedding, nn.Embedding)


def test_activations_of_eight_bits_are_those_of_blocks_alone():
    model = make("llama", tied=False)
    Quantize(method="rtn", bits=8, group_size=None, activations="int8").apply(model)
    assert model.layers["0"].ffn.down.integers
    assert isinstance(model.head, QuantizedLinear)
    assert not model.head.integers
    assert isinstance(model.embedding, QuantizedEmbedding)


def test_what_a_checkpoint_keeps_is_the_plain_part():
    quantize = Quantize(bits=8, group_size=32, activations="int8", eight_bits=("*.down",), skip=("*.up",))
    kept = quantize.quantization
    assert kept.model_dump() == {
        "bits": 8, "group_size": 32, "activations": "int8", "embedding_bits": 8,
        "eight_bits": ("*.down",), "skip": ("*.up",),
    }  # fmt: skip


def test_rounding_plainly_is_the_rounding_of_the_format():
    model, original = make("gpt2"), make("gpt2")
    Quantize(method="rtn", group_size=16, search=False).apply(model)
    expected = nearest(original.layers["1"].ffn.up.weight, 4, 16)
    found = model.layers["1"].ffn.up
    assert torch.equal(found.stored.unpacked(), expected.values)
    assert torch.equal(found.scales.float(), expected.scales)


def test_the_same_texts_give_the_same_integers():
    first, second = (Quantize(group_size=16).apply(make("llama"), texts(make("llama"))) for _ in range(2))
    for (_, one), (_, two) in zip(quantized_weights(first), quantized_weights(second), strict=True):
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.scales, two.scales)


@pytest.mark.parametrize(("shape", "words"), [
    ("gpt2", "before ffn.down (gelu_tanh lets no factor through)"),
    ("bert", "before what reads the stream itself (norms are after the layers) and ffn.down (gelu lets"),
    ("llama", None),
], ids=["gpt2", "bert", "llama"])  # fmt: skip
def test_channels_that_cannot_be_scaled_are_said(shape, words, capsys):
    model = make(shape)
    Quantize(method="awq", group_size=16).apply(model, texts(model))
    said = capsys.readouterr().out
    assert "channels stay" not in said if words is None else f"channels stay as they are {words}" in said


@pytest.mark.parametrize("mean", [4.5, 5.5, 7.0])
@pytest.mark.parametrize("shape", ["llama", "bert", "t5"])
def test_bits_on_average_are_spent_on_layers_that_lose_most(shape, mean):
    model = make(shape)
    sizes = {name: layer.weight.numel() for name, layer in linear_layers(model).items()}
    Quantize(method="rtn", group_size=16, mean_bits=mean, eight_bits=()).apply(model, texts(model))
    bits = {name: layer.bits for name, layer in quantized_weights(model) if name in sizes}
    found = sum(sizes[name] * bits[name] for name in sizes) / sum(sizes.values())
    assert mean - 4 * max(sizes.values()) / sum(sizes.values()) < found <= mean


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_method_that_reads_asks_for_texts(method):
    with pytest.raises(ConfigError, match=f"{method} looks at texts .* or take method: rtn"):
        Quantize(method=method, group_size=16).apply(make("llama"))


@pytest.mark.parametrize("method", METHODS)
def test_a_group_that_does_not_divide_a_row_is_refused_with_the_layer(method):
    with pytest.raises(ConfigError, match=r"layers.0.attention.query: .*group_size: 16"):
        Quantize(method=method, group_size=48).apply(make("llama"), texts(make("llama")))


def test_bits_on_average_are_for_four_bits():
    with pytest.raises(ConfigError, match=r"mean_bits is how many layers have eight bits .* write bits: 4"):
        parse(Quantize, {"bits": 8, "mean_bits": 5.0}, "recipe.yaml")


def test_nothing_to_quantise_and_twice_are_refused():
    with pytest.raises(ConfigError, match="leaves no layer to quantise"):
        Quantize(method="rtn", skip=("*",)).apply(make("llama"))
    model = Quantize(method="rtn", group_size=16).apply(make("llama"))
    with pytest.raises(ConfigError, match="quantised already; quantise the one that it was made from"):
        Quantize(method="rtn", group_size=16).apply(model)


def test_a_weight_beyond_the_scales_is_refused_by_name():
    model = make("llama")
    with torch.no_grad():
        model.layers["1"].ffn.up.weight[0, 0] = float("inf")
    with pytest.raises(ConfigError, match=r"layers.1.ffn.up: a weight is not finite"):
        Quantize(method="rtn", group_size=16).apply(model)


def test_a_wrong_method_is_named_with_the_choices():
    with pytest.raises((ConfigError, ValidationError), match="rtn"):
        parse(Quantize, {"kind": "quantize", "method": "gtpq"}, "recipe.yaml")
