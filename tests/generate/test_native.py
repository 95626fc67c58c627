"""The decode step in C++ against the same model in float64, for every kind of model."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hasten.generate import native
from hasten.generate.cache import KeyValueCache
from hasten.generate.native import NativeDecoder, can_decode
from hasten.model.config import ModelConfig
from hasten.model.norm import RMSNorm
from hasten.model.transformer import Decoder
from hasten.ops.kernels.library import library

Make = Callable[..., Decoder]
pytestmark = pytest.mark.skipif(library() is None, reason="the kernels cannot be compiled or run here")
GPT_2 = {
    "position": "learned", "norm": "layer", "activation": "gelu_tanh", "tied": True,
    "attention_bias": True, "out_bias": True, "ffn_bias": True,
}  # fmt: skip
LLAMA_3 = {
    "activation": "swiglu", "norm_eps": 1e-5,
    "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_positions": 16},
}  # fmt: skip
HASTEN = {"activation": "relu_squared", "qk_norm": True, "embedding_norm": True, "logit_soft_cap": 15.0}
ODD = {"dim": 37, "head_dim": 21, "position": "learned", "ffn_dim": 77, "vocab_size": 1001, "num_kv_heads": 1}
GEMMA_3 = {
    "activation": "geglu_tanh", "norm_place": "both", "norm_offset": True, "qk_norm": True, "tied": True,
    "embedding_scale": 5.65, "attention_scale": 0.3, "attention_soft_cap": 1.5, "sliding_window": 4,
    "window_layers": (0,), "local_rope_theta": 300.0, "rope_scaling": {"kind": "linear", "factor": 4.0},
}  # fmt: skip
OPT = {**GPT_2, "activation": "relu", "position_offset": 2, "norm_place": "after"}
NEOX = {
    "norm": "layer", "activation": "gelu", "parallel_block": True, "rotary_share": 0.25, "head_dim": 24,
    "attention_bias": True, "out_bias": True, "ffn_bias": True, "head_bias": True,
}  # fmt: skip
NAMED = {
    "gpt2": GPT_2, "llama3": LLAMA_3, "hasten": HASTEN, "odd": ODD,
    "gemma3": GEMMA_3, "opt": OPT, "neox": NEOX,
}  # fmt: skip
named = pytest.mark.parametrize("shape", NAMED.values(), ids=list(NAMED))
shapes = st.fixed_dictionaries(
    {
        "position": st.sampled_from(["rotary", "learned", "none"]),
        "norm": st.sampled_from(["rms", "layer"]),
        "activation": st.sampled_from(
            ["gelu", "gelu_tanh", "relu", "relu_squared", "silu", "swiglu", "geglu", "geglu_tanh"]
        ),
        "num_kv_heads": st.sampled_from([1, 2, 4]),
        "dim": st.sampled_from([32, 50, 71]),
        "head_dim": st.sampled_from([6, 16, 34, 72]),
        "ffn_dim": st.sampled_from([48, 85]),
        "vocab_size": st.sampled_from([257, 258, 320]),
        "logit_soft_cap": st.sampled_from([None, 10.0]),
        **{
            name: st.booleans()
            for name in ("qk_norm", "embedding_norm", "attention_bias", "out_bias", "ffn_bias", "tied")
        },
        "norm_place": st.sampled_from(["before", "after", "both"]),
        "embedding_scale": st.sampled_from([1.0, 3.5]),
        "attention_scale": st.sampled_from([None, 0.2]),
        "attention_soft_cap": st.sampled_from([None, 2.0]),
        "sliding_window": st.sampled_from([None, 1, 4, 100]),
        **{name: st.booleans() for name in ("norm_offset", "final_norm", "parallel_block", "head_bias")},
        **{name: st.booleans() for name in ("one_window", "local", "half_turned", "offset")},
    }
)


def together(shape: dict[str, Any]) -> dict[str, Any]:
    """The choices that go together, of those drawn."""
    shape = dict(shape)
    one_window, local, half, offset = map(shape.pop, ("one_window", "local", "half_turned", "offset"))
    rotary, window = shape["position"] == "rotary", shape["sliding_window"] is not None
    shape["norm_offset"] &= shape["norm"] == "rms"
    shape["parallel_block"] &= shape["norm_place"] == "before"
    shape |= {"window_layers": (1,)} if one_window and window else {}
    shape |= {"local_rope_theta": 50.0} if local and window and rotary else {}
    shape |= {"rotary_share": 0.5} if half and rotary and shape["head_dim"] % 4 == 0 else {}
    return shape | ({"position_offset": 3} if offset and shape["position"] == "learned" else {})


def lively(model: Decoder) -> Decoder:
    """With norms and biases that are not those of a fresh model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(0, 257, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def followed(
    model: Decoder, prompts: Tensor, following: Tensor, padding: list[int], half: bool = False
) -> Tensor:
    """Logits after each of the `following` tokens, [B, T, V], by the C++."""
    capacity = prompts.shape[1] + following.shape[1]
    with KeyValueCache(model, padding, capacity, NativeDecoder(model, half=half)) as cache:
        cache.read(prompts)
        return torch.stack([cache.follow(tokens).clone() for tokens in following.T], dim=1)


@torch.no_grad()
def read_whole(model: Decoder, prompts: Tensor, following: Tensor, padding: list[int]) -> Tensor:
    """The same by one reading of each row in float64."""
    exact, count = copy.deepcopy(model).double(), following.shape[1]
    whole = torch.cat([prompts, following], dim=1)
    rows = [exact.logits(exact(whole[i : i + 1, pad:]))[0, -count:] for i, pad in enumerate(padding)]
    return torch.stack(rows)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """To `tolerance` of the largest logit."""
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


def rounded(model: Decoder, dtype: torch.dtype) -> Decoder:
    """With matrices that `dtype` holds exactly."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    return model


@named
def test_named_architectures_equal_a_float64_reading(small_model: Make, shape):
    model, inputs = lively(small_model(**shape)), (ids(3, 9), ids(3, 20), [0, 4, 2])
    assert can_decode(model)
    assert_near(followed(model, *inputs), read_whole(model, *inputs), 1e-5)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=shapes, rows=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_combination_equals_a_float64_reading(small_model: Make, shape, rows, seed):
    model = lively(small_model(seed, **together(shape)))
    assert can_decode(model)
    inputs = (ids(rows, 6), ids(rows, 4), [i % 4 for i in range(rows)])
    assert_near(followed(model, *inputs), read_whole(model, *inputs), 1e-5)


@named
def test_float16_weights_round_the_cache_to_float16_and_nothing_else(small_model: Make, shape):
    model = rounded(lively(small_model(**shape)), torch.float16)
    inputs = (ids(3, 9), ids(3, 20), [0, 4, 2])
    assert_near(followed(model, *inputs, half=True), read_whole(model, *inputs), 2e-3)


@named
def test_a_bfloat16_model_is_computed_in_float32(small_model: Make, shape):
    model = rounded(lively(small_model(**shape)), torch.bfloat16)
    inputs = (ids(3, 1), ids(3, 20), [0, 0, 0])
    expected = read_whole(model, *inputs)
    assert_near(followed(model.bfloat16(), *inputs), expected, 0.02)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("rows", [2, 3, 4, 7, 16])
def test_a_row_is_the_same_to_the_bit_alone_and_behind_padding(small_model: Make, rows, half):
    model, padding = lively(small_model(**LLAMA_3)), [i % 6 for i in range(rows)]
    decoder = NativeDecoder(model, half=half)
    following = ids(rows, 20)
    with torch.no_grad(), KeyValueCache(model, padding, 40, decoder) as cache:
        cache.read(ids(rows, 8))
        slots = [(slot.keys.clone(), slot.values.clone()) for slot in cache.slots]
        together = torch.stack([cache.follow(tokens).clone() for tokens in following.T], dim=1)
    for row, pad in enumerate(padding):
        with torch.no_grad(), KeyValueCache(model, [0], 60, decoder) as cache:
            cache.read(ids(1, 8 - pad))  # makes the buffers, which then hold what the row has read
            for slot, (keys, values) in zip(cache.slots, slots, strict=True):
                slot.keys[0, :, : 8 - pad] = keys[row, :, pad:8]
                slot.values[0, :, : 8 - pad] = values[row, :, pad:8]
            alone = torch.stack([cache.follow(t).clone() for t in following[row : row + 1].T], dim=1)
        assert torch.equal(alone[0], together[row])


@named
def test_the_number_of_threads_changes_no_bit(small_model: Make, monkeypatch, shape):
    monkeypatch.setattr(native, "THREADED_BYTES", 0)
    model, before = lively(small_model(**shape)), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            with torch.no_grad(), KeyValueCache(model, [0, 0], 20, NativeDecoder(model, half=True)) as cache:
                torch.set_num_threads(1)
                cache.read(ids(2, 8))
                torch.set_num_threads(threads)
                found.append(torch.stack([cache.follow(tokens).clone() for tokens in ids(2, 9).T]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_rows_that_stay_go_on_as_if_nobody_had_left(small_model: Make):
    model, following = small_model(), ids(5, 6)
    decoder = NativeDecoder(model)
    with torch.no_grad(), KeyValueCache(model, [0, 1, 2, 3, 4], 20, decoder) as cache:
        cache.read(ids(5, 7))
        everyone = torch.stack([cache.follow(tokens).clone() for tokens in following.T])
    with torch.no_grad(), KeyValueCache(model, [0, 1, 2, 3, 4], 20, decoder) as cache:
        cache.read(ids(5, 7))
        first = cache.follow(following[:, 0]).clone()
        cache.keep([4, 1])
        rest = torch.stack([cache.follow(tokens).clone() for tokens in following[[4, 1], 1:].T])
    assert torch.equal(first, everyone[0])
    assert torch.equal(rest, everyone[1:, [4, 1]])


def test_single_tokens_and_whole_pieces_may_alternate(small_model: Make):
    model, text = small_model(), ids(2, 9)
    with torch.no_grad(), KeyValueCache(model, [0, 2], 9, NativeDecoder(model)) as cache:
        cache.read(text[:, :3])
        cache.follow(text[:, 3])
        cache.read(text[:, 4:8])
        found = cache.follow(text[:, 8])[:, None]
    assert_near(found, read_whole(model, text[:, :8], text[:, 8:], [0, 2]), 1e-5)


def test_what_is_not_in_a_rows_context_is_never_read(small_model: Make):
    model, prompt = small_model(), ids(2, 5)
    with torch.no_grad(), KeyValueCache(model, [0, 3], 30, NativeDecoder(model)) as cache:
        cache.read(prompt)
        for slot in cache.slots:
            for buffer in (slot.keys, slot.values):
                buffer[:, :, 5:] = torch.nan
                buffer[1, :, :3] = torch.nan
        assert cache.follow(torch.tensor([1, 2])).isfinite().all()


def test_what_is_not_a_number_stays_in_its_row(small_model: Make):
    model = small_model(position="learned", activation="gelu")
    with torch.no_grad():
        model.positions.weight[7] = torch.nan
    found = followed(model, ids(2, 7), ids(2, 1), [0, 2])
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_large_inputs_overflow_no_activation(small_model: Make):
    for activation in ("gelu", "gelu_tanh", "swiglu", "relu_squared"):
        model = small_model(activation=activation, ffn_bias=True)
        with torch.no_grad():
            for layer in model.layers.values():
                layer.ffn.up.bias.copy_(torch.linspace(-1e4, 1e4, layer.ffn.up.bias.numel()))
        inputs = (ids(1, 3), ids(1, 3), [0])
        assert_near(followed(model, *inputs), read_whole(model, *inputs), 1e-5)


class Scaled(nn.Linear):
    """A linear layer that computes something else."""


def test_a_model_with_other_layers_decodes_in_pytorch(small_model: Make):
    model = small_model()
    model.head = Scaled(32, 257, bias=False)
    assert not can_decode(model)
    mixed = small_model()
    mixed.norm.to(torch.float64)
    assert not can_decode(mixed)
    assert not can_decode(small_model().to("meta"))
    assert not can_decode(small_model().double())
    other = small_model()
    other.norm = nn.Sequential(RMSNorm(32, 1e-6))
    assert not can_decode(other)


@pytest.mark.parametrize(
    "shape",
    [
        {"position": "sinusoidal"},
        {"position": "relative"},
        {"embedding_norm": "learned"},
        {"logit_scale": 0.5},
    ],
)
def test_choices_that_the_cpp_does_not_know_decode_in_pytorch(small_model: Make, shape):
    model, inputs = small_model(**shape), (ids(2, 5), ids(2, 3), [0, 2])
    assert not can_decode(model)
    with torch.no_grad(), KeyValueCache(model, [0, 2], 8) as cache:
        cache.read(inputs[0])
        found = torch.stack([cache.follow(tokens) for tokens in inputs[1].T], dim=1)
    assert_near(found, read_whole(model, *inputs), 1e-5)


def test_every_field_of_a_shape_is_followed_or_declined():
    known = native.COMPUTED | native.ELSEWHERE
    assert known <= ModelConfig.model_fields.keys()
    assert ModelConfig.model_fields.keys() - known == {
        "num_encoder_layers", "relative_buckets", "relative_distance", "num_token_types", "head",
        "num_classes", "class_names", "pooler", "head_transform", "logit_scale", "source_vocab_size",
        "start_id",
    }  # fmt: skip


def test_without_kernels_the_same_texts_come_from_pytorch(small_model: Make):
    model, text = small_model(), ids(2, 6)
    with torch.no_grad(), KeyValueCache(model, [0, 2], 6) as cache:
        cache.read(text[:, :5])
        found = cache.follow(text[:, 5])[:, None]
    assert_near(found, read_whole(model, text[:, :5], text[:, 5:], [0, 2]), 1e-5)
