"""Tokens as a reader can see them: blanks and control characters visible, half characters as hex."""

import re
import unicodedata
from dataclasses import dataclass

from hasten.tokenizer.tokenizer import Tokenizer

SHOWN = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
"""Unicode's categories of what has no picture of its own, directions of writing among them."""
COMBINING = {"Mn", "Me"}
ONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
LONGEST = 32  # characters of one token that are shown


@dataclass(frozen=True)
class Piece:
    """One token: its id, how it is shown, and whether it stands for no text."""

    id: int
    text: str
    special: bool = False


def visible(text: str) -> str:
    r"""`visible(" a\n")` -> `·a⏎`; a character without a picture becomes its escape, as `\u202e`."""
    shown = "".join(SHOWN.get(char) or seen(char) for char in text)
    if text and unicodedata.category(text[0]) in COMBINING:
        shown = "◌" + shown
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def seen(char: str) -> str:
    """One character, escaped where it would not be seen."""
    hidden = unicodedata.category(char) in INVISIBLE
    return char.encode("unicode_escape").decode() if hidden else char


def from_bytes(spelling: bytes) -> str:
    r"""`visible` of bytes; those that are no whole character are shown as `\xe4`."""
    return visible(spelling.decode("utf-8", "backslashreplace"))


def spelled(tokenizer: Tokenizer, id: int) -> Piece:
    """A token by itself, without a text around it."""
    name = tokenizer.inner.id_to_token(id)
    if name is None:
        return Piece(id, f"#{id}")
    if id in tokenizer.special_ids:
        return Piece(id, visible(name), special=True)
    if tokenizer.is_byte_level:
        return Piece(id, from_bytes(tokenizer.token_bytes[id]))
    if byte := ONE_BYTE.fullmatch(name):
        return Piece(id, from_bytes(bytes([int(byte[1], 16)])))
    return Piece(id, visible(name.replace("▁", " ")))


def cut(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """The tokens of `text` as the pieces that it is cut into, which together are the text.

    A blank that a tokenizer swallows shows at the beginning of the piece after it.
    """
    ids = tokenizer.encode(text)
    pieces = [spelled(tokenizer, id) for id in ids]
    if tokenizer.is_byte_level:
        return pieces
    offsets = tokenizer.inner.encode(text, add_special_tokens=False).offsets
    if len(offsets) != len(ids):  # a text so long that it was encoded in parts
        return pieces
    at, found = 0, []
    for piece, (_, end) in zip(pieces, offsets, strict=True):
        # Several tokens may be bytes of one character: the bytes say more than the character.
        own = text[at:end] if end > at and not is_byte(tokenizer, piece.id) else ""
        found.append(Piece(piece.id, visible(own), piece.special) if own else piece)
        at = max(at, end)
    return found


def is_byte(tokenizer: Tokenizer, id: int) -> bool:
    """Whether a token is a single byte, for characters that a vocabulary lacks."""
    return ONE_BYTE.fullmatch(tokenizer.inner.id_to_token(id) or "") is not None
