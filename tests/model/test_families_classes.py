"""Heads of classes against `transformers`, both ways: names, decoders that classify, answers in a text."""

import json
from pathlib import Path

import pytest
import tiny_encoders
import torch
from tiny_decoders import KINDS, transformers
from tiny_encoders import close, our_encoder_outputs, rows, token_types
from torch import Tensor, nn

from hasten.core.config import dump, parse, read_yaml
from hasten.core.errors import CheckpointError, ConfigError
from hasten.model.config import ModelConfig
from hasten.model.heads import with_classes, with_spans
from hasten.model.interop import load_hugging_face, save_hugging_face
from hasten.model.transformer import build

NAMES = {0: "World", 1: "Sports, 体育", 2: "Sci/Tech"}
ENCODERS = ["Bert", "Roberta", "DistilBert"]


def names_both_ways() -> dict[str, dict]:
    return {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}


def tiny_classifier(kind: str, **options: object) -> nn.Module:
    """A decoder of theirs with a head of classes, every parameter off its start."""
    config_class, language, sizes = KINDS[kind]
    stem = language.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    model_class = (
        "Gemma3TextForSequenceClassification" if kind == "gemma3" else f"{stem}ForSequenceClassification"
    )
    config = getattr(transformers, config_class)(**{**sizes, "pad_token_id": 1, **options})
    torch.manual_seed(0)
    model = getattr(transformers, model_class)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def decoder_scores(ours: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Classes of each row, from the state of its last token."""
    hidden = ours(tokens, segments=mask)
    last = mask.sum(dim=1) - 1
    return ours.logits(hidden[torch.arange(len(tokens)), last])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_decoder_with_classes_gives_what_transformers_gives_both_ways(kind, tmp_path):
    theirs = tiny_classifier(kind, **names_both_ways())
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_hugging_face(tmp_path / "theirs").eval()
    assert ours.config.class_names == tuple(NAMES.values())
    tokens, mask = rows(30)
    expected = theirs(tokens, attention_mask=mask).logits
    close(decoder_scores(ours, tokens, mask), expected)
    save_hugging_face(ours, tmp_path / "ours", extra={"pad_token_id": 1})
    again, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(again) is type(theirs)
    assert again.config.id2label == NAMES
    assert again.config.label2id == {name: number for number, name in NAMES.items()}
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    close(again.eval()(tokens, attention_mask=mask).logits, expected)
    assert load_hugging_face(tmp_path / "ours").config == ours.config


def test_gemma_caps_words_and_no_classes(tmp_path):
    theirs = tiny_classifier("gemma2", final_logit_softcapping=0.5)
    theirs.save_pretrained(tmp_path)
    assert load_hugging_face(tmp_path).config.logit_soft_cap is None
    tokens, mask = rows(30)
    with torch.no_grad():
        close(
            decoder_scores(load_hugging_face(tmp_path), tokens, mask),
            theirs(tokens, attention_mask=mask).logits,
        )


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_a_head_that_finds_answers_gives_what_transformers_gives_both_ways(family, padded, tmp_path):
    theirs = tiny_encoders.tiny_model(family, "ForQuestionAnswering")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_hugging_face(tmp_path / "theirs").eval()
    assert (ours.config.head, ours.config.class_names) == ("token_classes", ("start", "end"))
    expected = answers(theirs, padded)
    close(our_encoder_outputs(ours, padded)["logits"], expected)
    save_hugging_face(ours, tmp_path / "ours")
    again, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(again) is type(theirs)
    close(answers(again.eval(), padded), expected)
    assert load_hugging_face(tmp_path / "ours").config == ours.config


def answers(theirs: nn.Module, padded: bool) -> Tensor:
    """Scores of both ends at each place [3, T, 2], zero where there is padding."""
    tokens, mask = rows(30, padded)
    given = {"token_type_ids": token_types(tokens)} if tiny_encoders.has_types(theirs.config) else {}
    out = theirs(tokens, attention_mask=mask if padded else None, **given)
    return torch.stack([out.start_logits, out.end_logits], dim=-1) * mask[..., None]


@pytest.mark.parametrize("kind", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("family", ENCODERS)
def test_names_of_classes_come_in_and_go_out(family, kind, tmp_path):
    theirs = tiny_encoders.tiny_model(family, kind, **names_both_ways())
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_hugging_face(tmp_path / "theirs")
    assert ours.config.class_names == tuple(NAMES.values())
    assert parse(ModelConfig, read_yaml(dump(ours.config)), "model.yaml") == ours.config
    save_hugging_face(ours, tmp_path / "ours")
    again = getattr(transformers, family + kind).from_pretrained(tmp_path / "ours")
    assert again.config.id2label == NAMES
    plain = tiny_encoders.tiny_model(family, kind, num_labels=3)
    plain.save_pretrained(tmp_path / "plain")
    ours = load_hugging_face(tmp_path / "plain")
    assert ours.config.class_names is None
    save_hugging_face(ours, tmp_path / "plain again")
    again = getattr(transformers, family + kind).from_pretrained(tmp_path / "plain again")
    assert again.config.id2label == {n: f"LABEL_{n}" for n in range(3)}


def edit(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("ForSequenceClassification", {"id2label": []}, "id2label should be a mapping"),
        ("ForSequenceClassification", {"id2label": {"0": "a", "2": "b"}}, "each class from 0 to 1 a name"),
        ("ForSequenceClassification", {"id2label": {"0": "a", "1": "a"}}, "a name of its own, got"),
        ("ForSequenceClassification", {"id2label": {"0": "a", "1": ["b"]}}, "a name of its own, got"),
        ("ForSequenceClassification", {"id2label": {"0": "a", "1": ""}}, "a name of its own, got"),
        ("ForSequenceClassification", {"num_labels": 3}, "hasten cannot hold num_labels 3"),
        (
            "ForQuestionAnswering",
            {"id2label": {str(n): str(n) for n in range(3)}},
            "has two classes, where they",
        ),
        ("ForQuestionAnswering", {"architectures": ["BertForMultipleChoice"]}, "cannot hold architectures"),
    ],
)
def test_what_is_no_head_of_classes_is_refused_by_name(kind, fields, message, tmp_path):
    tiny_encoders.tiny_model("Bert", kind).save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names is for a head of classes, and head is vocabulary"),
        (
            {"head": "pooled_classes", "num_classes": 3, "class_names": ["a"]},
            "has 1 names, and num_classes is 3",
        ),
        ({"head": "pooled_classes", "num_classes": 2, "class_names": ["a", "a"]}, "a name twice"),
        ({"head": "pooled_classes", "num_classes": 2, "class_names": ["a", ""]}, "an empty one"),
        ({"head": "pooled_classes"}, "head: pooled_classes needs num_classes"),
    ],
)
def test_classes_and_names_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        parse(ModelConfig, {"kind": "encoder", "vocab_size": 60, **fields}, "model")


TRUNKS = {
    "bert": ("Bert", "Model", "BertForSequenceClassification"),
    "bert without pooler": ("Bert", "Model", "BertForSequenceClassification"),
    "bert masked": ("Bert", "ForMaskedLM", "BertForSequenceClassification"),
    "roberta masked": ("Roberta", "ForMaskedLM", "RobertaForSequenceClassification"),
    "distilbert": ("DistilBert", "Model", "DistilBertForSequenceClassification"),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_a_trunk_with_a_new_head_is_what_the_family_has(name, tmp_path):
    family, kind, written = TRUNKS[name]
    tiny_encoders.tiny_model(family, kind, add_pooling_layer="without" not in name).save_pretrained(
        tmp_path / "in"
    )
    trunk = load_hugging_face(tmp_path / "in").config
    for number, (config, architecture) in enumerate(
        [
            (with_classes(trunk, ["x", "y", "z"]), written),
            (
                with_spans(trunk),
                written.replace("Sequence", "").replace("Classification", "QuestionAnswering"),
            ),
        ]
    ):
        save_hugging_face(build(config, seed=0), tmp_path / str(number))
        assert json.loads((tmp_path / str(number) / "config.json").read_text())["architectures"] == [
            architecture
        ]
        assert load_hugging_face(tmp_path / str(number)).config == config.model_copy(update={"preset": None})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "opt", "gpt_neox", "qwen3"])
def test_a_decoder_with_a_new_head_is_what_the_family_has(kind, tmp_path):
    config_class, language, sizes = KINDS[kind]
    model = getattr(transformers, language)(getattr(transformers, config_class)(**sizes))
    model.save_pretrained(tmp_path / "in")
    config = with_classes(load_hugging_face(tmp_path / "in").config, ["x", "y"])
    assert not config.head_bias and config.pooler is None and not config.tied
    save_hugging_face(build(config, seed=0), tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    stem = type(model).__name__.replace("ForCausalLM", "").replace("LMHeadModel", "")
    assert written["architectures"] == [f"{stem}ForSequenceClassification"]
    assert load_hugging_face(tmp_path / "out").config == config


def test_models_that_have_no_such_head_are_refused():
    seq2seq = ModelConfig(kind="seq2seq", vocab_size=60)
    with pytest.raises(ConfigError, match="seq2seq, which has a head of words alone"):
        with_classes(seq2seq, ["a", "b"])
    with pytest.raises(
        ConfigError, match=r"model.kind is decoder, and answers are found in a text by an encoder"
    ):
        with_spans(ModelConfig(vocab_size=60))
