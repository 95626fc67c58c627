"""Text to ids and back: a thin wrapper around one `tokenizer.json` of the `tokenizers` library.

What the wrapper adds: the special ids by role whatever their spelling, special tokens in a user's
text read as plain text, decoding one id at a time, and complaints that say what to do.
"""

import codecs
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import decoders

from hasten.core.errors import DataError
from hasten.core.files import write_json, write_text
from hasten.tokenizer.files import (
    FILE,
    GENERATION_FILE,
    ROLES_FILE,
    parse,
    read_ends,
    read_spellings,
    read_text,
)
from hasten.tokenizer.older import rebuilt

# How the tokenizers in use spell each role, most specific first.
END = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
BEGIN = ("<|begin_of_text|>", "<s>", "<bos>", "[CLS]")
PADDING = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
MASK = ("[MASK]", "<mask>", "<|mask|>")

PART_CHARS, GROUP_CHARS = 1 << 16, 1 << 22
WORD_END = re.compile(r"(?<=[^\W_])(?=[ \n])")


class TextStream(Protocol):
    """Decodes ids as they come."""

    def step(self, token: int) -> str:
        """The characters that `token` completes; often none, sometimes several."""

    def finish(self) -> str:
        """What is left when no more ids come: U+FFFD for bytes that never became a character."""


class Tokenizer:
    """Text to ids and back.

    `bos_id` begins every document and `eot_id` ends it; many tokenizers, ours among them, use one
    token for both.  `pad_id` fills rows; it is `eot_id` where there is no token for that.  `end_ids` are all
    that end a text while it is written: `eot_id`, and those that a folder's `generation_config.json` adds.
    `mask_id` stands for a token to be found out, None where there is no token for that.
    """

    def __init__(self, inner: tokenizers.Tokenizer, roles: Mapping[str, str] | None = None) -> None:
        """`roles` may spell `bos_token`, `eos_token`, `pad_token`; else known spellings are looked for."""
        self.inner, roles = inner, roles or {}
        # A file may ask for texts to be cut or padded; nothing of ours wants that, least of all silently.
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self.vocab_size = count_ids(inner)
        end = self.role(roles.get("eos_token"), END)
        if end is None:
            raise DataError(
                f"the tokenizer has no token that ends a text; add one of {', '.join(END)} as a special token"
                f" to its {FILE}, or name it as eos_token in {ROLES_FILE} beside it"
            )
        self.eot_id = end
        begin, padding = self.role(roles.get("bos_token"), BEGIN), self.role(roles.get("pad_token"), PADDING)
        self.bos_id = end if begin is None else begin
        self.pad_id = end if padding is None else padding
        self.end_ids = frozenset({end})
        self.mask_id = self.role(roles.get("mask_token"), MASK)

    def role(self, spelled: str | None, known: Sequence[str]) -> int | None:
        """The id of `spelled`, or else of the first well-known spelling that is a special token here."""
        if spelled is not None:
            found = self.inner.token_to_id(spelled)
            if found is None:
                raise DataError(
                    f"{ROLES_FILE} names the token {spelled!r}, which {FILE} lacks; correct the name"
                )
            return found
        special = {t.content: id for id, t in self.inner.get_added_tokens_decoder().items() if t.special}
        return next((special[name] for name in known if name in special), None)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Read a `tokenizer.json`, a folder with one, or a folder with the older files of GPT-2 or BERT.

        The older files may be gzipped.  Raises DataError for anything missing or malformed.
        """
        path = Path(path)
        file = path / FILE if path.is_dir() else path
        inner = None if file.exists() or not path.is_dir() else rebuilt(path)
        if inner is None:
            if not file.is_file():
                raise DataError(f"{path}: there is no {FILE} here; give the file or a folder that holds it")
            inner = parse(read_text(file), file)
        spellings = read_spellings(file.parent)
        try:
            tokenizer = cls(inner, spellings)
        except DataError as error:
            raise DataError(f"{file}: {error}") from None
        tokenizer.end_ids |= read_ends(file.parent, tokenizer.vocab_size)
        return tokenizer

    def save(self, folder: Path | str) -> Path:
        """Write `tokenizer.json` and, beside it, which token has which role; return the former's path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, self.inner.to_str(pretty=True))
        ids = {"bos_token": self.bos_id, "eos_token": self.eot_id, "pad_token": self.pad_id}
        if self.mask_id is not None:
            ids["mask_token"] = self.mask_id
        if self.pad_id in self.end_ids and self.role(None, PADDING) is None:
            del ids["pad_token"]  # who leaves padding out of the loss would leave the end out with it
        roles = {name: self.inner.id_to_token(id) for name, id in ids.items()}
        write_json(folder / ROLES_FILE, {"tokenizer_class": "PreTrainedTokenizerFast", **roles})
        if len(self.end_ids) > 1:
            write_json(folder / GENERATION_FILE, {"eos_token_id": sorted(self.end_ids)})
        return folder / FILE

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits: equal for tokenizers that give equal ids."""
        ids = f"{self.bos_id} {self.eot_id} {self.pad_id} "
        return hashlib.sha256((ids + self.inner.to_str()).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special tokens added; what looks like a special token is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of several texts, on all cores; beside the result, memory holds about 1 GB at most.

        Raises DataError for a string that is no Unicode.
        """
        result: list[list[int]] = [[] for _ in texts]
        for group in self.groups(texts):
            try:
                encodings = self.inner.encode_batch_fast([p for _, p in group], add_special_tokens=False)
            except (UnicodeEncodeError, TypeError):
                raise no_unicode() from None
            for (index, _), encoding in zip(group, encodings, strict=True):
                result[index] += encoding.ids
        return result

    def groups(self, texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
        """`texts` in parts, each with its text's number, in groups of a bounded number of characters.

        The library takes some 200 bytes for each character it is at.
        """
        group, chars = list[tuple[int, str]](), 0
        for index, text in enumerate(texts):
            for part in parts(text) if self.can_cut else [text]:
                group.append((index, part))
                chars += len(part)
                if chars >= GROUP_CHARS:
                    yield group
                    group, chars = [], 0
        if group:
            yield group

    @cached_property
    def can_cut(self) -> bool:
        """Whether a text may be cut between a word and the white space after it without changing its ids."""
        cutter, added = self.inner.pre_tokenizer, self.inner.get_added_tokens_decoder().values()
        if cutter is None or self.inner.normalizer is not None or not all(token.special for token in added):
            return False
        starts = {start for _, (start, _) in cutter.pre_tokenize_str("ab 12\nab")}
        return self.is_byte_level and {2, 5} <= starts

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; special tokens show up only if `special`."""
        ids = list(ids)
        for token in (min(ids), max(ids)) if ids else ():
            self.check(token)
        return self.inner.decode(ids, skip_special_tokens=not special)

    def stream(self) -> TextStream:
        """A decoder that takes one id at a time and gives out only complete characters."""
        return ByteStream(self) if self.is_byte_level else PieceStream(self)

    def check(self, token: int) -> None:
        """Raise DataError for an id that means nothing here."""
        if not 0 <= token < self.vocab_size:
            raise DataError(
                f"id {token} is outside the tokenizer's vocabulary of {self.vocab_size:,};"
                " mask the logits of padded vocabulary rows before you sample"
            )

    def spells_like(self, other: "Tokenizer") -> bool:
        """Whether both number the same pieces alike, so that the ids of one mean the same to the other."""
        return bool(self.inner.get_vocab() == other.inner.get_vocab())

    @property
    def is_byte_level(self) -> bool:
        """Whether ids are runs of bytes, so that every text survives the way there and back."""
        return isinstance(self.inner.decoder, decoders.ByteLevel)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out."""
        return frozenset(id for id, t in self.inner.get_added_tokens_decoder().items() if t.special)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each id of a byte-level tokenizer stands for, special tokens spelt out.  [V]"""
        assert self.is_byte_level
        return [spelling(self.inner.id_to_token(id) or "") for id in range(self.vocab_size)]


class ByteStream:
    """Ids to characters through the bytes they stand for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token: int) -> str:
        self.tokenizer.check(token)
        if token in self.tokenizer.special_ids:
            return ""
        return self.decoder.decode(self.tokenizer.token_bytes[token])

    def finish(self) -> str:
        return self.decoder.decode(b"", final=True)


class PieceStream:
    """Ids to characters for any other tokenizer, by decoding a short tail of the ids again.

    Between words spaces may be written or swallowed (WordPiece, Metaspace), so a piece's text is what
    it adds to the text of the pieces before it.  A trailing U+FFFD may be the start of a character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tail: list[int] = []
        self.read = 0  # how many ids of the tail have been given out

    def step(self, token: int) -> str:
        self.tokenizer.check(token)
        if token in self.tokenizer.special_ids:
            return ""
        self.tail.append(token)
        text = self.pending()
        if not text or text.endswith("\ufffd"):
            return ""
        self.tail, self.read = self.tail[self.read :], len(self.tail) - self.read
        return text

    def finish(self) -> str:
        text = self.pending()
        self.tail, self.read = [], 0
        return text

    def pending(self) -> str:
        """Text of the ids that have not been given out, in the context of those before them."""
        before = self.tokenizer.inner.decode(self.tail[: self.read])
        return self.tokenizer.inner.decode(self.tail)[len(before) :]


def no_unicode() -> DataError:
    """The error for a string that UTF-8 cannot spell."""
    return DataError("a text holds half a surrogate pair and is no Unicode; decode it with errors='replace'")


def parts(text: str) -> Iterator[str]:
    """`text` in parts of about PART_CHARS characters that begin with the white space after a word."""
    start = 0
    while start < len(text):
        found = WORD_END.search(text, start + PART_CHARS)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def count_ids(inner: tokenizers.Tokenizer) -> int:
    """The largest id plus one: how many rows an embedding needs."""
    ids = inner.get_vocab(with_added_tokens=True).values()
    size = max(ids, default=-1) + 1
    if size > 2 * len(ids) + 1024:
        raise DataError(
            f"the tokenizer has {len(ids):,} tokens but ids up to {size - 1:,}; number them without gaps"
        )
    return size


BYTE_OF = {
    char: byte
    for byte, char in enumerate(
        [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else "" for b in range(256)]
    )
    if char
}
BYTE_OF |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in BYTE_OF.values())}
"""GPT-2's alphabet (Radford et al. 2019, encoder.py): each byte as a printable character."""


def spelling(piece: str) -> bytes:
    """The bytes of a byte-level piece; a piece outside the alphabet is an added token, spelt as is."""
    known = [BYTE_OF.get(char) for char in piece]
    return piece.encode() if None in known else bytes(byte for byte in known if byte is not None)
