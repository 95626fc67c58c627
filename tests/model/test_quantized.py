"""Models with layers of small integers: which layers, what they compute, and what is refused."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hasten.core.batch import Batch
from hasten.core.config import dump, parse, read_yaml
from hasten.core.errors import CheckpointError, ConfigError
from hasten.model.compressed import CompressionNote, shape_as, tensors_of
from hasten.model.config import ModelConfig
from hasten.model.quantized import (
    Quantization,
    QuantizedEmbedding,
    QuantizedLinear,
    chosen,
    put_quantized,
    quantized_weights,
)
from hasten.model.transformer import Transformer, assemble, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.ops.quantize import dequantize, quantize

SMALL = {"vocab_size": 96, "dim": 64, "num_layers": 2, "num_heads": 4, "max_positions": 32}
KINDS = {
    "decoder": {"tied": True, "activation": "swiglu"},
    "untied": {"tied": False, "attention_bias": True},
    "encoder": {"kind": "encoder", "tied": True, "head_transform": True, "num_token_types": 2},
    "seq2seq": {"kind": "seq2seq", "tied": True},
}
named = pytest.mark.parametrize("kind", list(KINDS))


def model_of(kind: str, **changes: object) -> Transformer:
    return build(ModelConfig.model_validate({**SMALL, **KINDS[kind], **changes}), seed=0).eval()


def plain_twin(model: Transformer) -> Transformer:
    """A plain model with the weights that the integers stand for."""
    twin = assemble(model.config).eval()
    weights = {f"{name}.weight": layer.weight for name, layer in quantized_weights(model)}
    state = {n: t for n, t in model.state_dict().items() if not n.endswith((".values", ".scales"))} | weights
    twin.load_state_dict(state)
    return twin


def answers(model: Transformer) -> Tensor:
    tokens = torch.arange(24).view(2, 12)
    given = {"source": tokens.flip(1)} if model.config.kind == "seq2seq" else {}
    return model.logits(model(tokens, **given))


@named
@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_a_quantised_model_computes_what_its_weights_stand_for(kind, bits):
    model = model_of(kind)
    put_quantized(model, Quantization(bits=bits, group_size=32, embedding_bits=8))
    assert isinstance(model.embedding, QuantizedEmbedding)
    torch.testing.assert_close(answers(model), answers(plain_twin(model)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_eight_bits_are_close_to_the_model_that_they_come_from():
    model = model_of("decoder")
    before = answers(model)
    put_quantized(model, Quantization(bits=8, group_size=None))
    assert (answers(model) - before).abs().max() < 0.03 * before.abs().max()


def test_bits_are_chosen_by_name():
    model = model_of("untied")
    wanted = Quantization(bits=4, skip=("*.key",), eight_bits=("layers.1.*",), embedding_bits=None)
    found = chosen(model, wanted)
    assert found["layers.0.ffn.down"] == 4
    assert found["layers.1.ffn.down"] == 8
    assert not [name for name in found if name.endswith(".key") or not name.startswith("layers.")]
    tables = chosen(model, Quantization(embedding_bits=4))
    assert (tables["embedding"], tables["head"]) == (4, 4)


def test_heads_of_classes_poolers_and_positions_stay_as_they_are():
    model = model_of("encoder", tied=False, head="pooled_classes", num_classes=3, class_names=("a", "b", "c"),
                     pooler="tanh", head_transform=False, position="learned")  # fmt: skip
    found = chosen(model, Quantization(bits=8))
    assert "embedding" in found
    assert all(name == "embedding" or name.startswith("layers.") for name in found)


def test_what_a_layer_holds_keeps_its_type_whatever_the_model_is_brought_to():
    model = model_of("untied")
    put_quantized(model, Quantization(group_size=32))
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    model.to(torch.bfloat16)
    after = tensors_of(model)
    for name, tensor in before.items():
        if name.endswith((".values", ".scales")):
            assert torch.equal(after[name], tensor)
            assert after[name].dtype == tensor.dtype
    assert answers(model).dtype == torch.bfloat16
    assert model.dtype == torch.bfloat16


@torch.no_grad()
def test_under_autocast_products_are_in_bfloat16():
    model = model_of("decoder")
    put_quantized(model, Quantization(bits=8, group_size=64))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.layers["0"].ffn.up(torch.randn(40, 64)).dtype == torch.bfloat16
        found = answers(model)
    expected = answers(plain_twin(model))
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_the_loss_of_a_quantised_model_is_that_of_its_plain_twin():
    model = model_of("decoder")
    put_quantized(model, Quantization(group_size=32))
    tokens = torch.arange(24).view(2, 12)
    batch = Batch(tokens, tokens.roll(-1, 1))
    losses = [CrossEntropy().loss(m, m(tokens), batch) for m in (model, plain_twin(model))]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_rounded_activations_change_little_and_are_what_the_layer_says():
    model = model_of("decoder")
    put_quantized(model, Quantization(bits=8, group_size=None, activations="int8"))
    assert model.layers["0"].ffn.up.integers
    assert not model.embedding.integers
    expected = answers(plain_twin(model))
    assert 0 < (answers(model) - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_quantised_model_is_not_trained():
    model = model_of("decoder")
    put_quantized(model, Quantization(group_size=32))
    model.train()
    with pytest.raises(ConfigError, match="cannot be trained"):
        answers(model)
    with torch.no_grad():
        answers(model)


def test_a_group_that_does_not_fit_is_refused_by_the_layers_name():
    with pytest.raises(ConfigError, match=r"^layers.0.attention.query: .* 48; write group_size: 16"):
        put_quantized(model_of("decoder"), Quantization(group_size=48))


def test_nothing_to_quantise_and_quantising_twice_are_refused():
    model = model_of("decoder")
    with pytest.raises(ConfigError, match="leaves no layer"):
        put_quantized(model, Quantization(skip=("*",)))
    put_quantized(model, Quantization(group_size=32))
    with pytest.raises(ConfigError, match="quantised already"):
        put_quantized(model, Quantization(group_size=32))


def test_what_is_taken_must_fit():
    layer = QuantizedLinear(nn.Linear(64, 8), 4, 32)
    values, scales = quantize(torch.randn(8, 64), 4, 32)
    layer.take(values, scales)
    assert torch.equal(layer.weight, dequantize(values, scales))
    with pytest.raises(CheckpointError, match="do not fit"):
        layer.take(values, scales[:, :1])
    with pytest.raises(CheckpointError, match="not within -8 to 7"):
        layer.take(values + 20, scales)
    with pytest.raises(CheckpointError, match="not finite"):
        layer.take(values, scales.fill_(1e6))


@named
@pytest.mark.parametrize("activations", ["none", "int8"])
def test_a_note_builds_the_shape_again_without_weights(kind, activations):
    quantization = Quantization(bits=4, group_size=32, activations=activations, skip=("*.value",))
    note = CompressionNote(quantization=quantization, parent="runs/a", steps=("four bits",))
    note = parse(CompressionNote, read_yaml(dump(note)), "note")
    model = model_of(kind)
    shape_as(model, note)
    with torch.device("meta"):
        empty = assemble(model.config)
        shape_as(empty, note)
    there, here = tensors_of(empty), tensors_of(model)
    assert {n: (t.shape, t.dtype) for n, t in there.items()} == {
        n: (t.shape, t.dtype) for n, t in here.items()
    }
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(answers(empty.eval()), answers(model))


def test_thin_layers_are_quantised_like_others():
    model = model_of("decoder")
    note = CompressionNote(
        ranks={"layers.0.ffn.up": 32}, quantization=Quantization(group_size=32), parent="a"
    )
    shape_as(model, note)
    assert isinstance(model.layers["0"].ffn.up.down, QuantizedLinear)
    assert model.layers["0"].ffn.up.up.shape == (model.config.ffn_dim, 32)


def test_a_copy_is_a_copy():
    model = model_of("decoder")
    put_quantized(model, Quantization(group_size=32))
    with torch.no_grad():
        assert torch.equal(answers(copy.deepcopy(model)), answers(model))
