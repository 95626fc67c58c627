"""Decoder families: the logits of `transformers` in both directions, and every tensor kept bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_decoders import KINDS, OPTIONS, random_options, tiny_model, transformers
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.model.interop import load_hugging_face, save_hugging_face


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_transformers_both_ways_and_tensors_stay(name, tokens, tmp_path):
    kind, options = OPTIONS[name]
    assert_held(kind, options, tokens, tmp_path)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_of_sizes_and_options_drawn_at_random(kind, seed, tokens, tmp_path):
    options = random_options(kind, seed)
    assert_held(kind, options, tokens % options["vocab_size"], tmp_path)


@torch.no_grad()
def assert_held(kind: str, options: dict[str, Any], tokens: Tensor, folder: Path) -> None:
    """Read a model of theirs, write it again, and let theirs read that: logits and tensors are the same."""
    theirs = tiny_model(kind, **options)
    theirs.save_pretrained(folder / "theirs")
    ours = load_hugging_face(folder / "theirs")
    expected = theirs(tokens).logits
    assert expected.std() > 0.1  # large enough for 1e-5 to mean something
    logits = ours.logits(ours(tokens))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    save_hugging_face(ours, folder / "ours")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(again(tokens).logits, logits, rtol=1e-5, atol=1e-5)
    before, after = weights(folder / "theirs"), weights(folder / "ours")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_hugging_face(folder / "ours").config == ours.config


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder."""
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_neox", "opt"])
@torch.no_grad()
def test_the_options_matter_at_this_size(kind, tokens):
    """Without its window, cap or place of norms the oracle's logits are others: the comparison sees them."""
    plain = {
        "mistral": {"sliding_window": None},
        "gemma2": {"attn_logit_softcapping": 0.5},
        "gpt_neox": {"use_parallel_residual": False},
        "opt": {"do_layer_norm_before": False},
    }[kind]
    with_option, without = tiny_model(kind), tiny_model(kind, **plain)
    without.load_state_dict(with_option.state_dict(), strict=False)
    assert (with_option(tokens).logits - without(tokens).logits).abs().max() > 1e-3


@torch.no_grad()
def test_gpt_neox_files_may_name_their_head_otherwise_and_hold_masks(tokens, tmp_path):
    theirs = tiny_model("gpt_neox")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 96, 96).tril().bool()
    tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    save_file(tensors, path)
    ours = load_hugging_face(tmp_path)
    torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    theirs = tiny_model("gpt_neox")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    head = theirs.lm_head.weight.detach()
    save_file({**load_file(path), "lm_head.weight": head}, path)
    with pytest.raises(CheckpointError, match=r"holds both '(embed_out|lm_head)\.weight' and"):
        load_hugging_face(tmp_path)
