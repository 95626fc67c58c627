"""Tiny encoders and translators of `transformers` in which no parameter is at its trivial start."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.model.transformer import Encoder, Seq2Seq

transformers = pytest.importorskip("transformers")

VOCAB, PADDING = 60, 1
BERT = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": PADDING,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
    "max_position_embeddings": 40, "pad_token_id": PADDING,
}  # fmt: skip
T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "decoder_start_token_id": 0,
}  # fmt: skip
MARIAN = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "max_position_embeddings": 40, "pad_token_id": PADDING, "decoder_start_token_id": PADDING,
    "eos_token_id": 0, "forced_eos_token_id": 0,
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "Bert": BERT, "Roberta": BERT, "DistilBert": DISTILBERT, "T5": T5, "Marian": MARIAN
}  # fmt: skip


def tiny_config(family: str, **options: Any) -> Any:
    """A tiny configuration of `transformers`."""
    return getattr(transformers, f"{family}Config")(**{**BASES[family], **options})


def tiny_model(family: str, kind: str, add_pooling_layer: bool = True, **options: Any) -> nn.Module:
    """`{family}{kind}` in float32, every parameter off its start."""
    config = tiny_config(family, **options)
    pooling = {} if add_pooling_layer else {"add_pooling_layer": False}
    torch.manual_seed(0)
    cls = getattr(transformers, family + kind)
    model = cls._from_config(config, attn_implementation="eager", **pooling).eval()
    if family == "T5" and not options.get("tie_word_embeddings", True):
        model.lm_head.weight = nn.Parameter(model.shared.weight.detach() * 2)  # the class would tie it
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if family == "Marian":
            model.final_logits_bias.normal_()
            for stack in (model.model.encoder, model.model.decoder):  # what is computed stays computed
                stack.embed_positions.weight.copy_(stack.embed_positions.create_weight())
    return model


def rows(length: int, padded: bool = True) -> tuple[Tensor, Tensor]:
    """Tokens [3, T], and their mask [3, T]: whole, padded by a third, and all but one padded."""
    tokens = torch.randint(6, VOCAB, (3, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, 2 * length // 3 :] = 0
        mask[2, 1:] = 0
    return tokens.where(mask > 0, PADDING), mask


@torch.no_grad()
def encoder_outputs(theirs: nn.Module, padded: bool = True) -> dict[str, Tensor]:
    """What an encoder of theirs makes of `rows(30)`, zero where there is padding."""
    tokens, mask = rows(30, padded)
    given = {"token_type_ids": token_types(tokens)} if has_types(theirs.config) else {}
    out = theirs(tokens, attention_mask=mask if padded else None, **given)
    found = {}
    for name in ("last_hidden_state", "pooler_output", "logits"):
        value = getattr(out, name, None)
        if value is not None:
            found[name] = value * mask[..., None] if value.ndim == 3 else value
    return found


def has_types(config: Any) -> bool:
    """Whether a configuration has token types to tell apart."""
    return getattr(config, "type_vocab_size", 1) > 1


def token_types(tokens: Tensor) -> Tensor:
    """Some of each kind: [B, T]."""
    return torch.arange(tokens.shape[1]).remainder(7).ge(4).long().expand_as(tokens)


@torch.no_grad()
def our_encoder_outputs(ours: Encoder, padded: bool = True) -> dict[str, Tensor]:
    """The same of ours: segments 1 for texts and 0 for padding."""
    tokens, mask = rows(30, padded)
    types = token_types(tokens) if ours.config.num_token_types > 1 else None
    hidden = ours(tokens, segments=mask if padded else None, token_types=types)
    if ours.config.head == "pooled_classes":
        return {"logits": ours.logits(hidden[:, 0])}
    if ours.config.head != "none":
        return {"logits": ours.logits(hidden) * mask[..., None]}
    pooled = {"pooler_output": ours.pooled(hidden[:, 0])} if ours.config.pooler else {}
    return {"last_hidden_state": hidden * mask[..., None], **pooled}


def pairs(ids: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Source [3, 30], its mask, target [3, 20] with ids below `ids`, and its mask."""
    target, mask = rows(20)
    return *rows(30), target.where(target < ids, 7), mask


@torch.no_grad()
def seq2seq_logits(theirs: nn.Module, ids: int = VOCAB) -> Tensor:
    """Logits of a translator of theirs, with padding on both sides, zero where there is padding."""
    source, source_mask, tokens, mask = pairs(ids)
    out = theirs(source, attention_mask=source_mask, decoder_input_ids=tokens, decoder_attention_mask=mask)
    return out.logits * mask[..., None]


@torch.no_grad()
def our_seq2seq_logits(ours: Seq2Seq, ids: int = VOCAB) -> Tensor:
    """The same of ours."""
    source, source_mask, tokens, mask = pairs(ids)
    hidden = ours(tokens, segments=mask, source=source, source_segments=source_mask)
    return ours.logits(hidden) * mask[..., None]


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5, where the numbers are large enough for that to mean something."""
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.std())))
