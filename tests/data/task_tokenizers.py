"""Tiny tokenizers with the templates that models in use have, and `transformers`' view of each."""

from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from hasten.tokenizer.tokenizer import Tokenizer

WORDS = [
    *"abcdefghijklmnopqrstuvwxyz0123456789.,?!'-",
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "中",
    "国",
    "人",
]


def wordpiece() -> tokenizers.Tokenizer:
    """BERT's: lower case, Han characters singly, [CLS] a [SEP] b [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *WORDS, *(f"##{char}" for char in "abcdefghijklmnopqrstuvwxyz0123456789")]
    inner = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(special)
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return inner


def byte_level(*special: str) -> tokenizers.Tokenizer:
    """The 256 bytes, split before words as GPT-2 does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([*special])
    return inner


def roberta() -> tokenizers.Tokenizer:
    """<s> a </s></s> b </s>, all of one type."""
    inner = byte_level("<s>", "<pad>", "</s>", "<mask>")
    inner.post_processor = processors.RobertaProcessing(("</s>", 258), ("<s>", 256))
    return inner


def llama() -> tokenizers.Tokenizer:
    """<s> a, and <s> a <s> b."""
    inner = byte_level("<s>", "</s>")
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 256)]
    )
    return inner


def gpt2() -> tokenizers.Tokenizer:
    """No special token is added."""
    inner = byte_level("<|endoftext|>")
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    return inner


def sentencepiece() -> tokenizers.Tokenizer:
    """Pieces of which a blank is part, as T5 and XLM have it; `</s>` behind a text."""
    letters = [(char, -2.0) for char in "abcdefghijklmnopqrstuvwxyz0123456789.,?!'-中国人"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -1.0), *letters]
    inner = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" {2,}"), " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<pad>", "</s>", "<unk>"])
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return inner


MAKES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "bert": wordpiece,
    "roberta": roberta,
    "llama": llama,
    "gpt2": gpt2,
    "t5": sentencepiece,
}


def ours(make: str) -> Tokenizer:
    """The tokenizer as hasten has it."""
    return Tokenizer(MAKES[make]())


def theirs(make: str) -> Any:
    """The same as `transformers` calls it."""
    import transformers

    end = {"bert": "[SEP]", "gpt2": "<|endoftext|>"}.get(make, "</s>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=MAKES[make](), eos_token=end, pad_token=end)
