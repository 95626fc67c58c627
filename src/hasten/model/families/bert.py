"""BERT (Devlin et al. 2019): the trunk with or without pooler, masked words, classes, answers in a text."""

from typing import Any

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.families.base import MOST_LAYERS, PLAIN, Family, Fields, Source, name_of, tied_head
from hasten.model.families.classes import (
    SPANS,
    finds_spans,
    head_word,
    read_classes,
    read_spans,
    write_classes,
)

CLASSES = {
    "BertModel": "none",
    "BertForMaskedLM": "vocabulary",
    "BertForSequenceClassification": "pooled_classes",
    "BertForTokenClassification": "token_classes",
    "BertForQuestionAnswering": SPANS,
}
MODULES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
MASKED = "cls.predictions."


def read_bert(fields: Fields) -> dict[str, Any]:
    """The shape of a BERT and its head."""
    if fields.values.get("architectures") == ["BertForPreTraining"]:
        raise CheckpointError(
            f"{fields.where}: hasten has no head for the next sentence; write architectures"
            ' ["BertForMaskedLM"] to leave that head out, or ["BertModel"] for the trunk'
        )
    if not fields.values.get("architectures") and f"{MASKED}bias" in fields.tensors:
        fields.values["architectures"] = ["BertForMaskedLM"]
    head = fields.architecture(CLASSES)
    return {**read_trunk(fields), **read_head(fields, head, pooled="pooler.dense.weight")}


def read_trunk(fields: Fields) -> dict[str, Any]:
    """What BERT and RoBERTa have in common, in `config.json` and as a model."""
    fields.require("position_embedding_type", "absolute")
    fields.require("directionality", "bidi")
    fields.skip(
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
        # of TensorFlow's BERT, for which no class of transformers ever asked
        "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
        "pooler_type",
    )  # fmt: skip
    return {
        "kind": "encoder",
        "vocab_size": fields.count("vocab_size"),
        "dim": fields.count("hidden_size"),
        "num_layers": fields.count("num_hidden_layers", most=MOST_LAYERS),
        "num_heads": fields.count("num_attention_heads"),
        "ffn_dim": fields.count("intermediate_size"),
        "max_positions": fields.count("max_position_embeddings"),
        "num_token_types": fields.count("type_vocab_size", 2),
        "activation": fields.choose("hidden_act", "gelu", PLAIN),
        "norm_eps": fields.number("layer_norm_eps", 1e-12),
        "position": "learned",
        **AS_IN_2019,
    }


AS_IN_2019 = {
    "norm": "layer",
    "norm_place": "after",
    "embedding_norm": "learned",
    "attention_bias": True,
    "out_bias": True,
    "ffn_bias": True,
    "init_std": 0.02,
}


def read_head(fields: Fields, head: str, pooled: str) -> dict[str, Any]:
    """The keys of a head; a trunk has a pooler where the tensor `pooled` is there."""
    tied = fields.flag("tie_word_embeddings", True)  # only a head of words can be
    if head == "none":
        return {"head": head, "pooler": "tanh" if pooled in fields.tensors else None}
    if head == "vocabulary":
        return {"head": head, "tied": tied, "head_transform": True, "head_bias": True}
    return read_class_head(fields, head, pooler="tanh")


def read_class_head(fields: Fields, head: str, pooler: str) -> dict[str, Any]:
    """The keys of a head of classes, behind a `pooler` where it is whole texts that have one."""
    if head == SPANS:
        return {"head": "token_classes", "head_bias": True, **read_spans(fields)}
    pooled = pooler if head == "pooled_classes" else None
    return {"head": head, "pooler": pooled, "head_bias": True, **read_classes(fields)}


def write_bert(config: ModelConfig) -> dict[str, Any]:
    """The fields of a BERT of this shape."""
    return {
        "model_type": "bert",
        "architectures": [name_of(head_word(config), CLASSES)],
        **write_trunk(config),
    }


def write_trunk(config: ModelConfig) -> dict[str, Any]:
    """The fields that BERT and RoBERTa share."""
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_token_types,
        "hidden_act": name_of(config.activation, PLAIN),
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied or config.head != "vocabulary",
        **write_classes(config),
    }


def bert_sources(config: ModelConfig) -> dict[str, Source]:
    """BERT's tensors are ours under other names."""
    sources = trunk_sources(config)
    if config.pooler:
        sources |= linear("pooler", "pooler.dense", bare=False)
    if config.head == "vocabulary":
        sources |= linear("transform.dense", f"{MASKED}transform.dense")
        sources |= linear("transform.norm", f"{MASKED}transform.LayerNorm")
        return sources | vocabulary_sources(config, MASKED)
    return sources | class_sources(config)


def trunk_sources(config: ModelConfig) -> dict[str, Source]:
    """The sources below the heads, of BERT and RoBERTa."""
    tables = {"embedding": "word_embeddings", "positions": "position_embeddings"}
    if config.num_token_types:
        tables["token_types"] = "token_type_embeddings"
    sources = {f"{our}.weight": Source(f"embeddings.{their}.weight") for our, their in tables.items()}
    sources |= linear("embedding_norm", "embeddings.LayerNorm", bare=False)
    for i in range(config.num_layers):
        for our, their in MODULES.items():
            sources |= linear(f"layers.{i}.{our}", f"encoder.layer.{i}.{their}", bare=False)
    return sources


def linear(our: str, their: str, bare: bool = True) -> dict[str, Source]:
    """The sources of a module with weight and bias."""
    return {f"{our}.{kind}": Source(f"{their}.{kind}", bare=bare) for kind in ("weight", "bias")}


def class_sources(config: ModelConfig, classifier: str = "classifier") -> dict[str, Source]:
    """The sources of a head of classes, none where there is no such head."""
    if config.head == "none":
        return {}
    name = "qa_outputs" if finds_spans(config) else classifier
    return {
        "head.weight": Source(f"{name}.weight", bare=True),
        "head_bias": Source(f"{name}.bias", bare=True),
    }


def vocabulary_sources(config: ModelConfig, place: str) -> dict[str, Source]:
    """The sources of a head of words; untied, the bias beside it is not the one that counts."""
    if config.tied:
        return {"head_bias": Source(f"{place}bias", bare=True)}
    return {
        "head.weight": Source(f"{place}decoder.weight", bare=True),
        "head_bias": Source(f"{place}decoder.bias", bare=True),
    }


def vocabulary_copies(config: ModelConfig, place: str) -> dict[str, str]:
    """What may stand beside the embedding and the bias of a tied head."""
    if config.head != "vocabulary" or not config.tied:
        return {}
    tied = tied_head(config, "embeddings.word_embeddings.weight", f"{place}decoder.weight")
    return tied | {f"{place}decoder.bias": f"{place}bias"}


BERT = Family(
    read_bert,
    write_bert,
    bert_sources,
    prefix="bert.",
    leftovers=("embeddings.position_ids", f"{MASKED}bias"),
    left_out=("cls.seq_relationship.", "pooler.dense."),
    aliases=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    copies=lambda config: vocabulary_copies(config, MASKED),
)
