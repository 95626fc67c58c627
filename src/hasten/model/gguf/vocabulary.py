"""Tokenizers in GGUF, written: pieces, their types, merges or scores, and the ids with a role.

Two kinds have a counterpart in llama.cpp: byte-level BPE (`gpt2`, with the name of the pattern that cuts the
text) and BPE over characters with bytes to fall back on (`llama`, SentencePiece's, with scores in place of
merges).  After llama.cpp's `src/llama-vocab.cpp` and `conversion/base.py`.
"""

import json
from typing import Any

from hasten.core.console import say
from hasten.core.errors import CheckpointError
from hasten.model.gguf.pieces import BYTES, begins_with_space, scores_of
from hasten.model.gguf.splits import Described, name_split
from hasten.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PREFIX = "tokenizer.ggml."
BYTEWISE, PIECES = "gpt2", "llama"
ROLES = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}


def write_vocabulary(
    tokenizer: Tokenizer, rows: int, *, chat: bool, nearest_split: bool = False
) -> dict[str, Any]:
    """The keys of a tokenizer for a model with `rows` embeddings; raises CheckpointError.

    `chat`: a template will write whole conversations, so that no token is put before them.
    """
    described = json.loads(tokenizer.inner.to_str())
    check_model(described)
    if tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {rows} embeddings; they don't"
            " belong together"
        )
    bytewise = not described["model"]["byte_fallback"]
    tokens, types = pieces(tokenizer, described, rows, bytewise)
    if bytewise:
        keys: dict[str, Any] = {"model": BYTEWISE, "pre": name_split(described, nearest_split)}
        merges: dict[str, Any] = {"merges": [" ".join(pair) for pair in described["model"]["merges"]]}
    else:
        keys = {"model": PIECES, "pre": "default"}
        merges = {"scores": scores_of(described, tokens), "add_space_prefix": begins_with_space(described)}
        merges["unknown_token_id"] = described["model"]["vocab"][described["model"]["unk_token"]]
    begins, ends = borders(tokenizer, described, chat)
    keys |= {"tokens": tokens, "token_type": types, **merges}
    keys |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eot_id}
    keys |= write_ends(tokenizer)
    keys |= {"padding_token_id": tokenizer.pad_id, "add_bos_token": begins, "add_eos_token": ends}
    return {f"{PREFIX}{name}": value for name, value in keys.items()}


def write_ends(tokenizer: Tokenizer) -> dict[str, int]:
    """What ends a text beside the end of a document: two such tokens have a key."""
    more = sorted(tokenizer.end_ids - {tokenizer.eot_id})
    if len(more) > 2:
        say(f"gguf: llama.cpp is told of the ends {more[:2]} beside {tokenizer.eot_id}, not of {more[2:]}")
    return dict(zip(("eot_token_id", "eom_token_id"), more, strict=False))


def check_model(described: Described) -> None:
    """Refuse a tokenizer of a kind that llama.cpp has not, or has for other models only."""
    model = described["model"]
    if model["type"] != "BPE":
        raise CheckpointError(
            f"the tokenizer's kind is {model['type']}, and of hasten's kinds llama.cpp can use BPE only with"
            " decoders; train one with kind: bpe"
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[name]:
            raise CheckpointError(f"the tokenizer has {name} {model[name]!r}, which llama.cpp does not have")
    if model["byte_fallback"]:
        if model["ignore_merges"] or model["unk_token"] not in model["vocab"]:
            raise CheckpointError(
                "the tokenizer ignores merges or has no unk_token; llama.cpp needs the latter"
            )
        return
    normalizer = described["normalizer"]
    if normalizer == {"type": "NFC"}:
        say("gguf: llama.cpp does not compose characters (NFC) as this tokenizer does; give it composed text")
    elif normalizer is not None:
        raise CheckpointError(
            f"the tokenizer changes text before it cuts it (normalizer {normalizer['type']}), which llama.cpp"
            " does not; export to Hugging Face"
        )


def pieces(
    tokenizer: Tokenizer, described: Described, rows: int, bytewise: bool
) -> tuple[list[str], list[int]]:
    """The text and the type of each row; rows without a token are unused."""
    added = {entry["id"]: entry for entry in described["added_tokens"]}
    words = {id: word for word, id in tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    fallback, unknown = set() if bytewise else set(BYTES), described["model"]["unk_token"]
    tokens, types = [], []
    for id in range(rows):
        word = words.get(id)
        tokens.append(f"[PAD{id}]" if word is None else word)
        if word is None:
            types.append(UNUSED)
        elif id in added:
            check_added(added[id], described)
            types.append(CONTROL if added[id]["special"] else USER_DEFINED)
            types[-1] = UNKNOWN if word == unknown and not bytewise else types[-1]
        else:
            types.append(BYTE if word in fallback else NORMAL)
    if len(set(tokens)) < rows:
        raise CheckpointError(
            "the tokenizer has a token spelt [PADn] like the rows without a token; rename it"
        )
    return tokens, types


def check_added(entry: Described, described: Described) -> None:
    """A token of the user's that text can give has no conditions in llama.cpp."""
    conditions = [name for name in ("single_word", "lstrip", "rstrip") if entry[name]]
    conditions += ["normalized"] if entry["normalized"] and described["normalizer"] else []
    if conditions and not entry["special"]:
        raise CheckpointError(
            f"the tokenizer finds {entry['content']!r} in text on the condition {conditions[0]}, and"
            " llama.cpp without any; export to Hugging Face"
        )


def borders(tokenizer: Tokenizer, described: Described, chat: bool) -> tuple[bool, bool]:
    """Whether a text begins with the token for that, and ends so.

    A tokenizer says it in its post_processor.  Without one a base model begins as hasten's `generate` does,
    and a chat model's template writes everything itself.
    """
    if described["post_processor"] is None or described["post_processor"]["type"] == "ByteLevel":
        return not chat, False
    around, plain = (tokenizer.inner.encode("a", add_special_tokens=each).ids for each in (True, False))
    at = next(i for i in range(len(around)) if around[i : i + len(plain)] == plain)
    before, after = around[:at], around[at + len(plain) :]
    if before not in ([], [tokenizer.bos_id]) or after not in ([], [tokenizer.eot_id]):
        raise CheckpointError(
            f"the tokenizer puts the tokens {before} before a text and {after} after it, and llama.cpp only"
            " the one that begins a text and the one that ends it; export to Hugging Face"
        )
    return bool(before), bool(after)
