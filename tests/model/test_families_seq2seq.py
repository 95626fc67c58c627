"""T5 and Marian against `transformers`, in both directions, each option both ways."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import (
    close,
    encoder_outputs,
    our_encoder_outputs,
    our_seq2seq_logits,
    rows,
    seq2seq_logits,
    tiny_model,
    transformers,
)
from torch import nn

from hasten.core.errors import CheckpointError
from hasten.model.interop import load_hugging_face, save_hugging_face
from hasten.model.transformer import Encoder, Seq2Seq

GATED = {"feed_forward_proj": "gated-gelu"}
APART = {"share_encoder_decoder_embeddings": False}
UNTIED = {"tie_word_embeddings": False}
MODELS = {
    "t5": ("T5", {}),
    "t5 v1.1": ("T5", {**GATED, **UNTIED}),
    "t5 gated and tied": ("T5", GATED),
    "t5 untied": ("T5", UNTIED),
    "t5 gated silu": ("T5", {"feed_forward_proj": "gated-silu"}),
    "t5 gated exact gelu": ("T5", {"feed_forward_proj": "gated-gelu_python"}),
    "t5 gelu": ("T5", {"feed_forward_proj": "gelu"}),
    "t5 tanh gelu": ("T5", {"feed_forward_proj": "gelu_new"}),
    "t5 silu": ("T5", {"feed_forward_proj": "silu"}),
    "t5 other buckets": ("T5", {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 9}),
    "t5 buckets as published": (
        "T5",
        {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    ),
    "t5 more to read than to write with": ("T5", {"num_layers": 3, "num_decoder_layers": 1}),
    "t5 other eps, start 2": ("T5", {"layer_norm_epsilon": 1e-3, "decoder_start_token_id": 2}),
    "t5 unscaled, tied": ("T5", {"scale_decoder_outputs": False}),
    "marian": ("Marian", {}),
    "marian swish, scaled": ("Marian", {"activation_function": "swish", "scale_embedding": True}),
    "marian relu": ("Marian", {"activation_function": "relu"}),
    "marian fewer layers to write": ("Marian", {"decoder_layers": 1}),
    "marian two tables": ("Marian", APART),
    "marian two vocabularies": ("Marian", {**APART, "decoder_vocab_size": 44}),
    "marian three tables": ("Marian", {**APART, **UNTIED, "decoder_vocab_size": 70}),
    "marian other heads and widths": (
        "Marian",
        {
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 20,
            "decoder_ffn_dim": 20,
        },
    ),
}
CLASSES = {"T5": "ForConditionalGeneration", "Marian": "MTModel"}


def make_theirs(name: str) -> nn.Module:
    family, options = MODELS[name]
    return tiny_model(family, CLASSES[family], **options)


def loaded(theirs: nn.Module, folder: Path) -> Seq2Seq:
    theirs.save_pretrained(folder)
    ours = load_hugging_face(folder)
    assert isinstance(ours, Seq2Seq)
    return ours.eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_translator_gives_the_logits_of_transformers(name, tmp_path):
    theirs = make_theirs(name)
    ours = loaded(theirs, tmp_path)
    ids = 44 if "two vocabularies" in name else 60
    close(our_seq2seq_logits(ours, ids), seq2seq_logits(theirs, ids))


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_translator_is_the_same_in_transformers_bit_for_bit(name, tmp_path):
    theirs = make_theirs(name)
    ours = loaded(theirs, tmp_path / "theirs")
    save_hugging_face(ours, tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = again.state_dict()
    assert all(torch.equal(state[tensor], value) for tensor, value in theirs.state_dict().items())
    ids = 44 if "two vocabularies" in name else 60
    close(seq2seq_logits(again.eval(), ids), seq2seq_logits(theirs, ids))
    reloaded = load_hugging_face(tmp_path / "ours")
    assert reloaded.config == ours.config
    assert all(torch.equal(reloaded.state_dict()[n], v) for n, v in ours.state_dict().items())


@pytest.mark.parametrize("options", [{}, GATED, {"num_layers": 3}])
def test_t5s_encoder_stands_alone(options, tmp_path):
    theirs = tiny_model("T5", "EncoderModel", **options)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_hugging_face(tmp_path / "theirs").eval()
    assert isinstance(ours, Encoder)
    close(our_encoder_outputs(ours)["last_hidden_state"], encoder_outputs(theirs)["last_hidden_state"])
    save_hugging_face(ours, tmp_path / "ours")
    again, report = transformers.AutoModelForTextEncoding.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(torch.equal(again.state_dict()[n], value) for n, value in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["t5", "marian"])
@torch.no_grad()
def test_pairs_packed_into_one_row_stay_apart(name, tmp_path):
    ours = loaded(make_theirs(name), tmp_path)
    source, target = rows(30, padded=False)[0][:1], rows(20, padded=False)[0][:1]
    apart = [ours(target[:, :8], source=source[:, :12]), ours(target[:, 8:], source=source[:, 12:])]
    packed = ours(
        target,
        positions=torch.tensor([[*range(8), *range(12)]]),
        segments=torch.tensor([[1] * 8 + [2] * 12]),
        source=source,
        source_positions=torch.tensor([[*range(12), *range(18)]]),
        source_segments=torch.tensor([[1] * 12 + [2] * 18]),
    )
    close(packed, torch.cat(apart, dim=1))


def edit(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def test_a_v11_file_of_an_early_release_is_neither_tied_nor_scaled(tmp_path):
    """Flan-T5's files say `tie_word_embeddings: false` and have no `scale_decoder_outputs`."""
    theirs = make_theirs("t5 v1.1")
    theirs.save_pretrained(tmp_path)
    edit(
        tmp_path,
        tie_word_embeddings=False,
        scale_decoder_outputs=None,
        dense_act_fn="gelu_new",
        n_positions=512,
    )
    ours = load_hugging_face(tmp_path)
    assert (ours.config.tied, ours.config.logit_scale) == (False, 1.0)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    close(our_seq2seq_logits(ours), seq2seq_logits(again.eval()))


def test_a_head_that_repeats_the_table_is_tied(tmp_path):
    ours = loaded(make_theirs("t5"), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    table = tensors["shared.weight"]
    names = ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens")
    more = {f"{name}.weight": table.clone() for name in names}
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    save_file({**tensors, **more, unused: torch.ones(8, 4)}, path)
    again = load_hugging_face(tmp_path)
    assert again.config.tied
    assert all(torch.equal(again.state_dict()[name], value) for name, value in ours.state_dict().items())
    save_file({**tensors, "encoder.embed_tokens.weight": table + 1}, path)
    with pytest.raises(CheckpointError, match=r"'encoder\.embed_tokens\.weight' differs"):
        load_hugging_face(tmp_path)


def test_early_marian_files_hold_the_sinusoids(tmp_path):
    theirs = make_theirs("marian")
    ours = loaded(theirs, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.decoder.embed_positions.weight"
    table = theirs.model.decoder.embed_positions.weight.detach().clone()
    save_file({**tensors, name: table}, path)
    again = load_hugging_face(tmp_path)
    assert all(torch.equal(again.state_dict()[n], value) for n, value in ours.state_dict().items())
    save_file({**tensors, name: table + 0.01}, path)
    with pytest.raises(CheckpointError, match=r"'decoder\.embed_positions\.weight' is not what config"):
        load_hugging_face(tmp_path)


def test_sinusoids_are_exact_at_the_end_of_a_long_text():
    """In float32 the angle of position 1023 would be off by 1e-4, and so its sine."""
    from hasten.model.position import sinusoids

    dim, at = 64, 1023
    angles = [at / 10_000 ** (2 * i / dim) for i in range(dim // 2)]
    expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
    torch.testing.assert_close(sinusoids(torch.tensor([at]), dim)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("t5", {"feed_forward_proj": "gated-relu"}, "cannot hold feed_forward_proj 'gated-relu'"),
        ("t5", {"dense_act_fn": "gelu_new"}, "cannot hold dense_act_fn 'gelu_new', only 'relu'"),
        ("t5", {"is_gated_act": True}, "cannot hold is_gated_act True"),
        ("t5", {"architectures": ["T5ForSequenceClassification"]}, "cannot hold architectures"),
        ("t5", {"is_decoder": True}, "cannot hold is_decoder True"),
        ("t5", {"num_decoder_layers": 3}, r"has no tensor 'decoder\.block\.2"),
        ("t5", {"num_layers": 1, "num_decoder_layers": 2}, r"'encoder\.block\.1\..*' has no place"),
        ("t5", {"d_kv": 5}, "asks for"),
        ("marian", {"normalize_before": True}, "cannot hold normalize_before True"),
        ("marian", {"normalize_embedding": True}, "cannot hold normalize_embedding True"),
        ("marian", {"add_final_layer_norm": True}, "cannot hold add_final_layer_norm True"),
        ("marian", {"static_position_embeddings": False}, "cannot hold static_position_embeddings False"),
        (
            "marian",
            {"decoder_attention_heads": 2},
            "encoder_attention_heads 4 beside decoder_attention_heads 2",
        ),
        ("marian", {"decoder_ffn_dim": 20}, "encoder_ffn_dim 48 beside decoder_ffn_dim 20"),
        (
            "marian",
            {"tie_word_embeddings": False},
            "share_encoder_decoder_embeddings with tie_word_embeddings",
        ),
        ("marian", {"decoder_vocab_size": 44}, "vocab_size 60 and decoder_vocab_size 44"),
        ("marian", {"activation_function": "tanh"}, "cannot hold activation_function 'tanh'"),
        ("marian", {"num_hidden_layers": 5}, "cannot hold num_hidden_layers 5, only 2"),
        ("marian", {"architectures": ["MarianForCausalLM"]}, "cannot hold architectures"),
        ("marian", {"decoder_start_token_id": -1}, "start_id should be greater than or equal to 0"),
    ],
)
def test_what_hasten_cannot_hold_is_refused_by_name(name, fields, message, tmp_path):
    make_theirs(name).save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(tmp_path)
