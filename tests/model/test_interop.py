"""Checkpoints of `transformers`: equal logits in both directions, and everything strange refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.interop import load_hugging_face, save_hugging_face
from hasten.model.transformer import build

transformers = pytest.importorskip("transformers")

STORIES = Path(__file__).parents[2] / "../shared/data/models/stories260K"
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}
LLAMA = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS = {
    "gpt2": ("GPT2", {}),
    "gpt2 exact gelu, narrow": ("GPT2", {"activation_function": "gelu", "n_inner": 24}),
    "gpt2 untied, other eps": ("GPT2", {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "llama": ("Llama", {}),
    "llama grouped, tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama one key head, wide heads": ("Llama", {"num_key_value_heads": 1, "head_dim": 12}),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama other theta and eps": (
        "Llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3},
    ),
    "llama linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama llama3 rope": ("Llama", {"rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 2}),
}


def make_theirs(name: str) -> nn.Module:
    """A tiny model of `transformers` in which no parameter is at its trivial start."""
    kind, options = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**(GPT2 if kind == "GPT2" else LLAMA), **options})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(
        config
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_loaded_model_gives_the_logits_of_transformers(name, tokens, tmp_path):
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path)
    ours = load_hugging_face(tmp_path)
    expected = theirs(tokens).logits
    assert expected.std() > 0.1  # large enough for 1e-5 to mean something
    torch.testing.assert_close(ours.logits(ours(tokens)), expected, rtol=1e-5, atol=1e-5)
    assert all(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_saved_model_gives_its_logits_in_transformers(name, tokens, tmp_path):
    make_theirs(name).save_pretrained(tmp_path / "theirs")
    ours = load_hugging_face(tmp_path / "theirs")
    save_hugging_face(ours, tmp_path / "ours")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(theirs(tokens).logits, ours.logits(ours(tokens)), rtol=1e-5, atol=1e-5)
    again = load_hugging_face(tmp_path / "ours")
    assert again.config == ours.config
    for name_, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name_], value), name_


def test_a_checkpoint_in_several_files_is_read_whole(tokens, tmp_path):
    theirs = make_theirs("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = load_hugging_face(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_bfloat16_weights_become_float32(tmp_path):
    make_theirs("llama").bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in load_hugging_face(tmp_path).parameters()} == {torch.float32}


@pytest.mark.parametrize("old", [{"type": "linear", "factor": 4.0}, {**LLAMA3_ROPE, "rope_theta": None}])
def test_the_older_spelling_of_rotary_scaling_means_the_same(old, tmp_path):
    kind = old.get("rope_type", "linear")
    make_theirs(f"llama {kind} rope").save_pretrained(tmp_path)
    expected = load_hugging_face(tmp_path).config
    edit(tmp_path, rope_parameters=None, rope_theta=10_000.0, rope_scaling=old)
    assert load_hugging_face(tmp_path).config == expected


def edit(folder: Path, **fields: Any) -> None:
    """Change fields of a `config.json`; None removes one."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, "cannot hold model_type 'lama'. Did you mean 'llama'?"),
        ({"model_type": None}, "cannot hold model_type None"),
        ({"hidden_act": "tanh"}, "cannot hold hidden_act 'tanh', only 'gelu'"),
        ({"sliding_window": 4096}, r"does not know the field 'sliding_window' \(4096\)"),
        ({"quantization_config": {"bits": 4}}, "cannot hold quant_method"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'yarn'"),
        ({"rope_parameters": {**LLAMA3_ROPE, "beta": 1}}, "rope: hasten does not know the field 'beta'"),
        ({"hidden_size": None}, "has no field 'hidden_size'"),
        ({"hidden_size": "many"}, "hidden_size should be a whole number at least 1, got 'many'"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_kv_heads"),
        ({"intermediate_size": 40}, r"'model.layers.0.mlp|layers.0.mlp.\w+_proj.weight' is \["),
        ({"num_hidden_layers": 4}, "has no tensor 'layers.3"),
        ({"num_hidden_layers": 2}, "'layers.2.*' has no place in the model"),
        ({"tie_word_embeddings": True}, "'lm_head.weight' differs from the embedding"),
    ],
)
def test_a_config_that_hasten_cannot_hold_is_refused(fields, message, tmp_path):
    make_theirs("llama").save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_attn_weights": False}, "cannot hold scale_attn_weights False, only True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "cannot hold scale_attn_by_inverse_layer_idx True"),
        ({"add_cross_attention": True}, "cannot hold add_cross_attention True"),
        ({"activation_function": "tanh"}, "cannot hold activation_function 'tanh'"),
    ],
)
def test_a_gpt2_that_hasten_cannot_hold_is_refused(fields, message, tmp_path):
    make_theirs("gpt2").save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(tmp_path)


def test_old_gpt2_files_with_masks_and_bare_names_load(tokens, tmp_path):
    theirs = make_theirs("gpt2")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    save_file({**tensors, "h.0.attn.bias": torch.ones(1, 1, 40, 40)}, path)
    ours = load_hugging_face(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_a_damaged_or_absent_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not JSON"):
        load_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="should hold a mapping, got list"):
        load_hugging_face(tmp_path)
    make_theirs("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read .* it is cut short"):
        load_hugging_face(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="hasten reads safetensors only"):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd"])
def test_an_index_that_points_outside_of_its_folder_is_refused(name, tmp_path):
    make_theirs("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        load_hugging_face(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_hugging_face(tmp_path)


def test_a_model_that_no_architecture_can_hold_is_not_exported(tmp_path):
    model = build(ModelConfig(preset="hasten-tiny", vocab_size=32, num_layers=1), seed=0)
    with pytest.raises(CheckpointError, match=r"no Hugging Face architecture .* activation relu_squared"):
        save_hugging_face(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not STORIES.exists(), reason="shared/data/models/stories260K is not here")
@torch.no_grad()
def test_a_trained_model_continues_the_story_that_its_author_published():
    """Greedy text of stories260K from <s>, as llama2.c's doc/stories260K.md prints it."""
    from tokenizers import Tokenizer

    model = load_hugging_face(STORIES).eval()
    assert model.config.num_parameters == 260_032
    tokens = torch.tensor([[1]])
    for _ in range(100):
        chosen = model.logits(model(tokens)[:, -1]).argmax(dim=-1)
        tokens = torch.cat((tokens, chosen[:, None]), dim=1)
    text = Tokenizer.from_file(str(STORIES / "tokenizer.json")).decode(tokens[0].tolist())
    assert text.strip().startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One"
        " day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
        "Lily's mom said, \"Lily, let's go to the park.\""
    )
