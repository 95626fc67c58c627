"""Every field of the installed configuration classes changes our shape, is refused, or changes no logit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import KINDS, LINEAR, tiny_config, tiny_model, transformers
from torch import Tensor

from hasten.core.config import parse
from hasten.core.errors import CheckpointError, ConfigError
from hasten.model.config import ModelConfig
from hasten.model.families.base import HARMLESS, ORDINARY, Fields
from hasten.model.families.registry import family_named
from hasten.model.interop import load_hugging_face, read_config

UNSWITCHABLE = {
    *("architectures", "dtype", "id2label", "label2id", "problem_type", "return_dict", "transformers_version")
}
"""What says nothing about the model's computation, and has no other valid value to try."""
OTHER = {
    "hidden_act": "relu",
    "hidden_activation": "silu",
    "activation_function": "silu",
    "rope_parameters": LINEAR,
    "layer_types": ["full_attention"] * 3,
    "num_attention_heads": 2,
    "n_head": 2,
    "n_inner": 20,
    "num_key_value_heads": 4,
    "per_layer_config": {"0": {"hidden_act": "gelu"}},
    "summary_type": "mean",
    "summary_activation": "tanh",
    "use_bidirectional_attention": True,
    "word_embed_proj_dim": 16,
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": 1.0,
}
"""Values that differ from those of the tiny models, where no rule gives one."""
ROPE = {"rope_theta": 1e4, "rope_type": "default"}
LAYERS = {"gemma": 4, "gemma2": 4, "gemma3": 4}


def field_names(kind: str) -> list[str]:
    """The fields of the installed class."""
    return [field.name for field in dataclasses.fields(getattr(transformers, KINDS[kind][0]))]


def other(kind: str, name: str, value: Any) -> Any:
    """A value of a field other than `value`."""
    if name == "layer_types":
        return ["full_attention"] * (LAYERS.get(kind, 3) - 1) + ["sliding_attention"]
    if name == "rope_parameters" and kind == "gemma3":
        return {"full_attention": {**LINEAR}, "sliding_attention": dict(ROPE)}
    if name == "hidden_act" and kind != "gpt_neox":
        return "gelu_new" if kind != "gemma" else "silu"
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool) or value is None:
        return not value if isinstance(value, bool) else 3
    return value + 1 if isinstance(value, int) else value * 3 + 0.25


def written(kind: str, folder: Path, **fields: Any) -> Path:
    """The `config.json` of a tiny model, with these fields in place of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(tiny_config(kind).to_json_string()), **fields}))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_installed_class_is_known(kind, tmp_path):
    values = json.loads(json.dumps(tiny_config(kind).to_dict()))
    fields = Fields(values, "config.json")
    family_named(values["model_type"], "config.json").read(fields)
    unknown = {name for name in field_names(kind) if name in fields.values} - HARMLESS - ORDINARY.keys()
    assert not unknown


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_changes_our_shape_or_is_refused_or_changes_no_logit(kind, tmp_path):
    plain = read_config(written(kind, tmp_path))[1]
    outcomes: dict[str, list[str]] = {"read": [], "refused": [], "the same": []}
    for name in sorted(set(field_names(kind)) - UNSWITCHABLE):
        value = json.loads((tmp_path / "config.json").read_text()).get(name)
        changed = other(kind, name, value)
        assert changed != value, name
        outcome = switched(kind, tmp_path / name, plain, {name: changed})
        outcomes[outcome].append(name)
    assert "vocab_size" in outcomes["read"]
    assert "use_cache" in outcomes["the same"]
    model, standard = tiny_model(kind), tiny_config(kind)
    expected = logits(kind, model.state_dict(), {})
    for name in outcomes["the same"]:
        changed = {name: other(kind, name, getattr(standard, name))}
        found = logits(kind, model.state_dict(), changed)
        assert torch.equal(found, expected), f"{name} changes the logits of {kind} and was passed over"


def switched(kind: str, folder: Path, plain: ModelConfig, fields: dict[str, Any]) -> str:
    """What hasten does with a file in which these fields differ."""
    try:
        shape = read_config(written(kind, folder, **fields))[1]
    except CheckpointError:
        return "refused"
    return "the same" if shape == plain else "read"


@torch.no_grad()
def logits(kind: str, weights: dict[str, Tensor], fields: dict[str, Any]) -> Tensor:
    """Of a tiny model with these fields and these weights."""
    model = tiny_model(kind, **fields)
    model.load_state_dict(weights)
    return model(torch.arange(40)[None]).logits


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("llama", {"hidden_act": "tanh"}, "cannot hold hidden_act 'tanh', only 'gelu'"),
        ("llama", {"sliding_window": 4}, r"does not know the field 'sliding_window' \(4\)"),
        ("llama", {"is_encoder_decoder": True}, "cannot hold is_encoder_decoder True, only False"),
        ("llama", {"pruned_heads": {"0": [1]}}, "cannot hold pruned_heads"),
        ("llama", {"architectures": ["LlamaForTokenClassification"]}, "only one of LlamaForCausalLM"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "cannot hold rope_type 'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        (
            "llama",
            {"rope_scaling": {"type": "longrope"}, "rope_parameters": None},
            "'longrope', only 'default', 'linear', 'llama3'",
        ),
        ("llama", {"rope_scaling": {**LINEAR, "rope_theta": 7.0}}, "disagree about rope_t"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, "disagree about rope_type"),
        ("llama", {"rope_parameters": {"type": "linear", "rope_type": "llama3"}}, "disagree about rope_type"),
        ("llama", {"rope_parameters": [1]}, "rope_parameters should hold a mapping"),
        ("llama", {"partial_rotary_factor": 0.5}, "cannot hold partial_rotary_factor 0.5"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers should be at most 1,000, got"),
        ("llama", {"hidden_size": -3}, "hidden_size should be a whole number at least 1, got -3"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps should be a number above 0, got 'small'"),
        ("llama", {"tie_word_embeddings": "false"}, "should be true or false, got 'false'"),
        ("mistral", {"sliding_window": "wide"}, "sliding_window should be null or a whole number"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "does not know the field 'layer_types'"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window should be true or false"),
        ("qwen2", {"layer_types": ["full_attention"]}, "for each of the 3 layers, got"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types should say 'sliding_attention'"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "there is no sliding_window"),
        ("gemma", {"use_bidirectional_attention": True}, "cannot hold use_bidirectional_attention True"),
        ("gemma", {"hidden_activation": "relu"}, "cannot hold hidden_activation 'relu'"),
        ("gemma", {"hidden_size": "many"}, "hidden_size should be a whole number"),
        ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping should be a number above 0"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "cannot hold attn_logit_softcapping 5.0, only None"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "should hold a mapping for"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": LINEAR}},
            "layers with a window have no scaling",
        ),
        ("opt", {"word_embed_proj_dim": 16}, "cannot hold word_embed_proj_dim 16, only 32"),
        ("opt", {"layer_norm_elementwise_affine": False}, "cannot hold layer_norm_elementwise_affine False"),
        ("gpt_neox", {"num_attention_heads": 5}, "should be a multiple of num_attention_heads"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.1}}, "gives 0 numbers to turn"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "cannot hold scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "cannot hold architectures"),
    ],
)
def test_what_hasten_cannot_hold_is_refused_by_name(kind, fields, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read_config(written(kind, tmp_path, **fields))


OLD_GEMMA3 = {
    "rope_theta": 2e4,
    "rope_local_base_freq": 300.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
OLDER = [
    ("mistral", {"rope_theta": 5e5, "rope_parameters": None}, {"rope_theta": 5e5}),
    ("mistral", {"sliding_window": None}, {"sliding_window": None}),
    ("qwen2", {"rope_theta": 1e6, "rope_parameters": None}, {"rope_theta": 1e6}),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": None}, {"hidden_act": "gelu"}),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, {}),
    ("gemma3", {**OLD_GEMMA3, "rope_parameters": None}, OLD_GEMMA3),
    ("gemma3", {"layer_types": None, "sliding_window_pattern": 3}, {"sliding_window_pattern": 3}),
    ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 500},
     {"rotary_pct": 0.5, "rotary_emb_base": 500}),
    ("gpt_neox", {"rope_parameters": None}, {}),
    ("opt", {"_remove_final_layer_norm": True, "prefix": "</s>", "activation_dropout": 0.0},
     {"_remove_final_layer_norm": True}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "theirs"), OLDER)
@torch.no_grad()
def test_files_of_older_releases_mean_what_transformers_makes_of_them(kind, fields, theirs, tmp_path):
    model = tiny_model(kind, **theirs)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(
        json.dumps(
            {
                name: value
                for name, value in values.items()
                if name not in fields or value is not None or name == "sliding_window"
            }
        )
    )
    ours = load_hugging_face(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokens = torch.arange(40)[None]
    expected = model(tokens).logits
    torch.testing.assert_close(again(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.logits(ours(tokens)), expected, rtol=1e-5, atol=1e-5)


NUMBERS = st.one_of(
    st.integers(-3, 200), st.sampled_from([0, 10**9, 10**30, -(10**30)]), st.floats(allow_nan=True)
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.sampled_from(["gelu", "linear"])
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["rope_type", "factor", "full_attention", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(KINDS)))
def test_junk_in_a_field_is_a_shape_or_refused_with_a_reason(data, kind):
    values = json.loads(tiny_config(kind).to_json_string())
    for name in data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3)):
        values[name] = data.draw(JUNK)
    values["model_type"] = tiny_config(kind).model_type
    fields = Fields(values, "config.json")
    try:
        shape = family_named(values["model_type"], "config.json").read(fields)
        fields.finish()
        parse(ModelConfig, shape, "config.json")
    except (CheckpointError, ConfigError) as error:
        assert "config.json" in str(error)
        assert len(str(error)) < 1000
