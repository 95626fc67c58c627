"""BERT, DistilBERT and RoBERTa against `transformers`, in both directions, each head and option both ways."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import close, encoder_outputs, our_encoder_outputs, tiny_model, transformers
from torch import nn

from hasten.core.errors import CheckpointError
from hasten.model.families import bert, distilbert, roberta, t5
from hasten.model.interop import load_hugging_face, save_hugging_face
from hasten.model.transformer import Encoder

NO_POOLER = {"add_pooling_layer": False}
UNTIED = {"tie_word_embeddings": False}
THREE = {"num_labels": 3}
MODELS = {
    "bert": ("Bert", "Model", {}),
    "bert without pooler": ("Bert", "Model", NO_POOLER),
    "bert tanh gelu, other eps": ("Bert", "Model", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    "bert relu, one type": ("Bert", "Model", {"hidden_act": "relu", "type_vocab_size": 1}),
    "bert silu, three types": ("Bert", "Model", {"hidden_act": "silu", "type_vocab_size": 3}),
    "bert masked": ("Bert", "ForMaskedLM", {}),
    "bert masked, untied": ("Bert", "ForMaskedLM", UNTIED),
    "bert masked, relu": ("Bert", "ForMaskedLM", {"hidden_act": "relu"}),
    "bert classes": ("Bert", "ForSequenceClassification", {}),
    "bert three classes": ("Bert", "ForSequenceClassification", THREE),
    "bert token classes": ("Bert", "ForTokenClassification", THREE),
    "bert one head, chunks": ("Bert", "Model", {"num_attention_heads": 1, "chunk_size_feed_forward": 5}),
    "roberta": ("Roberta", "Model", {}),
    "roberta without pooler": ("Roberta", "Model", NO_POOLER),
    "roberta, padding 0": ("Roberta", "Model", {"pad_token_id": 0}),
    "roberta, padding 5, relu": ("Roberta", "Model", {"pad_token_id": 5, "hidden_act": "relu"}),
    "roberta masked": ("Roberta", "ForMaskedLM", {}),
    "roberta masked, untied": ("Roberta", "ForMaskedLM", UNTIED),
    "roberta classes": ("Roberta", "ForSequenceClassification", {"type_vocab_size": 1}),
    "roberta three classes": ("Roberta", "ForSequenceClassification", THREE),
    "roberta token classes": ("Roberta", "ForTokenClassification", {}),
    "distilbert": ("DistilBert", "Model", {}),
    "distilbert relu": ("DistilBert", "Model", {"activation": "relu"}),
    "distilbert sinusoidal": ("DistilBert", "Model", {"sinusoidal_pos_embds": True}),
    "distilbert masked": ("DistilBert", "ForMaskedLM", {}),
    "distilbert masked, untied": ("DistilBert", "ForMaskedLM", UNTIED),
    "distilbert classes": ("DistilBert", "ForSequenceClassification", {}),
    "distilbert three classes": ("DistilBert", "ForSequenceClassification", THREE),
    "distilbert token classes": ("DistilBert", "ForTokenClassification", THREE),
}
UNUSED = {"bert masked, untied": "cls.predictions.bias", "roberta masked, untied": "lm_head.bias"}
"""A parameter that a head of its own leaves without a use: its bias is another."""


def make_theirs(name: str) -> nn.Module:
    family, kind, options = MODELS[name]
    return tiny_model(family, kind, **options)


def loaded(theirs: nn.Module, folder: Path) -> Encoder:
    theirs.save_pretrained(folder)
    ours = load_hugging_face(folder)
    assert isinstance(ours, Encoder)
    return ours.eval()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_encoder_gives_what_transformers_gives(name, padded, tmp_path):
    theirs = make_theirs(name)
    ours = loaded(theirs, tmp_path)
    expected = encoder_outputs(theirs, padded)
    found = our_encoder_outputs(ours, padded)
    for output, value in found.items():
        close(value, expected[output])
    assert ("pooler_output" in found) == ("pooler_output" in expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_encoder_is_the_same_in_transformers_bit_for_bit(name, tmp_path):
    theirs = make_theirs(name)
    ours = loaded(theirs, tmp_path / "theirs")
    save_hugging_face(ours, tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    unused = {UNUSED[name]} if name in UNUSED else set()
    missing = {n for n in report["missing_keys"] if not n.startswith("pooler.") or ours.config.pooler}
    assert missing == unused
    assert not report["unexpected_keys"]
    state = again.state_dict()
    for tensor, value in theirs.state_dict().items():
        assert tensor in unused or torch.equal(state[tensor], value), tensor
    expected = our_encoder_outputs(ours)
    for output, value in encoder_outputs(again.eval()).items():
        if output in expected:
            close(expected[output], value)
    reloaded = load_hugging_face(tmp_path / "ours")
    assert reloaded.config == ours.config
    assert all(torch.equal(reloaded.state_dict()[n], v) for n, v in ours.state_dict().items())


@pytest.mark.parametrize("name", ["bert masked", "roberta token classes", "distilbert"])
@torch.no_grad()
def test_texts_packed_into_one_row_stay_apart(name, tmp_path):
    ours = loaded(make_theirs(name), tmp_path)
    tokens = torch.randint(2, 60, (1, 30), generator=torch.Generator().manual_seed(1))
    first, second = ours(tokens[:, :12]), ours(tokens[:, 12:])
    segments = torch.tensor([[1] * 12 + [2] * 18])
    positions = torch.tensor([[*range(12), *range(18)]])
    packed = ours(tokens, positions=positions, segments=segments)
    close(packed, torch.cat((first, second), dim=1))


def test_a_pretraining_head_is_refused_by_name_and_left_out_when_told_to(tmp_path, capsys):
    theirs = tiny_model("Bert", "ForPreTraining")
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r'no head for the next sentence; .* \["BertForMaskedLM"\]'):
        load_hugging_face(tmp_path)
    edit(tmp_path, architectures=["BertForMaskedLM"])
    ours = load_hugging_face(tmp_path)
    assert "without bert.pooler" not in (said := capsys.readouterr().out)
    assert "asks for a model without cls.seq_relationship.bias" in said
    assert "pooler.dense.weight: left out" in said
    masked = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    close(our_encoder_outputs(ours)["logits"], encoder_outputs(masked.eval())["logits"])


def edit(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@pytest.mark.parametrize("name", ["bert", "bert masked", "distilbert masked", "roberta masked", "roberta"])
def test_a_file_that_names_no_class_tells_it_by_its_tensors(name, tmp_path):
    theirs = make_theirs(name)
    ours = loaded(theirs, tmp_path)
    edit(tmp_path, architectures=None)
    assert load_hugging_face(tmp_path).config == ours.config


def test_the_spelling_of_the_first_release_is_read(tmp_path):
    """bert-base-uncased has gamma and beta, position ids, and the head's matrix beside the embedding."""
    theirs = make_theirs("bert masked")
    ours = loaded(theirs, tmp_path)
    path = tmp_path / "model.safetensors"
    old = {}
    for name, tensor in load_file(path).items():
        new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[new] = tensor
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(old, path)
    again = load_hugging_face(tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in ours.state_dict().items())
    old["cls.predictions.decoder.weight"] += 1
    save_file(old, path)
    with pytest.raises(CheckpointError, match=r"'cls\.predictions\.decoder\.weight' differs"):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("bert", {"architectures": ["BertForMultipleChoice"]}, "cannot hold architectures"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"hidden_act": "mish"}, "hidden_act 'mish'"),
        (
            "bert classes",
            {"id2label": {str(i): str(i) for i in range(5)}},
            r"'classifier.\w+' is \[2",
        ),
        ("bert classes", {"id2label": []}, "id2label should be a mapping"),
        ("bert token classes", {"architectures": ["BertForMaskedLM"]}, "has no place|has no tensor"),
        ("bert without pooler", {"architectures": ["BertForSequenceClassification"]}, "has no tensor"),
        ("roberta", {"pad_token_id": -1}, "positions begin behind row pad_token_id of 40, and it is -1"),
        ("roberta", {"pad_token_id": 39}, "positions begin behind row pad_token_id"),
        ("roberta masked", {"hidden_act": "relu"}, "head has gelu whatever hidden_act says"),
        ("distilbert", {"activation": "tanh"}, "cannot hold activation 'tanh'"),
        ("distilbert", {"n_layers": 3}, r"has no tensor 'transformer.layer.2"),
    ],
)
def test_what_hasten_cannot_hold_is_refused_by_name(name, fields, message, tmp_path):
    make_theirs(name).save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize("page", ["encoders.md", "encoders.zh-CN.md"])
def test_the_page_names_every_class_that_is_held(page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    for family in (bert, t5):
        assert all(f"`{name}`" in text for name in family.CLASSES)
    assert all(f"`{model_type}`" in text for model_type in ("roberta", "distilbert", "marian"))
    for family in (roberta, distilbert):  # "the same five"
        assert [*family.CLASSES.values()] == [*bert.CLASSES.values()]
