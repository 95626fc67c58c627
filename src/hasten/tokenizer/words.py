"""Where words begin among a text's tokens: what whole-word masking hides together.

A word is what a reader would call one: a run of letters or of digits with the blank before it; each other
sign, and each character of a script without spaces, is one by itself.  Pieces that only continue a word are
told by their spelling: `##` in front (WordPiece), no blank or no change of alphabet in front (byte-level,
Metaspace).  Letters: V vocabulary, N tokens.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasten.tokenizer.tokenizer import Tokenizer

Alphabet = Literal["blank", "letter", "digit", "sign", "lone", "inside"]
ALPHABETS: tuple[Alphabet, ...] = ("blank", "letter", "digit", "sign", "lone", "inside")
RUNS = (ALPHABETS.index("letter"), ALPHABETS.index("digit"))
INSIDE = ALPHABETS.index("inside")
UNSPACED = (
    (0x2E80, 0x2FDF),
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
FIRST_BYTES, FIRST_UNSPACED = 0xC2, 0xE3  # of a character of several bytes; of kana, Han and what follows
CONTINUES, BLANK = "##", "\u2581"  # WordPiece's mark and Metaspace's


class WordStarts:
    """Which of some ids begin a word, by a tokenizer's spellings.

    A special token begins one and ends one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [spelling(tokenizer, id) for id in range(tokenizer.vocab_size)]
        self.first = np.array([alphabet(text[:1]) for text in texts], np.int8)  # [V]
        self.last = np.array([alphabet(text[-1:]) for text in texts], np.int8)
        if tokenizer.is_byte_level:
            self.split_characters(tokenizer.token_bytes)
        special = list(tokenizer.special_ids)
        self.first[special], self.last[special] = ALPHABETS.index("sign"), ALPHABETS.index("sign")

    def __call__(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """ids [N] -> whether a word begins with each, [N]; the first always begins one."""
        first, before = self.first[ids], np.append(-1, self.last[ids[:-1]])
        goes_on = np.isin(first, RUNS) & ((first == before) | (before == INSIDE)) | (first == INSIDE)
        goes_on[:1] = False
        return ~goes_on

    def split_characters(self, spellings: list[bytes]) -> None:
        """Tokens that begin with some of a character's bytes: the first byte tells its script, roughly."""
        for id, data in enumerate(spellings):
            if data and data[0] >= FIRST_BYTES and self.first[id] == INSIDE:
                self.first[id] = ALPHABETS.index("lone" if data[0] >= FIRST_UNSPACED else "letter")


def spelling(tokenizer: Tokenizer, id: int) -> str:
    """The text of a token; a character that it only continues, or a word that it does, shows as U+FFFD."""
    if tokenizer.is_byte_level:
        return tokenizer.token_bytes[id].decode("utf-8", "replace")
    token = tokenizer.inner.id_to_token(id) or ""
    if has_continuations(tokenizer):
        # Without the mark a piece begins a word, whatever stands before it: as if behind a blank.
        return "\ufffd" if token.startswith(CONTINUES) else f" {token}"
    return token.replace(BLANK, " ")


def has_continuations(tokenizer: Tokenizer) -> bool:
    """Whether pieces inside words carry WordPiece's mark."""
    return type(tokenizer.inner.model).__name__ == "WordPiece"


def alphabet(character: str) -> int:
    """What kind of character this is, as a number."""
    code = ord(character) if character else 0
    kind: Alphabet = "sign"
    if character == "\ufffd":
        kind = "inside"
    elif any(low <= code <= high for low, high in UNSPACED):
        kind = "lone"
    elif character.isspace():
        kind = "blank"
    elif character.isalpha() or character == "_":
        kind = "letter"
    elif character.isdigit():
        kind = "digit"
    return ALPHABETS.index(kind)
