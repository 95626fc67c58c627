"""RoBERTa (Liu et al. 2019): BERT's trunk, positions counted from behind the padding, heads of its own."""

from typing import Any

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.families.base import Family, Fields, Source, name_of
from hasten.model.families.bert import (
    class_sources,
    linear,
    read_head,
    read_trunk,
    trunk_sources,
    vocabulary_copies,
    vocabulary_sources,
    write_trunk,
)
from hasten.model.families.classes import SPANS, head_word

CLASSES = {
    "RobertaModel": "none",
    "RobertaForMaskedLM": "vocabulary",
    "RobertaForSequenceClassification": "pooled_classes",
    "RobertaForTokenClassification": "token_classes",
    "RobertaForQuestionAnswering": SPANS,
}
MASKED = "lm_head."


def read_roberta(fields: Fields) -> dict[str, Any]:
    """The shape of a RoBERTa and its head."""
    if not fields.values.get("architectures") and f"{MASKED}bias" in fields.tensors:
        fields.values["architectures"] = ["RobertaForMaskedLM"]
    head = fields.architecture(CLASSES)
    padding = fields.take("pad_token_id", 1)
    shape = {**read_trunk(fields), **read_head(fields, head, pooled="pooler.dense.weight")}
    rows = shape["max_positions"]
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < rows - 1:
        raise CheckpointError(
            f"{fields.where}: positions begin behind row pad_token_id of {rows}, and it is {padding!r}; take"
            " the file that came with the weights"
        )
    if head == "vocabulary" and shape["activation"] != "gelu":
        raise CheckpointError(
            f"{fields.where}: a RobertaForMaskedLM's head has gelu whatever hidden_act says, and hasten's has"
            f" that of the layers ({shape['activation']}); take the trunk alone: RobertaModel"
        )
    return shape | {"position_offset": padding + 1, "max_positions": rows - padding - 1}


def write_roberta(config: ModelConfig) -> dict[str, Any]:
    """The fields of a RoBERTa of this shape."""
    return {
        "model_type": "roberta",
        "architectures": [name_of(head_word(config), CLASSES)],
        **write_trunk(config),
        "max_position_embeddings": config.max_positions + config.position_offset,
        "pad_token_id": config.position_offset - 1,
    }


def roberta_sources(config: ModelConfig) -> dict[str, Source]:
    """BERT's names but for the heads."""
    sources = trunk_sources(config)
    if config.head == "vocabulary":
        sources |= linear("transform.dense", f"{MASKED}dense")
        sources |= linear("transform.norm", f"{MASKED}layer_norm")
        return sources | vocabulary_sources(config, MASKED)
    if config.head == "pooled_classes":
        sources |= linear("pooler", "classifier.dense")
        return sources | class_sources(config, "classifier.out_proj")
    if config.pooler:
        sources |= linear("pooler", "pooler.dense", bare=False)
    return sources | class_sources(config)


ROBERTA = Family(
    read_roberta,
    write_roberta,
    roberta_sources,
    prefix="roberta.",
    leftovers=("embeddings.position_ids", f"{MASKED}bias"),
    left_out=("pooler.dense.",),
    aliases=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    copies=lambda config: vocabulary_copies(config, MASKED),
)
