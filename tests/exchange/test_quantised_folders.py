"""Quantised models in and out by command: their integers stay what they are, whatever the way."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hasten.cli import main
from hasten.model.config import ModelConfig
from hasten.model.gguf import load_gguf
from hasten.model.interop import save_hugging_face
from hasten.model.plain import quantization_of
from hasten.model.quantized import Quantization, put_quantized, quantized_weights
from hasten.model.transformer import Transformer, build
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train
from hasten.train.load import load_model

SHAPE: dict[str, Any] = {
    "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 64, "activation": "swiglu",
    "tied": True, "init_std": 0.2, "max_positions": 64,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4, "group_size": 32},
    "int8": {"bits": 8, "group_size": 32},
    "both": {"bits": 4, "group_size": 32, "eight_bits": ("*.down", "layers.0.attention.value")},
    "some": {"bits": 4, "group_size": 32, "skip": ("layers.1.*",)},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["once upon a time there was a cat"] * 4, TokenizerConfig(vocab_size=270), progress=False)


def folder_of(kind: str | None, tokenizer: Tokenizer, folder: Path) -> Transformer:
    """A Hugging Face folder with a tiny model of integers, or a plain one."""
    config = ModelConfig.model_validate({**SHAPE, "vocab_size": tokenizer.vocab_size})
    model = build(config, seed=0).eval()
    if kind is not None:
        put_quantized(model, Quantization(**{"embedding_bits": None, **KINDS[kind]}))
    save_hugging_face(model, folder)
    tokenizer.save(folder)
    return model


def same(model: Transformer, other: Transformer) -> bool:
    ours, theirs = dict(quantized_weights(model)), dict(quantized_weights(other))
    return set(ours) == set(theirs) and all(
        torch.equal(layer.values, theirs[name].values) and torch.equal(layer.scales, theirs[name].scales)
        for name, layer in ours.items()
    )


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    return model.logits(model(torch.arange(40).view(2, 20)))


@pytest.mark.parametrize("kind", KINDS)
def test_integers_go_in_and_out_again(kind, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = folder_of(kind, tokenizer, tmp_path / "theirs")
    assert main(["import", "theirs", "output=mine"]) == 0
    assert main(["export", "mine", "to=hf", "output=again"]) == 0
    for place in ("theirs", "mine", "again"):
        read = load_model(tmp_path / place)[0]
        assert same(model, read)
        assert torch.equal(logits(model), logits(read))
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "again"))
    assert set(first) == set(last)
    assert all(torch.equal(tensor, last[name]) for name, tensor in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpps_file_holds_the_integers_by_default(kind, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = folder_of(kind, tokenizer, tmp_path / "mine")
    assert main(["export", "mine", "to=gguf", "nearest_split=true", "output=mine.gguf"]) == 0
    read = load_gguf("mine.gguf")[0]
    for name, layer in quantized_weights(model):
        assert torch.equal(read.get_submodule(name).weight, layer.weight)


@pytest.mark.parametrize("dtype", ["q4_0", "q8_0"])
def test_a_plain_model_is_rounded_for_llama_cpp(dtype, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = folder_of(None, tokenizer, tmp_path / "mine")
    words = ["export", "mine", "to=gguf", f"dtype={dtype}", "nearest_split=true", "output=mine.gguf"]
    assert main(words) == 0
    assert dtype in capsys.readouterr().out
    weight, read = model.layers["1"].ffn.up.weight, load_gguf("mine.gguf")[0].layers["1"].ffn.up.weight
    steps = weight.abs().view(64, -1).amax(1, keepdim=True) / (8 if dtype == "q4_0" else 127)
    assert ((weight - read).abs() <= 1.01 * steps).all()  # half a step, and a whole one where 8 became 7


def test_other_types_apply_to_what_is_no_integer(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of("int4", tokenizer, tmp_path / "mine")
    assert main(["export", "mine", "to=hf", "dtype=bfloat16", "output=short"]) == 0
    tensors = load_file(tmp_path / "short/model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.float16
    assert json.loads((tmp_path / "short/config.json").read_text())["dtype"] == "bfloat16"


def test_blocks_of_llama_cpp_are_none_of_a_folder(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(None, tokenizer, tmp_path / "mine")
    assert main(["export", "mine", "to=hf", "dtype=q4_0"]) == 2
    assert "dtype=q4_0 is for to=gguf" in capsys.readouterr().err


@pytest.mark.parametrize("options", [
    {"bits": 4, "group_size": 16, "embedding_bits": None},
    {"bits": 8, "group_size": None, "activations": "int8", "embedding_bits": 8},
    {"bits": 4, "group_size": 32, "embedding_bits": 4, "eight_bits": ("layers.0.ffn.down", "embedding")},
    {"bits": 4, "group_size": 32, "embedding_bits": 8, "skip": ("layers.1.ffn.up",)},
], ids=["plain", "activations", "eight", "skip"])  # fmt: skip
def test_what_a_checkpoint_keeps_is_read_off_the_model(options):
    def model() -> Transformer:
        return build(ModelConfig.model_validate({**SHAPE, "vocab_size": 40}), seed=0)

    first, second = model(), model()
    put_quantized(first, Quantization(**options))
    put_quantized(second, quantization_of(first))
    assert same(first, second)
    assert quantization_of(model()) is None
