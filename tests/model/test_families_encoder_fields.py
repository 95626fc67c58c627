"""Every field of the installed classes: it changes our shape, is refused, or changes no logit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import encoder_outputs, seq2seq_logits, tiny_model, transformers
from torch import Tensor, nn

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.interop import load_hugging_face

HEADS = {
    "Bert": "ForMaskedLM",
    "Roberta": "ForTokenClassification",
    "DistilBert": "ForSequenceClassification",
    "T5": "ForConditionalGeneration",
    "Marian": "MTModel",
}
UNSWITCHABLE = {
    *(
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "problem_type",
        "return_dict",
        "transformers_version",
    ),
    *("output_attentions", "output_hidden_states", "is_encoder_decoder"),
}
"""What says nothing about the computation, has no other valid value to try, or changes what is returned."""
OTHER = {
    "hidden_act": "relu",
    "activation": "relu",
    "activation_function": "relu",
    "feed_forward_proj": "gelu",
    "num_attention_heads": 2,
    "n_heads": 2,
    "num_heads": 8,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "chunk_size_feed_forward": 5,
    "decoder_start_token_id": 3,
}
"""Values other than those of the tiny models, where no rule gives a valid one."""
HARMLESS = {
    "Bert": {"pad_token_id", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"},
    "Roberta": {"tie_word_embeddings", "hidden_dropout_prob", "classifier_dropout", "use_cache"},
    "DistilBert": {"sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "attention_dropout"},
    "T5": {"dropout_rate", "initializer_factor", "classifier_dropout", "pad_token_id"},
    "Marian": {"encoder_layerdrop", "forced_eos_token_id", "activation_dropout", "bos_token_id"},
}
"""Some that must be passed over: a trained checkpoint sets them."""
READ = {
    "Bert": {"layer_norm_eps", "hidden_act", "num_attention_heads"},
    "Roberta": {"layer_norm_eps", "hidden_act", "num_attention_heads"},
    "DistilBert": {"activation", "n_heads"},
    "T5": {"layer_norm_epsilon", "relative_attention_max_distance"},
    "Marian": {"activation_function", "scale_embedding", "decoder_start_token_id", "max_position_embeddings"},
}
"""Some that change no tensor's shape and yet the model."""


def field_names(family: str) -> list[str]:
    """The fields of the installed class."""
    return [field.name for field in dataclasses.fields(getattr(transformers, f"{family}Config"))]


def other(name: str, value: Any) -> Any:
    """A value of a field other than `value`."""
    if name in OTHER:
        return OTHER[name]
    if "dropout" in name or "layerdrop" in name:
        return 0.5
    if isinstance(value, bool) or value is None:
        return not value if isinstance(value, bool) else 3
    return value + 1 if isinstance(value, int) else value * 3 + 0.25


@pytest.mark.parametrize("family", HEADS)
def test_a_field_changes_our_shape_or_is_refused_or_changes_no_logit(family, tmp_path):
    tiny_model(family, HEADS[family]).save_pretrained(tmp_path)
    plain, values = load_hugging_face(tmp_path).config, json.loads((tmp_path / "config.json").read_text())
    outcomes: dict[str, set[str]] = {"read": set(), "refused": set(), "the same": set()}
    for name in sorted(set(field_names(family)) - UNSWITCHABLE):
        changed = other(name, values.get(name))
        assert changed != values.get(name), name
        outcomes[switched(tmp_path, plain, {**values, name: changed})].add(name)
    assert READ[family] <= outcomes["read"]
    assert HARMLESS[family] <= outcomes["the same"]
    assert "vocab_size" in outcomes["refused"]  # no tensor has that shape
    expected = logits(family, tmp_path, values)
    for name in outcomes["the same"]:
        found = logits(family, tmp_path, {**values, name: other(name, values.get(name))})
        assert torch.equal(found, expected), f"{name} changes the logits of {family} and was passed over"


def switched(folder: Path, plain: ModelConfig, values: dict[str, Any]) -> str:
    """What hasten does with the folder when its `config.json` has these fields."""
    (folder / "config.json").write_text(json.dumps(values))
    try:
        shape = load_hugging_face(folder).config
    except CheckpointError:
        return "refused"
    return "the same" if shape == plain else "read"


def logits(family: str, folder: Path, values: dict[str, Any]) -> Tensor:
    """Of the model that `transformers` makes of these fields, with always the same weights."""
    (folder / "config.json").write_text(json.dumps(values))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, family + HEADS[family])._from_config(config, attn_implementation="eager")
    model.load_state_dict(tiny_model(family, HEADS[family]).state_dict())
    return (seq2seq_logits if family in ("T5", "Marian") else encoder_logits)(model.eval())


def encoder_logits(theirs: nn.Module) -> Tensor:
    """Those of an encoder with a head."""
    return encoder_outputs(theirs)["logits"]


OF_THE_HUB: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base-chinese": (
        "Bert",
        {
            "directionality": "bidi",
            "pooler_fc_size": 768,
            "pooler_num_attention_heads": 12,
            "pooler_num_fc_layers": 3,
            "pooler_size_per_head": 128,
            "pooler_type": "first_token_transform",
            "gradient_checkpointing": False,
            "position_embedding_type": "absolute",
        },
    ),
    "opus-mt-en-de": (
        "Marian",
        {
            "_num_labels": 3,
            "add_bias_logits": False,
            "add_final_layer_norm": False,
            "bad_words_ids": [[58100]],
            "classif_dropout": 0.0,
            "classifier_dropout": 0.0,
            "gradient_checkpointing": False,
            "max_length": 512,
            "normalize_before": False,
            "normalize_embedding": False,
            "num_beams": 6,
            "num_hidden_layers": 2,
            "static_position_embeddings": True,
        },
    ),
    "t5-small": (
        "T5",
        {
            "n_positions": 512,
            "output_past": True,
            "task_specific_params": {"summarization": {"num_beams": 4}},
        },
    ),
    "distilbert-base-uncased": ("DistilBert", {"tie_weights_": True, "output_past": True}),
}
"""Fields that published files have and today's classes have not."""


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_fields_of_published_files_that_classes_have_lost_are_known(name, tmp_path):
    family, fields = OF_THE_HUB[name]
    tiny_model(family, HEADS[family]).save_pretrained(tmp_path)
    plain, values = load_hugging_face(tmp_path).config, json.loads((tmp_path / "config.json").read_text())
    assert switched(tmp_path, plain, {**values, **fields}) == "the same"
    (tmp_path / "config.json").write_text(json.dumps({**values, "unheard_of": 1}))
    with pytest.raises(CheckpointError, match="does not know the field 'unheard_of'"):
        load_hugging_face(tmp_path)


@pytest.mark.parametrize("family", HEADS)
def test_a_field_of_the_wrong_kind_is_refused_and_named(family, tmp_path):
    tiny_model(family, HEADS[family]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    refused = set()
    for name in sorted(set(field_names(family)) & values.keys() - {"model_type"}):
        for strange in ([], "many", -1, True):
            if type(strange) is type(values[name]):
                continue
            path.write_text(json.dumps({**values, name: strange}))
            try:
                load_hugging_face(tmp_path)
            except CheckpointError:
                refused.add(name)
    assert refused >= {"vocab_size", *(name for name in READ[family] if name in values)}
