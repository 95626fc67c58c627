"""Tokenizers in GGUF, read: what `vocabulary.py` writes, and what others write, as a tokenizer.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hasten.core.config import shorten
from hasten.core.errors import CheckpointError, DataError
from hasten.model.gguf.pieces import describe_pieces, surroundings
from hasten.model.gguf.splits import ALIASES, SPLITS, Described, cutter
from hasten.model.gguf.vocabulary import (
    BYTE,
    BYTEWISE,
    CONTROL,
    NORMAL,
    PIECES,
    PREFIX,
    ROLES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from hasten.tokenizer.files import parse
from hasten.tokenizer.tokenizer import Tokenizer

PIECE_ROLES = {"bos_token": 1, "eos_token": 2}
"""What llama.cpp takes for `llama` where a file is silent."""
OTHER_ROLES = (
    "eot", "eom", "unknown", "seperator", "separator", "mask", "cls", "fim_pre", "fim_suf", "fim_mid",
    "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle",
)  # fmt: skip
KNOWN = {"model", "pre", "tokens", "token_type", "token_type_count", "merges", "scores", "add_space_prefix"}
KNOWN |= {"add_bos_token", "add_eos_token", *ROLES.values(), *(f"{name}_token_id" for name in OTHER_ROLES)}
LONGEST_TOKEN = 1024
"""Published tokens have 128 and some; how merges follow from scores takes the square of it."""
HARMLESS_IF_FALSE = ("add_sep_token", "remove_extra_whitespaces")


def read_vocabulary(metadata: Mapping[str, Any], rows: int, where: Path) -> Tokenizer:
    """The tokenizer of a file whose model has `rows` embeddings; raises CheckpointError."""
    return Vocabulary(metadata, rows, where).tokenizer()


class Vocabulary:
    """The keys of a tokenizer as they are read, every mistake told with its key."""

    def __init__(self, metadata: Mapping[str, Any], rows: int, where: Path) -> None:
        self.where, self.rows = where, rows
        named = {key: value for key, value in metadata.items() if key.startswith(PREFIX)}
        self.values = {key.removeprefix(PREFIX): value for key, value in named.items()}

    def fail(self, name: str, reason: str) -> NoReturn:
        """Say what is wrong with a key."""
        raise CheckpointError(f"{self.where}: the key '{PREFIX}{name}' {reason}")

    def take(self, name: str, kind: type, default: Any) -> Any:
        """A key's value; `default` where it is absent."""
        value = self.values.get(name, default)
        if value is not default and type(value) is not kind:
            self.fail(name, f"should be {kind.__name__}, got {type(value).__name__}")
        return value

    def strings(self, name: str) -> list[str]:
        """An array of texts."""
        value = self.take(name, list, None)
        if value is None or not all(isinstance(each, str) for each in value):
            self.fail(name, "is missing or no array of texts")
        return list(value)

    def numbers(self, name: str, kinds: str, count: int) -> list[Any] | None:
        """An array of `count` numbers, None where it is absent."""
        value = self.take(name, np.ndarray, None)
        if value is not None and (value.dtype.kind not in kinds or len(value) != count):
            self.fail(name, f"should be {count:,} numbers, one for each token")
        return None if value is None else list(value.tolist())

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, whose ids are the file's."""
        for name, value in self.values.items():
            if name not in KNOWN and not (name in HARMLESS_IF_FALSE and value is False):
                self.fail(name[:100], "is unknown to hasten, which leaves none out: take a file without it")
        kind = self.take("model", str, None)
        if kind not in (BYTEWISE, PIECES):
            self.fail("model", f"is {shorten(kind)}, and hasten can hold {BYTEWISE!r} and {PIECES!r}")
        tokens, types = self.tokens()
        described = self.bytewise(tokens) if kind == BYTEWISE else self.by_scores(tokens, types)
        roles = self.roles(tokens, PIECE_ROLES if kind == PIECES else {})
        whole = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                added(id, tokens[id], type)
                for id, type in enumerate(types)
                if type in (UNKNOWN, CONTROL, USER_DEFINED)
            ],
            "post_processor": self.borders(tokens, roles, kind),
            **described,
        }
        try:
            tokenizer = Tokenizer(parse(json.dumps(whole), self.where), roles)
        except DataError as error:
            raise CheckpointError(f"{self.where}: {error}") from None
        tokenizer.end_ids |= self.ends(len(tokens))
        return tokenizer

    def tokens(self) -> tuple[list[str], list[int]]:
        """The pieces and their types, without the unused rows at the end."""
        tokens = self.strings("tokens")
        types = self.numbers("token_type", "iu", len(tokens)) or [NORMAL] * len(tokens)
        if len(tokens) > self.rows:
            self.fail("tokens", f"has {len(tokens):,} tokens, and the model {self.rows:,} embeddings")
        wrong = next((type for type in types if not NORMAL <= type <= BYTE), None)
        if wrong is not None:
            self.fail("token_type", f"has the type {wrong}; there are {NORMAL} to {BYTE}")
        if len(set(tokens)) < len(tokens) or "" in tokens:
            self.fail("tokens", "has a token twice, or one without a letter")
        longest = max(map(len, tokens), default=0)
        if longest > LONGEST_TOKEN:
            self.fail("tokens", f"has a token of {longest:,} letters; hasten reads up to {LONGEST_TOKEN:,}")
        while types and types[-1] == UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":
            tokens.pop(), types.pop()
        return tokens, types

    def bytewise(self, tokens: Sequence[str]) -> Described:
        """Byte-level BPE: what stands in a tokenizer.json."""
        pre = self.take("pre", str, None)
        name = ALIASES.get(pre or "", pre)
        if name not in SPLITS:
            known = ", ".join([*SPLITS, *ALIASES])
            self.fail(
                "pre", f"is {shorten(pre)}, a way to cut text that hasten does not know; it knows {known}"
            )
        merges = [self.merge(line) for line in self.strings("merges")]
        return {
            "normalizer": None,
            "pre_tokenizer": cutter(name),
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": SPLITS[name].whole_pieces,
                "vocab": {token: id for id, token in enumerate(tokens)},
                "merges": merges,
            },
        }

    def merge(self, line: str) -> list[str]:
        """Two pieces with a space between; the first may begin with one."""
        at = line.find(" ", 1)
        if at < 0 or at == len(line) - 1:
            self.fail("merges", f"has {shorten(line)}, and should have two pieces with a space between")
        return [line[:at], line[at + 1 :]]

    def by_scores(self, tokens: Sequence[str], types: Sequence[int]) -> Described:
        """SentencePiece's BPE: what stands in a tokenizer.json."""
        count = len(self.strings("tokens"))
        scores = self.numbers("scores", "fiu", count)
        if scores is None:
            self.fail("scores", "is missing; convert the model anew")
        if UNKNOWN not in types:
            self.fail("token_type", f"has no token of type {UNKNOWN}, for what is not known")
        joins = [type == NORMAL for type in types]
        made = [scores[id] for id, token in enumerate(tokens) if joins[id] and len(token) > 1]
        if len(made) > 1 and (len(set(made)) == 1 or not np.isfinite(made).all()):
            self.fail("scores", "gives no order in which to join pieces; convert the model anew")
        space = self.take("add_space_prefix", bool, True)
        unknown = tokens[types.index(UNKNOWN)]
        return {"model": describe_pieces(tokens, scores, joins, unknown), **surroundings(space)}

    def roles(self, tokens: Sequence[str], defaults: Mapping[str, int]) -> dict[str, str]:
        """The spelling of each role's token."""
        roles = {}
        for role, name in ROLES.items():
            id = self.take(name, int, defaults.get(role))
            if id is not None and not 0 <= id < len(tokens):
                self.fail(name, f"is {id}, and there are {len(tokens):,} tokens")
            if id is not None:
                roles[role] = tokens[id]
        return roles

    def ends(self, count: int) -> set[int]:
        """The tokens that end a turn or a message, and so a text."""
        ids = {name: self.take(f"{name}_token_id", int, None) for name in ("eot", "eom")}
        for name, id in ids.items():
            if id is not None and not 0 <= id < count:
                self.fail(f"{name}_token_id", f"is {id}, and there are {count:,} tokens")
        return {id for id in ids.values() if id is not None}

    def borders(self, tokens: Sequence[str], roles: Mapping[str, str], kind: str) -> Described | None:
        """The `post_processor` that puts a token before a text, or after it, where the file wants that."""
        pre = self.take("pre", str, "")
        pre = ALIASES.get(pre, pre)
        usual = kind == PIECES or (pre in SPLITS and SPLITS[pre].begins)
        begins, ends = self.take("add_bos_token", bool, usual), self.take("add_eos_token", bool, False)
        before = [roles["bos_token"]] if begins and "bos_token" in roles else []
        after = [roles["eos_token"]] if ends and "eos_token" in roles else []
        if not before and not after:
            return None
        return template(before, after, {token: tokens.index(token) for token in before + after})


def added(id: int, token: str, type: int) -> Described:
    """An entry of `added_tokens`."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": token, **plain, "special": type != USER_DEFINED}


def template(before: list[str], after: list[str], ids: Mapping[str, int]) -> Described:
    """A `post_processor` that puts tokens around a text."""

    def around(name: str) -> list[Described]:
        text = {"Sequence": {"id": name, "type_id": 0}}
        tokens = [[{"SpecialToken": {"id": t, "type_id": 0}} for t in part] for part in (before, after)]
        return [*tokens[0], text, *tokens[1]]

    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": [*around("A"), *around("B")],
        "special_tokens": {t: {"id": t, "ids": [id], "tokens": [t]} for t, id in ids.items()},
    }
