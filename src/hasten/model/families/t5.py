"""T5 (Raffel et al. 2020), T5 v1.1 (Shazeer 2020), Flan-T5 (Chung et al. 2022), whole or encoder alone."""

from typing import Any

from hasten.model.config import ModelConfig
from hasten.model.families.base import GATED, MOST_LAYERS, PLAIN, Family, Fields, Source, name_of

CLASSES = {"T5ForConditionalGeneration": "seq2seq", "T5EncoderModel": "encoder"}
HEAD = "lm_head.weight"
TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
PROJECTIONS = {
    **PLAIN,
    **{f"gated-{theirs}": ours for theirs, ours in GATED.items()},
    "gated-gelu": "geglu_tanh",  # transformers reads this one name as the other form of gelu
}
WRITTEN = {"gelu": "gelu", "geglu": "gated-gelu_python", "geglu_tanh": "gated-gelu"}
LONGEST = 512
"""Tokens that T5 was trained on; its relative positions have no end."""


def read_t5(fields: Fields) -> dict[str, Any]:
    """The shape of a T5."""
    kind = fields.architecture(CLASSES)
    # Which sides there are is the class's to say.
    fields.skip("is_encoder_decoder", "dropout_rate", "classifier_dropout", "initializer_factor")
    encoder_layers = fields.count("num_layers", most=MOST_LAYERS)
    decoder_layers = fields.count("num_decoder_layers", encoder_layers, most=MOST_LAYERS)
    dim = fields.count("d_model")
    shape = {
        "kind": kind,
        "vocab_size": fields.count("vocab_size"),
        "dim": dim,
        "num_heads": fields.count("num_heads"),
        "head_dim": fields.count("d_kv"),
        "ffn_dim": fields.count("d_ff"),
        "max_positions": fields.count("n_positions", LONGEST),
        "activation": read_activation(fields),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-6),
        "position": "relative",
        "relative_buckets": fields.count("relative_attention_num_buckets", 32),
        "relative_distance": fields.count("relative_attention_max_distance", 128),
        "norm": "rms",
        "attention_scale": 1.0,
        "init_std": 0.02,
    }
    if kind == "encoder":
        fields.skip("tie_word_embeddings", "scale_decoder_outputs", "decoder_start_token_id")
        return shape | {"num_layers": encoder_layers, "head": "none"}
    start = fields.take("decoder_start_token_id", fields.values.get("pad_token_id", 0))
    layers = {"num_layers": decoder_layers, "num_encoder_layers": encoder_layers}
    return shape | layers | read_head(fields, dim) | {"start_id": start}


def read_activation(fields: Fields) -> str:
    """Ours, out of one field that says all and two that repeat it."""
    name = fields.values.get("feed_forward_proj", "relu")
    activation = fields.choose("feed_forward_proj", "relu", PROJECTIONS)
    gated = str(name).startswith("gated-")
    fields.require("is_gated_act", gated)
    fields.require("dense_act_fn", "gelu_new" if name == "gated-gelu" else str(name).removeprefix("gated-"))
    return activation


def read_head(fields: Fields, dim: int) -> dict[str, Any]:
    """Whether the head is the embedding, and whether states are scaled as they enter it.

    Early files say both by `tie_word_embeddings`; later ones write that as true in any case, scale by a field
    of its own, and tie unless there is a head that differs.
    """
    scaled = fields.flag("tie_word_embeddings", True)
    scaled = fields.flag("scale_decoder_outputs", scaled)
    tied = fields.repeats(HEAD, "shared.weight")
    return {"tied": tied, "logit_scale": dim**-0.5 if scaled else 1.0}


def write_t5(config: ModelConfig) -> dict[str, Any]:
    """The fields of a T5 of this shape."""
    scaled = config.logit_scale != 1.0
    whole = {
        "decoder_start_token_id": config.start_id,
        "tie_word_embeddings": config.tied or scaled,
        "scale_decoder_outputs": scaled,
    }
    projection = WRITTEN.get(config.activation) or name_of(config.activation, PROJECTIONS)
    return {
        "model_type": "t5",
        "architectures": [name_of(config.kind, CLASSES)],
        "is_encoder_decoder": config.kind == "seq2seq",
        "vocab_size": config.vocabulary,
        "d_model": config.dim,
        "d_kv": config.head_dim,
        "d_ff": config.ffn_dim,
        "num_heads": config.num_heads,
        "num_layers": config.encoder_layers,
        "num_decoder_layers": config.num_layers,
        "n_positions": config.max_positions,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "feed_forward_proj": projection,
        "layer_norm_epsilon": config.norm_eps,
        **(whole if config.kind == "seq2seq" else {}),
    }


def t5_sources(config: ModelConfig) -> dict[str, Source]:
    """T5 counts the parts of a block: attention, the decoder's look at the encoder, feed-forward."""
    sources = {"embedding.weight": Source("shared.weight")}
    if config.kind == "encoder":
        return sources | stack_sources(config, "", "encoder", config.num_layers)
    if not config.tied:
        sources["head.weight"] = Source(HEAD)
    sources |= stack_sources(config, "encoder.", "encoder", config.encoder_layers)
    return sources | stack_sources(config, "decoder.", "decoder", config.num_layers)


def stack_sources(config: ModelConfig, ours: str, theirs: str, layers: int) -> dict[str, Source]:
    """The sources of one side; its first layer holds the table of relative positions."""
    table = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    names = {f"{ours}relative": table.removesuffix(".weight"), f"{ours}norm": f"{theirs}.final_layer_norm"}
    for i in range(layers):
        block = block_names(config, crossing=theirs == "decoder")
        names |= {
            f"{ours}layers.{i}.{our}": f"{theirs}.block.{i}.layer.{their}" for our, their in block.items()
        }
    return {f"{our}.weight": Source(f"{their}.weight") for our, their in names.items()}


def block_names(config: ModelConfig, crossing: bool) -> dict[str, str]:
    """Our modules of a block and theirs, numbered by part."""
    parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
    names = {f"attention.{our}": f"0.SelfAttention.{their}" for our, their in parts.items()}
    names["attention_norm"] = "0.layer_norm"
    if crossing:
        names |= {f"cross.{our}": f"1.EncDecAttention.{their}" for our, their in parts.items()}
        names["cross_norm"] = "1.layer_norm"
    last = 1 + crossing
    inner = {"ffn.gate": "wi_0", "ffn.up": "wi_1"} if config.gated else {"ffn.up": "wi"}
    names |= {our: f"{last}.DenseReluDense.{their}" for our, their in {**inner, "ffn.down": "wo"}.items()}
    return names | {"ffn_norm": f"{last}.layer_norm"}


def t5_copies(config: ModelConfig) -> dict[str, str]:
    """What may stand beside the one table: each side's own name for it, and a head that is it."""
    names = TABLES[:1] if config.kind == "encoder" else TABLES + ((HEAD,) if config.tied else ())
    return dict.fromkeys(names, "shared.weight")


T5 = Family(
    read_t5,
    write_t5,
    t5_sources,
    leftovers=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    copies=t5_copies,
)
