"""Tokenizers in the files of before `tokenizer.json`: GPT-2's vocab.json and merges.txt, BERT's vocab.txt.

They are put together as `transformers` does it, from the few classes whose way of cutting text is known here;
any other class is refused by name, and so are SentencePiece models, which are programs' own binary files.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from hasten.core.errors import DataError
from hasten.tokenizer.files import (
    FILE,
    GPT2_PATTERN,
    ROLES_FILE,
    byte_level,
    find,
    read_settings,
    read_spellings,
    read_text,
)

BYTE_LEVEL = ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer")
WORD_PIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
SENTENCE_PIECE = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm"
)  # fmt: skip
LONGEST_WORD = 100
"""WordPiece reads a longer word as unknown (Google's tokenization.py)."""


def rebuilt(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer that older files of a folder describe, None where there are none.

    DataError where they do not fit together, or where only a SentencePiece model is there.
    """
    merges, words = find(folder, "merges.txt"), find(folder, "vocab.txt")
    if find(folder, "vocab.json") and (merges or not sentence_piece(folder)):
        return named(folder, BYTE_LEVEL, gpt2)
    if words:
        return named(folder, WORD_PIECE, word_piece)
    if model := sentence_piece(folder):
        raise DataError(
            f"{folder}: its tokenizer is {model.name}, a SentencePiece model, which hasten does not read; put"
            f" its {FILE} beside it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of"
            " transformers writes one for all but Marian's"
        )
    return None


def sentence_piece(folder: Path) -> Path | None:
    """The SentencePiece model in a folder."""
    return next((folder / name for name in SENTENCE_PIECE if (folder / name).exists()), None)


def named(
    folder: Path, known: tuple[str, ...], build: Callable[[Path, dict[str, Any]], tokenizers.Tokenizer]
) -> tokenizers.Tokenizer:
    """What `build` makes of a folder whose class, where one is named, is one of `known`."""
    settings = read_settings(folder / ROLES_FILE)
    kind = settings.get("tokenizer_class") or known[0]
    if str(kind).removesuffix("Fast") not in known:
        raise DataError(
            f"{folder}: has the files of a {kind}, whose way of cutting text hasten does not know; put its"
            f" {FILE} beside them: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        inner = build(folder, settings)
        add_special(inner, folder, settings)
        frame(inner, folder, settings)
    except DataError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{folder}: the files of a {kind} do not make a tokenizer ({error})") from None
    return inner


def gpt2(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level pieces, merged in the order of merges.txt."""
    vocab_file, merges_file = find(folder, "vocab.json"), find(folder, "merges.txt")
    if vocab_file is None or merges_file is None:
        raise DataError(f"{folder}: has vocab.json but no merges.txt; put both files there")
    lines = read_text(merges_file).splitlines()
    merges: Any = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    inner = tokenizers.Tokenizer(models.BPE(vocab=json.loads(read_text(vocab_file)), merges=merges))
    spaced = bool(settings.get("add_prefix_space"))
    inner.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=True) if spaced else byte_level(GPT2_PATTERN)
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def word_piece(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """Words cut at white space and punctuation, then the longest known beginnings (Devlin et al. 2018)."""
    file = find(folder, "vocab.txt")
    assert file is not None, "the caller has seen it"
    lines = read_text(file).removesuffix("\n").split("\n")
    words = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if len(words) != len(lines):
        raise DataError(f"{file}: holds the same word in two lines; fetch it again")
    unknown = read_spellings(folder).get("unk_token", "[UNK]")
    inner = tokenizers.Tokenizer(
        models.WordPiece(vocab=words, unk_token=unknown, max_input_chars_per_word=LONGEST_WORD)
    )
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return inner


def add_special(inner: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """The special tokens that the folder names, each with the id that it has there."""
    claimed = {word: int(id) for word, id in read_settings(folder / "added_tokens.json").items()}
    for id, token in (settings.get("added_tokens_decoder") or {}).items():
        claimed[token["content"]] = int(id)
    for word in sorted(claimed, key=claimed.__getitem__):
        inner.add_special_tokens([special(word)])
        if inner.token_to_id(word) != claimed[word]:
            raise DataError(
                f"{folder}: says that {word!r} has the id {claimed[word]}, and the vocabulary has room for it"
                f" at {inner.token_to_id(word)}; fetch the folder again"
            )
    spelled = {**defaults(inner, settings), **read_spellings(folder)}
    inner.add_special_tokens([special(word) for word in spelled.values()])


def special(word: str) -> AddedToken:
    """A special token, spelt exactly so."""
    return AddedToken(word, special=True, normalized=False)


def defaults(inner: tokenizers.Tokenizer, settings: dict[str, Any]) -> dict[str, str]:
    """How a class spells its special tokens where the folder says nothing else."""
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    spelled = {"eos_token": "<|endoftext|>"}
    if isinstance(inner.model, models.WordPiece):
        spelled = {f"{role.lower()}_token": f"[{role}]" for role in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    elif kind in ("RobertaTokenizer", "BartTokenizer"):
        words = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<s>", "</s>")
        roles = ("bos", "pad", "eos", "unk", "mask", "cls", "sep")
        spelled = {f"{role}_token": word for role, word in zip(roles, words, strict=True)}
    return {
        role: word for role, word in spelled.items() if kind == "None" or inner.token_to_id(word) is not None
    }


def frame(inner: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """What an encoder's text begins and ends with, where the folder or its class names it."""
    spelled = {**defaults(inner, settings), **read_spellings(folder)}
    begin, end = spelled.get("cls_token"), spelled.get("sep_token")
    if begin is None or end is None:
        return
    pieces = isinstance(inner.model, models.WordPiece)
    pair = f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1" if pieces else f"{begin} $A {end} {end} $B {end}"
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=pair,
        special_tokens=[(word, inner.token_to_id(word)) for word in (begin, end)],
    )
