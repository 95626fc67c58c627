"""Make a tokenizer from text: byte-level BPE, byte-level unigram, or WordPiece, in bounded memory."""

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from heapq import heappop, heappush
from typing import Any, Literal

import tokenizers
import xxhash
from pydantic import Field, model_validator
from tokenizers import decoders, models, pre_tokenizers, trainers

from hasten.core.config import Config
from hasten.core.console import Progress, say
from hasten.core.errors import DataError
from hasten.tokenizer import wordpiece
from hasten.tokenizer.files import byte_level
from hasten.tokenizer.tokenizer import Tokenizer, no_unicode

END, PAD = "<|endoftext|>", "<|pad|>"
WORDPIECE = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # Devlin et al. 2019
PIECE_CHARS = 1 << 14
MAX_TOKEN_CHARS = 64

# Where a token may never reach across, after GPT-4's pattern (tiktoken, cl100k_base).  What differs:
# - A line break takes the next line's indentation along, and so does punctuation that ends a line: the
#   "):" of a def and the four spaces below it can be one token (Python: 7% fewer tokens).
# - Han script is kept apart from letters that have spaces between words; marks stay with their letters.
# - Digits go by twos: three are too many for a small vocabulary.
# - Contractions have no rule: an apostrophe goes with the letters after it anyway, and a rule would cut
#   'start' into 's and tart.
# - Runs end at 64 characters, since no token is longer: learning merges takes the square of a run's length,
#   which base64 makes as long as a file.
PATTERN = "|".join(
    [
        r"\s*[\r\n]+[ \t]*",
        r"\p{Han}{1,64}",
        r"[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]&&[^\p{Han}]]{1,64}",
        r"\p{N}{1,2}",
        r" ?[^\s\p{L}\p{N}]{1,64}(?:[\r\n]+[ \t]*)?",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


class TokenizerConfig(Config):
    """Learn a vocabulary from the training text.

    `bpe` and `unigram` work on bytes: any text comes back exactly as it went in.  `wordpiece` is
    BERT's: lower-case, without accents, [UNK] for letters it has not met.  The same text gives the same
    vocabulary every time, except that `unigram` may differ in its rarest tokens: the library sums its
    probabilities in an order that varies.
    """

    kind: Literal["bpe", "unigram", "wordpiece"] = "bpe"
    vocab_size: int = Field(8_192, description="how many tokens in all, special ones and 256 bytes included")
    min_frequency: int = Field(2, ge=1, description="a pair seen less often is not made into a token")
    sample_bytes: int = Field(
        32_000_000,
        ge=1,
        description="learn from an even sample of at most this many bytes of text; each takes up to 75 bytes"
        " of memory in scripts without spaces, a tenth of that in others",
    )
    special_tokens: tuple[str, ...] = Field((), description="further tokens that text itself never gives")

    @model_validator(mode="after")
    def check(self) -> "TokenizerConfig":
        least = 256 + len(self.specials)
        if self.kind != "wordpiece" and self.vocab_size < least:
            raise ValueError(
                f"vocab_size ({self.vocab_size}) has no room for 256 bytes and {len(self.specials)} special"
                f" tokens; write {least} or more"
            )
        if len(set(self.specials)) < len(self.specials) or "" in self.specials:
            raise ValueError(
                f"special_tokens must differ from {', '.join(self.reserved)}, from each other and from ''"
            )
        return self

    @property
    def reserved(self) -> tuple[str, ...]:
        """Special tokens that every tokenizer of this kind has."""
        return WORDPIECE if self.kind == "wordpiece" else (END, PAD)

    @property
    def specials(self) -> tuple[str, ...]:
        """All special tokens, in the order of their ids, from 0."""
        return self.reserved + self.special_tokens


def train(texts: Iterable[str], config: TokenizerConfig, progress: bool = True) -> Tokenizer:
    """A tokenizer of `config.vocab_size` tokens learnt from `texts`.

    Memory holds at most `config.sample_bytes` of text, whatever the length of `texts` or of a line in
    it.  Raises DataError if there is no text, or too little for so many tokens.
    """
    start = time.monotonic()
    pieces, seen, used = sample(texts, config.sample_bytes, progress)
    if not pieces:
        raise DataError("tokenizer: there is no text to learn from; check data.sources")
    inner = learn(pieces, config)
    check_size(inner.get_vocab_size(), config, used)
    part = "" if used == seen else f", an even sample of the {seen / 1e6:,.1f} MB there are (sample_bytes)"
    if part or progress:
        say(
            f"tokenizer  {config.kind}, {config.vocab_size:,} tokens learnt from {used / 1e6:,.1f} MB{part},"
            f" in {time.monotonic() - start:.1f} s"
        )
    return Tokenizer(inner)


def check_size(size: int, config: TokenizerConfig, used: int) -> None:
    """Raise DataError if the text gave fewer tokens than asked for."""
    if size < config.vocab_size:
        raise DataError(
            f"tokenizer: {used:,} bytes of text give only {size:,} of {config.vocab_size:,} tokens;"
            f" write vocab_size: {size} or less, or give more text"
        )


def sample(texts: Iterable[str], budget: int, progress: bool) -> tuple[list[str], int, int]:
    """Pieces of `texts` of at most `budget` bytes together; bytes seen, bytes kept.

    Each piece draws a number from its place in the stream, and those with the smallest numbers stay:
    an even sample in one pass, and the same one every time.
    """
    kept: list[tuple[int, int, str, int]] = []  # a heap, largest number first
    seen = used = 0
    with Progress("tokenizer", unit="MB read") if progress else nullcontext() as line:
        for place, piece in enumerate(cut(texts)):
            size = utf8_bytes(piece)
            seen, used = seen + size, used + size
            heappush(kept, (-xxhash.xxh64_intdigest(place.to_bytes(8, "little")), place, piece, size))
            while used > budget and len(kept) > 1:
                used -= heappop(kept)[-1]
            if line:
                line.update(seen / 1e6)
    return [piece for _, _, piece, _ in sorted(kept, key=lambda entry: entry[1])], seen, used


def utf8_bytes(text: str) -> int:
    """How long a text is in UTF-8; raises DataError where it is no Unicode."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise no_unicode() from None


def cut(texts: Iterable[str]) -> Iterator[str]:
    """`texts` in pieces of at most PIECE_CHARS characters, cut before line breaks where there are any.

    The library keeps about a hundred bytes for each character of the text it looks at, so that one
    line of a gigabyte would take all memory (huggingface/tokenizers#1345).
    """
    for text in texts:
        start = 0
        while len(text) - start > PIECE_CHARS:
            end = text.rfind("\n", start + 1, start + PIECE_CHARS)
            end = end if end > start else start + PIECE_CHARS
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]


def learn(pieces: list[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    """The library's tokenizer of the configured kind, learnt from `pieces`."""
    if config.kind == "wordpiece":
        return wordpiece.train(pieces, config.specials, config.vocab_size, config.min_frequency)
    inner, trainer = blank(config)
    inner.train_from_iterator(pieces, trainer)
    return inner


def blank(config: TokenizerConfig) -> tuple[tokenizers.Tokenizer, Any]:
    """An untrained tokenizer that works on bytes, and the library's trainer for it."""
    inner = tokenizers.Tokenizer(models.BPE() if config.kind == "bpe" else models.Unigram())
    inner.pre_tokenizer, inner.decoder = byte_level(PATTERN), decoders.ByteLevel()
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "special_tokens": list(config.specials),
        "show_progress": False,
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
    }
    if config.kind == "unigram":
        return inner, trainers.UnigramTrainer(**common)
    limits: dict[str, Any] = {"min_frequency": config.min_frequency, "max_token_length": MAX_TOKEN_CHARS}
    return inner, trainers.BpeTrainer(**common, **limits)
