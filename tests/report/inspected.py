"""Tiny models of every kind and tokenizers of every make, to be looked at."""

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.tokenizer.tokenizer import Tokenizer

SHAPE = {"dim": 32, "num_layers": 2, "num_heads": 4, "max_positions": 64}
KINDS = {
    "decoder": {},
    "grouped": {"num_kv_heads": 2, "attention_soft_cap": 5.0, "sliding_window": 4, "window_layers": [0]},
    "encoder": {"kind": "encoder", "position": "learned"},
    "seq2seq": {"kind": "seq2seq", "position": "relative", "num_encoder_layers": 3, "attention_scale": 1.0},
}


def model_of(kind: str, tokenizer: Tokenizer, **changes: object) -> Transformer:
    """A model whose heads differ from each other."""
    config = ModelConfig.model_validate(
        {**SHAPE, **KINDS[kind], "vocab_size": tokenizer.vocab_size, **changes}
    )
    model = build(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def word_tokenizer(*words: str) -> Tokenizer:
    """One token a word, whatever it is made of, and the marks of BERT."""
    marks = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    vocabulary = {word: id for id, word in enumerate([*marks, *words])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return Tokenizer(inner)


def wordpiece() -> Tokenizer:
    """BERT's make: lower case, pieces of words."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "cat", "##s", "the", ",", "a"]
    inner = tokenizers.Tokenizer(
        models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(pieces[:4])
    return Tokenizer(inner)


def sentencepiece() -> Tokenizer:
    """Llama's make: blanks as ▁, bytes for characters that the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b")]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(inner)
