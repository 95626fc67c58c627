"""The decode step in C++ with weights of small integers, against the modules' own reading."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.generate.cache import KeyValueCache
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.generate.native import NativeDecoder, can_decode
from hasten.model.quantized import Quantization, put_quantized
from hasten.model.transformer import Decoder
from hasten.ops.kernels.library import library

Make = Callable[..., Decoder]
pytestmark = pytest.mark.skipif(library() is None, reason="the kernels cannot be compiled or run here")
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"dim": 128, "activation": "swiglu", "ffn_dim": 192},
    "gpt2": {
        "dim": 64, "position": "learned", "norm": "layer", "activation": "gelu_tanh", "tied": True,
        "attention_bias": True, "out_bias": True, "ffn_bias": True, "ffn_dim": 128,
    },
    "odd": {"dim": 36, "head_dim": 21, "position": "learned", "ffn_dim": 77, "num_kv_heads": 1},
    "gemma": {
        "dim": 64, "activation": "geglu_tanh", "norm_place": "both", "norm_offset": True, "tied": True,
        "embedding_scale": 5.65, "attention_soft_cap": 1.5, "ffn_dim": 96,
    },
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8, "embedding_bits": 8},
    "int4": {"bits": 4, "embedding_bits": 4},
    "mixed": {"bits": 4, "embedding_bits": None, "eight_bits": ("*.down",), "skip": ("*.key",)},
}
every = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(0, 257, (rows, length), generator=torch.Generator().manual_seed(length))


def quantised(small_model: Make, shape: dict[str, Any], group: int | None, **way: Any) -> Decoder:
    model = small_model(**shape)
    put_quantized(model, Quantization(group_size=group, **way))
    return model


@torch.no_grad()
def followed(model: Decoder, prompts: Tensor, following: Tensor, native: NativeDecoder | None) -> Tensor:
    """Logits after each of the `following` tokens, [B, T, V]."""
    with KeyValueCache(model, [0] * len(prompts), prompts.shape[1] + following.shape[1], native) as cache:
        cache.read(prompts)
        return torch.stack([cache.follow(tokens).clone() for tokens in following.T], dim=1)


@torch.no_grad()
def after(model: Decoder, prompt: Tensor, following: Tensor, native: NativeDecoder) -> Tensor:
    """As `followed`, of one prompt that is read once and then followed by several rows."""
    with KeyValueCache(model, [0], prompt.shape[1] + following.shape[1], native) as cache:
        cache.read(prompt)
        cache.keep([0] * len(following))
        return torch.stack([cache.follow(tokens).clone() for tokens in following.T], dim=1)


@every
@way
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_cpp_reads_what_the_modules_read(small_model: Make, shape, way, rows):
    group = None if shape["dim"] == 36 else 32
    model = quantised(small_model, shape, group, **way)
    assert can_decode(model)
    inputs = ids(rows, 6), ids(rows, 12)
    expected = followed(model.double(), *inputs, None)
    model.float()
    for half, tolerance in ((False, 1e-5), (True, 2e-3)):
        found = followed(model, *inputs, NativeDecoder(model, half=half))
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("group", [12, 18, 36])
def test_groups_of_any_size_are_laid_out(small_model: Make, group):
    shape = {"dim": 36, "head_dim": 18, "ffn_dim": 72, "num_kv_heads": 4}
    model = quantised(small_model, shape, group, **WAYS["int4"])
    inputs = ids(2, 6), ids(2, 5)
    expected = followed(model.double(), *inputs, None)
    found = followed(model.float(), *inputs, NativeDecoder(model))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@every
@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_activations_are_those_of_the_modules(small_model: Make, shape, bits):
    group = None if shape["dim"] == 36 else 32
    model = quantised(small_model, shape, group, bits=bits, activations="int8")
    inputs = ids(2, 6), ids(2, 5)
    found = followed(model, *inputs, NativeDecoder(model))
    expected = followed(model, *inputs, None)
    # A number halfway between two integers may go either way where a sum's last bit differs.
    assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
    assert (found - expected).abs().median() <= 1e-4 * expected.abs().max()


@way
@pytest.mark.parametrize("activations", ["none", "int8"])
def test_a_row_is_the_same_to_the_bit_alone_and_in_company(small_model: Make, way, activations):
    model = quantised(small_model, SHAPES["llama"], 32, **way, activations=activations)
    native, prompt, following = NativeDecoder(model), ids(1, 4), ids(7, 9)
    together = after(model, prompt, following, native)
    for row in range(7):
        assert torch.equal(after(model, prompt, following[row : row + 1], native)[0], together[row])


def test_what_is_written_is_the_same_with_the_kernels_and_without(small_model: Make, bytes_only, monkeypatch):
    model = quantised(small_model, SHAPES["llama"], 64, **WAYS["int8"])
    config = GenerateConfig(temperature=0, max_new_tokens=20, precision="model")
    here = generate(model, bytes_only, ["some", "words here"], config)
    monkeypatch.setattr("hasten.generate.prepared.can_decode", lambda model: False)
    there = generate(model, bytes_only, ["some", "words here"], config)
    assert [c.text for c in here] == [c.text for c in there]


def test_bfloat16_leaves_the_integers_alone(small_model: Make, bytes_only):
    model = quantised(small_model, SHAPES["llama"], 64, **WAYS["int4"])
    config = GenerateConfig(temperature=0, max_new_tokens=4, precision="bf16")
    [completion] = generate(model, bytes_only, ["some"], config)
    assert completion.tokens
    assert model.dtype == torch.float32
