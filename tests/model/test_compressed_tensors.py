"""Quantised layers in Hugging Face folders: against the format written out, and against compressed-tensors.

Where the package compressed-tensors is installed, its decoder and transformers read the same folders.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hasten.core.errors import CheckpointError
from hasten.model.compressed_tensors import pack32, unpack32
from hasten.model.config import ModelConfig
from hasten.model.interop import load_hugging_face, read_config, save_hugging_face
from hasten.model.quantized import Quantization, put_quantized, quantized_weights
from hasten.model.transformer import Transformer, build

LLAMA: dict[str, Any] = {
    "vocab_size": 50, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 64,
    "activation": "swiglu", "tied": True, "init_std": 0.2,
}  # fmt: skip
BERT: dict[str, Any] = {
    "kind": "encoder", "vocab_size": 50, "dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 64,
    "norm": "layer", "norm_place": "after", "position": "learned", "embedding_norm": "learned",
    "attention_bias": True, "out_bias": True, "ffn_bias": True, "num_token_types": 2, "head": "none",
    "norm_eps": 1e-12, "init_std": 0.2, "max_positions": 64,
}  # fmt: skip
NEOX: dict[str, Any] = {
    "vocab_size": 50, "dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 64, "norm": "layer",
    "parallel_block": True, "attention_bias": True, "out_bias": True, "ffn_bias": True, "rotary_share": 0.25,
    "init_std": 0.2, "norm_eps": 1e-5,
}  # fmt: skip
GPT2 = {**BERT, "kind": "decoder", "norm_place": "before", "embedding_norm": False, "num_token_types": 0,
        "head": "vocabulary", "activation": "gelu_tanh", "tied": True}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "int4 of 16": {"bits": 4, "group_size": 16},
    "int4 of rows": {"bits": 4, "group_size": None},
    "int8 of 32": {"bits": 8, "group_size": 32},
    "int8 of rows": {"bits": 8, "group_size": None},
    "int8 with int8 activations": {"bits": 8, "group_size": None, "activations": "int8"},
    "both": {"bits": 4, "group_size": 16, "eight_bits": ("*.down", "*.value")},
    "some left alone": {"bits": 4, "group_size": 16, "skip": ("layers.0.*",)},
}


def quantised(shape: dict[str, Any], kind: str, **more: Any) -> Transformer:
    """A tiny model of integers; its table stays as it is, as folders have it."""
    model = build(ModelConfig.model_validate(shape), seed=0).eval()
    put_quantized(model, Quantization(**{"embedding_bits": None, **KINDS[kind], **more}))
    return model


def tokens() -> Tensor:
    return torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    hidden = model(tokens())
    return hidden if model.config.head == "none" else model.logits(hidden)


def written_out(words: list[int], bits: int, count: int) -> list[int]:
    """The integers of a row by the description of pack-quantized, bit by bit."""
    stream = [word >> bit & 1 for word in words for bit in range(32)]
    codes = [sum(stream[i * bits + b] << b for b in range(bits)) for i in range(count)]
    return [code - 2 ** (bits - 1) for code in codes]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [1, 7, 8, 9, 32, 45])
def test_words_are_packed_as_the_format_says(bits, inputs):
    most = 2 ** (bits - 1)
    draw = torch.Generator().manual_seed(inputs)
    values = torch.randint(-most, most, (5, inputs), generator=draw).to(torch.int8)
    words = pack32(values, bits)
    assert words.dtype == torch.int32
    assert words.shape == (5, -(-inputs * bits // 32))
    for row, packed in zip(values.tolist(), words.tolist(), strict=True):
        assert written_out([word % 2**32 for word in packed], bits, inputs) == row
    assert torch.equal(unpack32(words, bits, inputs), values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [LLAMA, BERT, NEOX], ids=["llama", "bert", "neox"])
def test_a_folder_gives_the_same_integers_back(tmp_path, shape, kind):
    model = quantised(shape, kind)
    save_hugging_face(model, tmp_path)
    again = load_hugging_face(tmp_path)
    ours, theirs = dict(quantized_weights(model)), dict(quantized_weights(again))
    assert set(ours) == set(theirs)
    for name, layer in ours.items():
        fused = shape is NEOX and kind == "both" and ".attention." in name  # q, k, v: the bits of the widest
        assert torch.equal(layer.stored.unpacked(), theirs[name].stored.unpacked())
        assert torch.equal(layer.scales, theirs[name].scales)
        assert layer.integers == theirs[name].integers
        assert layer.bits == theirs[name].bits or fused
    assert torch.equal(logits(again), logits(model))


def test_the_file_holds_what_the_format_says(tmp_path):
    model = quantised(LLAMA, "int4 of 16")
    save_hugging_face(model, tmp_path)
    tensors, layer = load_file(tmp_path / "model.safetensors"), model.layers["1"].ffn.down
    name = "model.layers.1.mlp.down_proj"
    assert tensors[f"{name}.weight_shape"].tolist() == [32, 64]
    assert f"{name}.weight" not in tensors
    words = tensors[f"{name}.weight_packed"].tolist()
    rows = torch.tensor([written_out([w % 2**32 for w in row], 4, 64) for row in words])
    scales = tensors[f"{name}.weight_scale"].double().repeat_interleave(16, dim=1)
    torch.testing.assert_close(rows * scales, layer.weight.double(), rtol=1e-6, atol=0)
    told = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "compressed-tensors"
    assert told["ignore"] == ["lm_head"]


def test_a_table_of_integers_is_written_as_floats_and_said(tmp_path, capsys):
    model = quantised(LLAMA, "int4 of 16", embedding_bits=8)
    save_hugging_face(model, tmp_path)
    assert "'model.embed_tokens.weight' is written as floats" in capsys.readouterr().out
    again = load_hugging_face(tmp_path)
    assert torch.equal(again.embedding.weight, model.embedding.weight)
    torch.testing.assert_close(logits(again), logits(model))  # a head of integers adds up in another order


def test_conv1d_layers_and_mixed_parts_of_one_matrix_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no linear layer in transformers .* to=gguf"):
        save_hugging_face(quantised(GPT2, "int4 of 16"), tmp_path)
    with pytest.raises(CheckpointError, match="several layers here, of which some are no integers"):
        save_hugging_face(quantised(NEOX, "int4 of 16", skip=("*.value",)), tmp_path)


def test_the_shape_alone_is_that_of_a_plain_model(tmp_path):
    model = quantised(LLAMA, "int4 of 16")
    save_hugging_face(model, tmp_path)
    assert read_config(tmp_path / "config.json")[1].num_parameters == model.config.num_parameters


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))


def group(values: dict[str, Any]) -> dict[str, Any]:
    return values["config_groups"]["group_0"]


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another method": (lambda v: v.update(quant_method="gptq"), "cannot hold quant_method 'gptq', only"),
    "no groups": (lambda v: v.update(config_groups={}), "config_groups {}, only groups of layers"),
    "a list of groups": (lambda v: v.update(config_groups=[1]), r"config_groups \[1\], only"),
    "a group that is none": (
        lambda v: v.update(config_groups={"a": 3}),
        "should be a table of fields, got 3",
    ),
    "no weights": (lambda v: group(v).update(weights=None), "weights should be a table"),
    "three bits": (lambda v: group(v)["weights"].update(num_bits=3), "num_bits 3, only 4 or 8"),
    "bits that are true": (lambda v: group(v)["weights"].update(num_bits=True), "num_bits True, only 4"),
    "floats": (lambda v: group(v)["weights"].update(type="float"), "type 'float', only 'int'"),
    "zero points": (lambda v: group(v)["weights"].update(symmetric=False), "symmetric False, only True"),
    "blocks": (lambda v: group(v)["weights"].update(strategy="block"), "strategy 'block', only"),
    "an order": (lambda v: group(v)["weights"].update(actorder="group"), "actorder 'group', only"),
    "groups of nothing": (lambda v: group(v)["weights"].update(group_size=0), "group_size 0, only a whole"),
    "other groups": (lambda v: group(v)["weights"].update(group_size=8), "which no group of quantization"),
    "static activations": (
        lambda v: group(v).update(input_activations={"num_bits": 8, "type": "int", "dynamic": False}),
        "input_activations: hasten cannot hold",
    ),
    "rotations": (lambda v: v.update(transform_config={"a": 1}), "transform_config {'a': 1}, only"),
    "a quantised cache": (lambda v: v.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_what_a_config_says_that_cannot_be_held_is_refused_by_name(tmp_path, fault):
    change, message = CONFIGS[fault]
    save_hugging_face(quantised(LLAMA, "int4 of 16"), tmp_path)
    edited(tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_hugging_face(tmp_path)
    assert str(tmp_path) in str(caught.value)


NAME = "model.layers.0.mlp.up_proj"
TENSORS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "no scales": ({f"{NAME}.weight_scale": None}, "has no place|has no tensor"),
    "no integers": ({f"{NAME}.weight_packed": None}, "has scales and no"),
    "no shape": ({f"{NAME}.weight_shape": None}, "should be two whole numbers"),
    "a negative shape": ({f"{NAME}.weight_shape": torch.tensor([64, -32])}, "should be two whole numbers"),
    "a huge shape": ({f"{NAME}.weight_shape": torch.tensor([64, 2**60])}, "which no group of"),
    "another shape": ({f"{NAME}.weight_shape": torch.tensor([64, 64])}, "which no group of"),
    "a shape of floats": ({f"{NAME}.weight_shape": torch.ones(2)}, "should be two whole numbers"),
    "scales of another layer": ({f"{NAME}.weight_scale": torch.ones(64, 3)}, "which no group of"),
    "scales that are infinite": ({f"{NAME}.weight_scale": torch.full((64, 2), float("inf"))}, "not finite"),
    "scales that are integers": (
        {f"{NAME}.weight_scale": torch.ones(64, 2, dtype=torch.int32)},
        "not finite",
    ),
    "integers of another kind": (
        {f"{NAME}.weight_packed": torch.zeros(64, 4, dtype=torch.int64)},
        "should be a matrix of int32",
    ),
    "integers in a row": (
        {f"{NAME}.weight_packed": torch.zeros(256, dtype=torch.int32)},
        "should be a matrix",
    ),
    "fewer outputs": (
        {
            f"{NAME}.weight_packed": torch.zeros(32, 4, dtype=torch.int32),
            f"{NAME}.weight_scale": torch.ones(32, 2),
            f"{NAME}.weight_shape": torch.tensor([32, 32]),
        },
        r"which gives \[32, 32\] for layers.0.ffn.up.weight where",
    ),
}


@pytest.mark.parametrize("fault", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, fault):
    changes, message = TENSORS[fault]
    save_hugging_face(quantised(LLAMA, "int4 of 16"), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, path)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize("scale", [1 / 3, 1e-12], ids=["more digits", "smaller"])
def test_scales_that_float16_does_not_hold_leave_the_layers_floats(tmp_path, capsys, scale):
    save_hugging_face(quantised(LLAMA, "int4 of 16"), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{NAME}.weight_scale"] = torch.full((64, 2), scale)
    save_file(tensors, path)
    model = load_hugging_face(tmp_path)
    assert "its integers become floats" in capsys.readouterr().out
    layer = model.layers["0"].ffn.up
    assert isinstance(layer, nn.Linear)
    values = unpack32(tensors[f"{NAME}.weight_packed"], 4, 32)
    assert torch.equal(layer.weight, values * torch.tensor(scale))


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_unpacks_the_same_weights(tmp_path, kind):
    package = pytest.importorskip("compressed_tensors.compressors")
    schemes = pytest.importorskip("compressed_tensors.quantization")
    model = quantised(LLAMA, kind)
    save_hugging_face(model, tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    tensors = load_file(tmp_path / "model.safetensors")
    for part in told["config_groups"].values():
        scheme = schemes.QuantizationScheme(**part)
        compressor = package.BaseCompressor.get_value_from_registry(part["format"])
        stem = (
            "model.layers.1.mlp.down_proj." if scheme.weights.num_bits == 8 else "model.layers.1.mlp.up_proj."
        )
        held = {name.removeprefix(stem): t for name, t in tensors.items() if name.startswith(stem)}
        held["weight_scale"] = held["weight_scale"].float()
        layer = model.layers["1"].ffn.down if scheme.weights.num_bits == 8 else model.layers["1"].ffn.up
        assert torch.equal(compressor.decompress(held, scheme)["weight"], layer.weight)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_folder_with_equal_logits(tmp_path, kind):
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    model = quantised(LLAMA, kind)
    save_hugging_face(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        found = theirs(tokens()).logits
    # Of activations in integers it makes the largest 127.5 instead of 127, and so rounds others elsewhere.
    off = 0.05 * float(found.std()) if "activations" in kind else 1e-4
    assert (found - logits(model)).square().mean().sqrt() < off
