"""DistilBERT (Sanh et al. 2019): half of BERT's layers, no token types, no pooler of its own."""

from typing import Any

from hasten.model.config import ModelConfig
from hasten.model.families.base import MOST_LAYERS, PLAIN, Family, Fields, Source, name_of, tied_head
from hasten.model.families.bert import AS_IN_2019, class_sources, linear, read_class_head
from hasten.model.families.classes import SPANS, head_word, write_classes

CLASSES = {
    "DistilBertModel": "none",
    "DistilBertForMaskedLM": "vocabulary",
    "DistilBertForSequenceClassification": "pooled_classes",
    "DistilBertForTokenClassification": "token_classes",
    "DistilBertForQuestionAnswering": SPANS,
}
MODULES = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "ffn.up": "ffn.lin1",
    "ffn.down": "ffn.lin2",
    "ffn_norm": "output_layer_norm",
}
NORM_EPS = 1e-12
"""Written into the code of DistilBERT, not into its files."""


def read_distilbert(fields: Fields) -> dict[str, Any]:
    """The shape of a DistilBERT and its head."""
    if not fields.values.get("architectures") and "vocab_projector.bias" in fields.tensors:
        fields.values["architectures"] = ["DistilBertForMaskedLM"]
    head = fields.architecture(CLASSES)
    # Sines and cosines, where they were chosen, lie in the file as a table like any other.
    fields.skip("qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds", "tie_weights_")
    return {
        "kind": "encoder",
        "vocab_size": fields.count("vocab_size"),
        "dim": fields.count("dim"),
        "num_layers": fields.count("n_layers", most=MOST_LAYERS),
        "num_heads": fields.count("n_heads"),
        "ffn_dim": fields.count("hidden_dim"),
        "max_positions": fields.count("max_position_embeddings"),
        "activation": fields.choose("activation", "gelu", PLAIN),
        "norm_eps": NORM_EPS,
        "position": "learned",
        **AS_IN_2019,
        **read_head(fields, head),
    }


def read_head(fields: Fields, head: str) -> dict[str, Any]:
    """The keys of a head; that of texts looks at the first token through a layer with a ReLU."""
    tied = fields.flag("tie_word_embeddings", True)
    if head == "none":
        return {"head": head}
    if head == "vocabulary":
        return {"head": head, "tied": tied, "head_transform": True, "head_bias": True}
    return read_class_head(fields, head, pooler="relu")


def write_distilbert(config: ModelConfig) -> dict[str, Any]:
    """The fields of a DistilBERT of this shape."""
    return {
        "model_type": "distilbert",
        "architectures": [name_of(head_word(config), CLASSES)],
        "vocab_size": config.vocabulary,
        "dim": config.dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.ffn_dim,
        "max_position_embeddings": config.max_positions,
        "activation": name_of(config.activation, PLAIN),
        "tie_word_embeddings": config.tied or config.head != "vocabulary",
        **write_classes(config),
    }


def distilbert_sources(config: ModelConfig) -> dict[str, Source]:
    """DistilBERT's tensors are ours under other names."""
    tables = {"embedding": "word_embeddings", "positions": "position_embeddings"}
    sources = {f"{our}.weight": Source(f"embeddings.{their}.weight") for our, their in tables.items()}
    sources |= linear("embedding_norm", "embeddings.LayerNorm", bare=False)
    for i in range(config.num_layers):
        for our, their in MODULES.items():
            sources |= linear(f"layers.{i}.{our}", f"transformer.layer.{i}.{their}", bare=False)
    return sources | head_sources(config)


def head_sources(config: ModelConfig) -> dict[str, Source]:
    """The sources of the head."""
    if config.head != "vocabulary":
        pooler = linear("pooler", "pre_classifier") if config.pooler else {}
        return pooler | class_sources(config)
    sources = linear("transform.dense", "vocab_transform") | linear("transform.norm", "vocab_layer_norm")
    weight = {} if config.tied else {"head.weight": Source("vocab_projector.weight", bare=True)}
    return sources | weight | {"head_bias": Source("vocab_projector.bias", bare=True)}


def distilbert_copies(config: ModelConfig) -> dict[str, str]:
    """What may stand beside the embedding of a tied head."""
    return tied_head(config, "embeddings.word_embeddings.weight", "vocab_projector.weight")


DISTILBERT = Family(
    read_distilbert,
    write_distilbert,
    distilbert_sources,
    prefix="distilbert.",
    leftovers=("embeddings.position_ids",),
    copies=distilbert_copies,
)
