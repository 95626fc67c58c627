"""Shapes that are accepted, shapes that are refused, and what is counted without building anything."""

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.config import dump, parse, schema
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.presets import PRESETS
from hasten.model.transformer import Decoder


def built_size(config: ModelConfig) -> int:
    """Parameters of the real module."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())


def small(**fields: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"vocab_size": 64, "dim": 16, "num_layers": 2, "num_heads": 2, **fields}
    )


def test_a_width_alone_gives_a_whole_shape():
    config = ModelConfig(dim=96, num_heads=6)
    assert (config.num_kv_heads, config.head_dim, config.ffn_dim) == (6, 16, 384)


def test_a_gated_layer_is_two_thirds_as_wide_rounded_up_to_64():
    assert ModelConfig(dim=96, num_heads=6, activation="swiglu").ffn_dim == 256


def test_a_preset_fills_in_what_is_not_given():
    config = ModelConfig.model_validate({"preset": "gpt2", "num_layers": 4})
    assert (config.num_layers, config.dim, config.norm, config.tied) == (4, 768, "layer", True)


def test_a_null_takes_the_default_and_not_the_presets_value():
    config = parse(
        ModelConfig, {"preset": "llama3.1-8b", "rope_scaling": None, "num_kv_heads": None}, "r.yaml"
    )
    assert config.rope_scaling is None
    assert config.num_kv_heads == config.num_heads == 32


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_yaml(name):
    config = ModelConfig(preset=name)
    assert parse(ModelConfig, yaml.safe_load(dump(config)), "model.yaml") == config


def test_editors_are_offered_the_presets():
    assert set(PRESETS) <= set(schema(ModelConfig)["properties"]["preset"]["enum"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "gtp2"}, "there is no preset 'gtp2'. Did you mean 'gpt2'?"),
        ({"dim": 65}, r"dim \(65\) must be a multiple of num_heads \(4\).* the nearest is 64"),
        ({"num_heads": 8, "num_kv_heads": 3}, r"num_heads \(8\) must be .* can be 1, 2, 4, 8"),
        ({"head_dim": 7}, r"head_dim \(7\) must be even; write head_dim: 8 or position: learned"),
        ({"position": "none", "rope_scaling": {"kind": "linear", "factor": 2.0}}, "needs position: rotary"),
        ({"rope_scaling": {"kind": "llama3", "low_frequency": 4.0}}, r"high_frequency \(4\) must be above"),
        ({"rope_scaling": {"kind": "lama3"}}, "Did you mean 'llama3'"),
        ({"activation": "swigul"}, "Did you mean 'swiglu'"),
        ({"num_layers": 0}, "num_layers should be greater than or equal to 1, got 0"),
        ({"dropout": 1.0}, "dropout should be less than 1"),
        ({"n_layers": 2}, "Did you mean 'num_layers'"),
    ],
)
def test_a_shape_that_cannot_work_is_refused_with_the_way_out(fields, message):
    with pytest.raises(ConfigError, match=message):
        parse(ModelConfig, fields, "recipe.yaml")


def test_counting_needs_a_vocabulary():
    with pytest.raises(ConfigError, match="vocab_size is not known before there is a tokenizer"):
        _ = ModelConfig(preset="hasten-tiny").num_parameters


@settings(max_examples=40, deadline=None)
@given(
    heads=st.sampled_from([(2, 1), (4, 2), (4, 4)]),
    head_dim=st.sampled_from([4, 10]),
    activation=st.sampled_from(["gelu", "swiglu", "relu_squared"]),
    kinds=st.fixed_dictionaries(
        {
            "position": st.sampled_from(["rotary", "learned", "none"]),
            "norm": st.sampled_from(["rms", "layer"]),
        }
    ),
    flags=st.fixed_dictionaries(
        {name: st.booleans() for name in ("qk_norm", "attention_bias", "out_bias", "ffn_bias", "tied")}
    ),
)
def test_the_parameter_formula_counts_the_real_module(heads, head_dim, activation, kinds, flags):
    config = small(
        dim=24, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, activation=activation,
        ffn_dim=40, **kinds, **flags,
    )  # fmt: skip
    assert config.num_parameters == built_size(config)
    with torch.device("meta"):
        matrices = [
            parameter.numel()
            for name, parameter in Decoder(config).layers.named_parameters()
            if parameter.ndim == 2
        ]
    assert config.num_matrix_parameters == sum(matrices)


def counted_flops(config: ModelConfig, row_tokens: int) -> float:
    """Forward FLOPs per token by PyTorch's own counter, on the written-out attention: the full square."""
    from torch.utils.flop_counter import FlopCounterMode

    from hasten.ops.attention import reference_attention

    with torch.device("meta"):
        model = Decoder(config)
        tokens = torch.zeros(1, row_tokens, dtype=torch.long)
    for layer in model.layers.values():
        layer.attention.attend = lambda q, k, v, causal, segments, dropout: reference_attention(
            q, k, v, causal=False
        )
    with FlopCounterMode(display=False) as counter:
        model.logits(model(tokens))
    return counter.get_total_flops() / row_tokens


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_forward_flops_are_those_of_the_matrix_products_with_half_the_attention_square(activation):
    config = small(num_heads=4, num_kv_heads=2, head_dim=8, activation=activation, ffn_dim=40)
    square = 4 * 12 * config.num_heads * config.head_dim * config.num_layers
    assert config.forward_flops_per_token(12) == counted_flops(config, 12) - square / 2


@pytest.mark.parametrize(("preset", "gigaflops"), [("llama3-8b", 51.47), ("llama3-70b", 449.2)])
def test_training_flops_equal_nvidias_column_for_llama_3_at_8192(preset, gigaflops):
    """Megatron-Bridge's model TFLOPs divided by its tokens/s (causal half of the square)."""
    flops = ModelConfig(preset=preset).flops_per_token(8192)
    assert flops / 1e9 == pytest.approx(gigaflops, abs=0.05)


def test_gpt_3_needs_the_flops_of_the_megatron_formula():
    """72 B s L h^2 (1 + s / 6h + V / 12Lh) of Narayanan et al. 2021, which counts the full square."""
    config = ModelConfig(preset="gpt3-175b")
    s, layers, h, v = 2048, config.num_layers, config.dim, config.vocabulary
    formula = 72 * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h))
    full_square = config.flops_per_token(s) + 3 * layers * 2 * s * h
    assert full_square == pytest.approx(formula, rel=1e-12)


def test_a_cached_position_costs_keys_and_values_of_all_layers():
    """Llama-3-8B: 32 layers x 8 heads x 128 numbers, twice, in 2 bytes: 128 KiB."""
    assert ModelConfig(preset="llama3-8b").kv_bytes_per_token() == 128 * 1024


def test_state_is_sixteen_bytes_a_parameter_and_twelve_where_muon_updates():
    config = small()
    assert config.state_bytes() == 16 * built_size(config)
    spared = 4 * sum(
        p.numel() for n, p in Decoder(config).named_parameters() if n.startswith("layers") and p.ndim == 2
    )
    assert config.state_bytes("muon") == config.state_bytes() - spared


def layer_bytes(config: ModelConfig, rows: int, tokens: int) -> int:
    """What one layer adds to the activations in bfloat16."""
    deeper = config.model_copy(update={"num_layers": config.num_layers + 1})
    return deeper.activation_bytes(rows, tokens) - config.activation_bytes(rows, tokens)


def test_a_gpt_block_with_dropout_keeps_34_bytes_per_token_and_width():
    """sbh (10 + 24) of Korthikanti et al. 2022 with the attention scores recomputed."""
    config = ModelConfig(preset="gpt2", dropout=0.1)
    assert layer_bytes(config, 3, 100) == 34 * 300 * config.dim


def test_a_llama_block_keeps_what_its_products_and_norms_read():
    """sbh (14 + 6 g + 8 f), with g the share of key heads and f the feed-forward width over D."""
    config = ModelConfig(preset="llama3-8b")
    g, f = config.num_kv_heads / config.num_heads, config.ffn_dim / config.dim
    assert layer_bytes(config, 2, 50) == (14 + 6 * g + 8 * f) * 100 * config.dim


def test_logits_count_six_bytes_each_for_the_tokens_held_at_a_time():
    config = small()
    whole, chunked = (config.activation_bytes(2, 32, chunk_tokens=chunk) for chunk in (None, 16))
    assert whole - chunked == (64 - 16) * 64 * 6
    assert config.activation_bytes(2, 32, chunk_tokens=1000) == whole


@pytest.mark.parametrize("precision", [torch.float32])
@pytest.mark.parametrize("activation", ["gelu", "swiglu", "relu_squared"])
def test_the_activation_formula_is_near_what_autograd_keeps(activation, precision, monkeypatch):
    """Saved tensors of one more layer, each storage once; norms keep a few more numbers per token.

    The kernels of a CPU keep less than PyTorch's own operations.
    """
    config = small(dim=64, num_heads=4, num_kv_heads=2, ffn_dim=128, activation=activation)
    deeper, formula = config.model_copy(update={"num_layers": 3}), 2 * layer_bytes(config, 2, 64)  # float32
    assert saved_bytes(deeper) - saved_bytes(config) <= 1.2 * formula
    monkeypatch.setattr("hasten.ops.kernels.library.library", lambda: None)
    assert formula == pytest.approx(saved_bytes(deeper) - saved_bytes(config), rel=0.2)


def saved_bytes(config: ModelConfig) -> int:
    """Bytes of all storages that autograd saves in a forward pass, the parameters' own left out."""
    model = Decoder(config)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(torch.zeros(2, 64, dtype=torch.long))
        total = sum(storage.nbytes() for storage in saved.values())
        assert hidden.requires_grad
    return total
