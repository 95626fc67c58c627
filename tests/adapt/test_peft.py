"""Adapters to PEFT and from it: equal logits, equal gradients, and no file that is taken on trust."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapted import disturb
from torch import Tensor, nn

from hasten.adapt.config import LoraConfig
from hasten.adapt.lora import adapt, adapted_layers, settle, trained_names
from hasten.adapt.peft import adapter_base, is_adapter, load_adapter, save_adapter
from hasten.adapt.peft_names import matrices
from hasten.core.errors import CheckpointError
from hasten.model.families.registry import family_of
from hasten.model.initial import first_value
from hasten.model.interop import load_hugging_face
from hasten.model.transformer import Transformer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

VOCAB = 61
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
BERT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "num_labels": 3,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
NEOX = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
    "max_position_embeddings": 64, "num_labels": 3, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "dropout_rate": 0.0,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any], str | None, list[str]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA, "CAUSAL_LM",
              ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "bert": ("BertForSequenceClassification", "BertConfig", BERT, "SEQ_CLS",
             ["query", "key", "value", "attention.output.dense", "intermediate.dense"]),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, "CAUSAL_LM", ["c_attn", "c_proj", "c_fc"]),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX, "CAUSAL_LM",
                 ["query_key_value", "dense_h_to_4h"]),
    "masked": ("BertForMaskedLM", "BertConfig", {**BERT, "num_labels": 2}, None, ["query", "output.dense"]),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**BERT, "pad_token_id": 1}, "SEQ_CLS",
                ["query", "value", "intermediate.dense"]),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTILBERT, "SEQ_CLS",
                   ["q_lin", "v_lin", "lin1"]),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, "SEQ_2_SEQ_LM", ["q", "k", "v", "o", "wi", "wo"]),
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
EVERY = [(kind, way) for kind in ("llama", "bert", "gpt2", "gpt_neox") for way in WAYS]
EVERY += [(kind, "lora") for kind in ("masked", "roberta", "distilbert", "t5")]


def their_base(kind: str, folder: Path) -> Any:
    """A tiny model of theirs, in `folder` too."""
    torch.manual_seed(0)
    name, config, shape, *_ = MODELS[kind]
    model = getattr(transformers, name)(getattr(transformers, config)(**shape)).eval()
    for parameter in model.parameters():  # biases and norms that show
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    return model


def adapted_theirs(kind: str, way: str, folder: Path, **options: Any) -> Any:
    """A model of theirs with an adapter that was moved, saved in `folder / "adapter"`."""
    *_, task, targets = MODELS[kind]
    settings = {"r": 4, "lora_alpha": 10, "target_modules": targets, "task_type": task, **WAYS[way]}
    config = peft.LoraConfig(fan_in_fan_out=kind == "gpt2", **{**settings, **options})
    model = peft.get_peft_model(their_base(kind, folder / "base"), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    model.save_pretrained(folder / "adapter")
    return model


def adapted_ours(kind: str, folder: Path, **options: Any) -> Transformer:
    """A model of ours with an adapter that was moved, beside the base in `folder`."""
    their_base(kind, folder)
    model = load_hugging_face(folder)
    adapt(model, LoraConfig.model_validate(options), rank=4)
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            for part in (f"{name}.lora_a", f"{name}.lora_b"):
                parameter = model.get_parameter(part)
                parameter.copy_(first_value(part, parameter.shape, model.config, seed=0))
            assert layer.lora_a.any()
        settle(model)
        for name in set(trained_names(model)) - {
            f"{n}.{p}" for n in adapted_layers(model) for p in ("lora_a",)
        }:
            model.get_parameter(name).add_(0.01)  # heads that are trained whole
    return disturb(model).eval()


TOKENS = torch.randint(5, VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))


def ours_of(model: Transformer) -> Tensor:
    hidden = model(TOKENS, source=TOKENS) if model.config.kind == "seq2seq" else model(TOKENS)
    return model.logits(hidden[:, 0] if model.config.head == "pooled_classes" else hidden)


def theirs_of(model: nn.Module) -> Tensor:
    decoder = {"decoder_input_ids": TOKENS} if model.config.is_encoder_decoder else {}
    return model(input_ids=TOKENS, **decoder).logits


@pytest.mark.parametrize(("kind", "way"), EVERY)
@torch.no_grad()
def test_an_adapter_of_pefts_gives_the_same_logits_here(kind: str, way: str, tmp_path: Path) -> None:
    theirs = adapted_theirs(kind, way, tmp_path)
    ours = load_hugging_face(tmp_path / "base").eval()
    plain = ours_of(ours)
    assert is_adapter(tmp_path / "adapter") and not is_adapter(tmp_path / "base")
    load_adapter(tmp_path / "adapter", ours)
    torch.testing.assert_close(ours_of(ours), theirs_of(theirs), rtol=1e-5, atol=1e-5)
    assert (ours_of(ours) - plain).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "way"), EVERY)
@torch.no_grad()
def test_an_adapter_of_ours_gives_the_same_logits_in_peft(kind: str, way: str, tmp_path: Path) -> None:
    options = {name.removeprefix("use_"): value for name, value in WAYS[way].items()}
    ours = adapted_ours(kind, tmp_path / "base", alpha=6.0, **options)
    save_adapter(tmp_path / "adapter", ours, str(tmp_path / "base"))
    assert adapter_base(tmp_path / "adapter") == str(tmp_path / "base")
    name = MODELS[kind][0]
    base = getattr(transformers, name).from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs_of(theirs), ours_of(ours), rtol=1e-5, atol=1e-5)
    again = load_hugging_face(tmp_path / "base").eval()
    load_adapter(tmp_path / "adapter", again)
    assert trained_names(again) == trained_names(ours)
    for name in trained_names(ours):
        torch.testing.assert_close(again.get_parameter(name), ours.get_parameter(name), msg=name)
    for one, other in zip(adapted_layers(again).values(), adapted_layers(ours).values(), strict=True):
        assert one.low_rank._replace(alpha=0) == other.low_rank._replace(alpha=0)
        assert one.scale == pytest.approx(other.scale)


@pytest.mark.parametrize("targets", [("*.query", "*.value"), ("layers.1.*",)], ids=["parts", "one layer"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@torch.no_grad()
def test_parts_of_a_fused_matrix_without_a_pair_stay_as_they_are(
    targets: tuple[str, ...], dora: bool, tmp_path: Path
) -> None:
    ours = adapted_ours("gpt2", tmp_path / "base", targets=targets, dora=dora)
    save_adapter(tmp_path / "adapter", ours, str(tmp_path / "base"))
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs_of(theirs), ours_of(ours), rtol=1e-5, atol=1e-5)
    again = load_hugging_face(tmp_path / "base").eval()
    load_adapter(tmp_path / "adapter", again)
    torch.testing.assert_close(ours_of(again), ours_of(ours), rtol=1e-5, atol=1e-5)
    if not dora:
        assert adapted_layers(again).keys() == adapted_layers(ours).keys()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_gradients_are_pefts(kind: str, way: str, tmp_path: Path) -> None:
    theirs = adapted_theirs(kind, way, tmp_path)
    ours = load_hugging_face(tmp_path / "base").eval()
    load_adapter(tmp_path / "adapter", ours)
    for scores in (ours_of(ours), theirs_of(theirs)):
        labels = torch.arange(scores[..., 0].numel()) % scores.shape[-1]
        nn.functional.cross_entropy(scores.flatten(0, -2), labels).backward()
    expected = {
        name.replace(".default", "").removesuffix(".weight"): parameter.grad
        for name, parameter in theirs.named_parameters()
    }
    compared = 0
    for matrix in matrices(ours, family_of(ours.config)[0]):
        for layer in matrix.layers.values():
            for part in ("lora_a", "lora_b", "lora_magnitude"):
                own = getattr(layer, part, None)
                if own is not None:
                    name = {"lora_a": "lora_A", "lora_b": "lora_B", "lora_magnitude": "lora_magnitude_vector"}
                    other = expected[f"base_model.model.{matrix.path}.{name[part]}"]
                    # As a share of the largest: some gradients are of the size of 1e-3.
                    assert (own.grad - other).abs().max() <= 1e-5 * other.abs().max(), (matrix.path, part)
                    compared += 1
    assert compared == len(adapted_layers(ours)) * (3 if way == "dora" else 2) > 0


@torch.no_grad()
def test_ranks_and_alphas_by_name_are_followed(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.k_proj": 7}, "alpha_pattern": {"k_proj": 3}}
    theirs = adapted_theirs("llama", "lora", tmp_path, **patterns)
    ours = load_hugging_face(tmp_path / "base").eval()
    load_adapter(tmp_path / "adapter", ours)
    torch.testing.assert_close(ours_of(ours), theirs_of(theirs), rtol=1e-5, atol=1e-5)
    ranks = {name: layer.low_rank.rank for name, layer in adapted_layers(ours).items()}
    assert ranks["layers.0.attention.query"] == 2 and ranks["layers.1.attention.key"] == 7
    save_adapter(tmp_path / "again", ours, "base")
    other = load_hugging_face(tmp_path / "base").eval()
    load_adapter(tmp_path / "again", other)
    torch.testing.assert_close(ours_of(other), ours_of(ours))


@torch.no_grad()
def test_a_trunks_adapter_goes_beside_a_trunk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    trunk.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["query", "output.dense"], init_lora_weights=False)
    theirs = peft.get_peft_model(trunk, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_hugging_face(tmp_path / "base").eval()
    load_adapter(tmp_path / "adapter", ours)
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).last_hidden_state, rtol=1e-5, atol=1e-5)
    save_adapter(tmp_path / "again", ours, str(tmp_path / "base"))
    base = transformers.BertModel.from_pretrained(tmp_path / "base")
    back = peft.PeftModel.from_pretrained(base, tmp_path / "again").eval()
    torch.testing.assert_close(back(TOKENS).last_hidden_state, ours(TOKENS), rtol=1e-5, atol=1e-5)


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Rewrite the tensors of an adapter."""

    def rewrite(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path)

    return rewrite


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], object]:
    def change(held: dict[str, Tensor]) -> None:
        name = next(name for name in held if old in name)
        held[name.replace(old, new)] = held.pop(name)

    return change


def drop(part: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.pop(next(name for name in held if part in name))


def put(part: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.update({next(name for name in held if part in name): value})


def only_a_pickle(folder: Path) -> None:
    torch.save({}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lead_outside(folder: Path) -> None:
    shutil.move(folder / "adapter_model.safetensors", folder.parent / "elsewhere")
    (folder / "adapter_model.safetensors").symlink_to(folder.parent / "elsewhere")


HERE = "base_model.model.model"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (only_a_pickle, "only in adapter_model.bin, a pickle, which can hold a program"),
    "cut short": (cut_short, "cannot be read"),
    "link": (lead_outside, "is a link that leads out of its folder"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "there is no such file"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "there is no such file"),
    "no json": (lambda f: (f / "adapter_config.json").write_text("{,"), "is not JSON"),
    "code": (lambda f: edit(f, auto_map={"x": "y"}), "asks for code of its own"),
    "other method": (lambda f: edit(f, peft_type="IA3"), "cannot hold peft_type 'IA3', only 'LORA'"),
    "no rank": (lambda f: edit(f, r=0), "r should be a whole number at least 1"),
    "other rank": (lambda f: edit(f, r=8), r"lora_A.weight' is \[4, 32\] where .* ask for \[8, 32\]"),
    "bad alpha": (lambda f: edit(f, lora_alpha="10"), "lora_alpha should be a number above 0"),
    "bad dropout": (lambda f: edit(f, lora_dropout=1.0), "lora_dropout should be from 0 to below 1"),
    "biases": (lambda f: edit(f, bias="all"), "cannot hold bias 'all', only 'none'"),
    "bias of b": (lambda f: edit(f, lora_bias=True), "cannot hold lora_bias True"),
    "other base": (lambda f: edit(f, init_lora_weights="pissa"), "is 'pissa', which changes the base too"),
    "tokens": (lambda f: edit(f, trainable_token_indices=[1]), "know the field 'trainable_token_indices'"),
    "pattern": (lambda f: edit(f, rank_pattern={"(a+)+$": 2}), r"rank_pattern has the pattern '\(a\+\)\+\$'"),
    "bad pattern": (lambda f: edit(f, alpha_pattern={"q_proj": -1}), "alpha_pattern: q_proj should be"),
    "lengths": (lambda f: edit(f, use_dora=True), r"magnitude_vector' is missing where .* ask for \[32\]"),
    "more targets": (lambda f: edit(f, target_modules=["q_proj", "o_proj"]), "o_proj.lora_A.weight' is mis"),
    "bad targets": (lambda f: edit(f, target_modules=[1]), "target_modules should be a list of names"),
    "crowd": (lambda f: edit(f, target_modules=["x"] * 20_000), "target_modules has 20,000 names"),
    "half": (tensors(drop("0.self_attn.v_proj.lora_B")), "v_proj.lora_B.weight' is missing"),
    "shape": (tensors(put("0.self_attn.v_proj.lora_B", torch.ones(32, 4))), r"\[32, 4\] where .* \[16, 4\]"),
    "not finite": (tensors(put("lora_B", torch.full((16, 4), torch.nan))), "infinite or none"),
    "integers": (tensors(put("lora_B", torch.ones(16, 4, dtype=torch.int8))), "not quantized"),
    "prefix": (tensors(rename("base_model.model.", "")), "should begin with base_model.model."),
    "renamed": (tensors(rename("layers.0", "layers.9")), "layers.0.*lora_A.weight' is missing"),
    "nowhere": (
        tensors(lambda t: t.update({f"{HERE}.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32)})),
        "layers.9.mlp.up_proj.lora_A.weight' has no place",
    ),
    "embedding": (
        tensors(lambda t: t.update({f"{HERE}.embed_tokens.lora_embedding_A": torch.ones(2, VOCAB)})),
        "lora_embedding_A' has no place",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of PEFT's that is as it should be, beside its base."""
    folder = tmp_path_factory.mktemp("good")
    adapted_theirs("llama", "lora", folder, target_modules=["q_proj", "v_proj"])
    return folder


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_says_something_else_is_refused(case: str, good: Path, tmp_path: Path) -> None:
    harm, words = HOSTILE[case]
    shutil.copytree(good, tmp_path / "copy")
    harm(tmp_path / "copy" / "adapter")
    model = load_hugging_face(good / "base")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(CheckpointError, match=words) as caught:
        load_adapter(tmp_path / "copy" / "adapter", model)
    assert "\n" not in str(caught.value)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_an_adapter_for_another_base_is_refused(good: Path, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**{**LLAMA, "hidden_size": 64})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"q_proj.lora_A.weight' is \[4, 32\] where .* \[4, 64\]"):
        load_adapter(good / "adapter", load_hugging_face(tmp_path))


def test_an_adapter_without_a_base_says_so(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good / "adapter", tmp_path / "adapter")
    edit(tmp_path / "adapter", base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="does not name its base; write base="):
        adapter_base(tmp_path / "adapter")
