"""Marian (Junczys-Dowmunt et al. 2018), as the OPUS-MT translators have it: the Transformer of 2017."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.families.base import MOST_LAYERS, PLAIN, Family, Fields, Source, name_of
from hasten.model.families.bert import linear
from hasten.model.position import sinusoids

HEAD, BIAS = "lm_head.weight", "final_logits_bias"
SHARED, READ, WRITTEN = "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
NORM_EPS = 1e-5
"""Written into the code of Marian, not into its files."""
LARGEST_TABLE = 1 << 26
"""Numbers; a file that claims more positions is no early one."""
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
MODULES = {
    **{f"attention.{our}": f"self_attn.{their}" for our, their in ATTENTION.items()},
    "attention_norm": "self_attn_layer_norm",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
    "ffn_norm": "final_layer_norm",
}
CROSSING = {
    **{f"cross.{our}": f"encoder_attn.{their}" for our, their in ATTENTION.items()},
    "cross_norm": "encoder_attn_layer_norm",
}


def read_marian(fields: Fields) -> dict[str, Any]:
    """The shape of a Marian translator."""
    fields.architecture({"MarianMTModel": None})
    for name in ("normalize_before", "normalize_embedding", "add_final_layer_norm", "add_bias_logits"):
        fields.require(name, False)  # of BART, whose code Marian once shared
    fields.require("static_position_embeddings", True)
    fields.require("is_encoder_decoder", True)
    fields.skip(
        "classif_dropout", "classifier_dropout", "encoder_layerdrop", "decoder_layerdrop", "_num_labels"
    )
    dim, layers = fields.count("d_model"), fields.count("encoder_layers", most=MOST_LAYERS)
    fields.require("num_hidden_layers", layers)
    return {
        "kind": "seq2seq",
        "dim": dim,
        "num_layers": fields.count("decoder_layers", most=MOST_LAYERS),
        "num_encoder_layers": layers,
        "num_heads": on_both_sides(fields, "attention_heads"),
        "ffn_dim": on_both_sides(fields, "ffn_dim"),
        "max_positions": fields.count("max_position_embeddings"),
        "activation": fields.choose("activation_function", "gelu", PLAIN),
        "embedding_scale": math.sqrt(dim) if fields.flag("scale_embedding", False) else 1.0,
        "start_id": fields.take("decoder_start_token_id", 58100),
        **read_tables(fields),
        "head_bias": BIAS in fields.tensors,
        "norm": "layer",
        "norm_eps": NORM_EPS,
        "norm_place": "after",
        "position": "sinusoidal",
        "attention_bias": True,
        "out_bias": True,
        "ffn_bias": True,
        "init_std": 0.02,
    }


def on_both_sides(fields: Fields, name: str) -> int:
    """A width that encoder and decoder must share."""
    ours, other = fields.count(f"encoder_{name}"), fields.count(f"decoder_{name}")
    if ours != other:
        raise CheckpointError(
            f"{fields.where}: hasten cannot hold encoder_{name} {ours} beside decoder_{name} {other}; take a"
            " model that has the same on both sides"
        )
    return int(ours)


def read_tables(fields: Fields) -> dict[str, Any]:
    """Which of encoder, decoder and head read by one table."""
    source = fields.count("vocab_size")
    target = fields.count("decoder_vocab_size", source)
    tied = fields.flag("tie_word_embeddings", True)
    if not fields.flag("share_encoder_decoder_embeddings", True):
        return {"vocab_size": target, "source_vocab_size": source, "shared_embeddings": False, "tied": tied}
    if not tied or source != target:
        raise CheckpointError(
            f"{fields.where}: hasten cannot hold share_encoder_decoder_embeddings with tie_word_embeddings"
            f" {tied}, vocab_size {source} and decoder_vocab_size {target}: one shared table is tied"
        )
    return {"vocab_size": source, "tied": True}


def write_marian(config: ModelConfig) -> dict[str, Any]:
    """The fields of a Marian translator of this shape."""
    heads, inner = config.num_heads, config.ffn_dim
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": config.source_vocab_size or config.vocabulary,
        "decoder_vocab_size": config.vocabulary,
        "share_encoder_decoder_embeddings": config.shared_embeddings,
        "tie_word_embeddings": config.tied,
        "d_model": config.dim,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.num_layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "max_position_embeddings": config.max_positions,
        "activation_function": name_of(config.activation, PLAIN),
        "scale_embedding": config.embedding_scale != 1.0,
        "decoder_start_token_id": config.start_id,
        "pad_token_id": config.start_id,  # Marian begins with padding, which must be in the vocabulary
        "forced_eos_token_id": None,  # 0 where nothing is said, whatever that token is here
    }


def marian_sources(config: ModelConfig) -> dict[str, Source]:
    """Marian's tensors are ours under other names."""
    tables = {"embedding.weight": SHARED if config.shared_embeddings else WRITTEN}
    if not config.shared_embeddings:
        tables["source_embedding.weight"] = READ
    sources = {our: Source(their) for our, their in tables.items()}
    if not config.tied:
        sources["head.weight"] = Source(HEAD, bare=True)
    if config.head_bias:
        sources["head_bias"] = Source(BIAS, lead=True, bare=True)
    sides = {"encoder": (config.encoder_layers, MODULES), "decoder": (config.num_layers, MODULES | CROSSING)}
    for side, (layers, modules) in sides.items():
        for i in range(layers):
            for our, their in modules.items():
                place = f"{side}.layers.{i}."
                sources |= linear(place + our, place + their, bare=False)
    return sources


def marian_copies(config: ModelConfig) -> dict[str, str]:
    """What may stand beside the tables: other names of the same."""
    table = SHARED if config.shared_embeddings else WRITTEN
    names = [HEAD] if config.tied else []
    return dict.fromkeys(names + ([READ, WRITTEN] if config.shared_embeddings else []), table)


def marian_derived(config: ModelConfig) -> dict[str, Callable[[], Tensor]]:
    """Early files hold the sines and cosines, which follow from the width."""
    if config.max_positions * config.dim > LARGEST_TABLE:
        return {}

    def make() -> Tensor:
        return sinusoids(torch.arange(config.max_positions), config.dim)

    return {f"{side}.embed_positions.weight": make for side in ("encoder", "decoder")}


MARIAN = Family(
    read_marian,
    write_marian,
    marian_sources,
    prefix="model.",
    copies=marian_copies,
    derived=marian_derived,
)
