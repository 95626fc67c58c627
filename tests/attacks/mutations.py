"""Damage to files, drawn from a seed: flipped bits, cut and doubled pieces, numbers and words of attackers.

`HASTEN_FUZZ=50` runs fifty times as many, of other seeds from the first on.
"""

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

SCALE = max(int(os.environ.get("HASTEN_FUZZ", "1")), 1)
NUMBERS = [
    b"0", b"-1", b"1", b"7", b"8", b"255", b"65536", b"2147483648", b"4294967295", b"4611686018427387904",
    b"9223372036854775807", b"18446744073709551615", b"18446744073709551616", b"1e3", b"1.5", b"1e400", b"-0",
    b"NaN", b"Infinity", b"9" * 4000, b"null", b"true", b'"8"', b"[]", b"{}", b"[" * 2000,
]  # fmt: skip
WORDS = [
    b'""',
    b'"a"',
    b'"\\u0000"',
    b'"\\ud800"',
    b'"../../etc/passwd"',
    b'"__metadata__"',
    b'"F64"',
    b'"I8"',
]
DIGITS, QUOTED, SIGNS = re.compile(rb"\d+"), re.compile(rb'"[^"\\]*"'), re.compile(rb"[\[\]{}:,]")
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**62, 0.5, -1.5, 1e300, "", "gelu", "../x", [], [1], [[]], {},
    {"a": 1},
]  # fmt: skip


def mutations(data: bytes, count: int, seed: int, text_ends: int | None = None) -> Iterator[bytes]:
    """`count` times SCALE damaged copies of `data`; up to `text_ends` it is JSON, damaged as such, too."""
    draw = random.Random(seed)
    for _ in range(count * SCALE):
        damaged = data
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            damaged = draw.choice(KINDS)(damaged, draw, len(damaged) if text_ends is None else text_ends)
        yield damaged


def flip(data: bytes, draw: random.Random, end: int) -> bytes:
    """One bit differs."""
    place, changed = draw.randrange(max(len(data), 1)), bytearray(data or b"\0")
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, draw: random.Random, end: int) -> bytes:
    """A few bytes are others, in the text as a rule."""
    place = draw.randrange(max(min(end, len(data)), 1))
    return data[:place] + draw.randbytes(draw.choice((1, 2, 8))) + data[place + 1 :]


def cut(data: bytes, draw: random.Random, end: int) -> bytes:
    """A piece is gone, or all from there on."""
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.choice((b"", data[place + draw.randrange(16) :]))


def double(data: bytes, draw: random.Random, end: int) -> bytes:
    """A piece is there twice, or stands elsewhere, too."""
    place, length, target = (
        draw.randrange(max(end, 1)),
        draw.choice((1, 20, 60)),
        draw.randrange(max(end, 1)),
    )
    return data[:target] + data[place : place + length] + data[target:]


def replaced(pattern: re.Pattern[bytes], words: list[bytes]) -> Callable[[bytes, random.Random, int], bytes]:
    """One match of `pattern` in the text is another word, or another match."""

    def change(data: bytes, draw: random.Random, end: int) -> bytes:
        found = list(pattern.finditer(data, 0, end))
        if not found:
            return data
        place, other = draw.choice(found), draw.choice(found)
        word = draw.choice((other[0], draw.choice(words), draw.choice(words)))
        return data[: place.start()] + word + data[place.end() :]

    return change


KINDS = [
    flip,
    overwrite,
    cut,
    double,
    replaced(DIGITS, NUMBERS),
    replaced(DIGITS, NUMBERS),
    replaced(QUOTED, WORDS),
    replaced(SIGNS, [b"{", b"}", b"[", b"]", b",", b":", b" ", b"\xff"]),
]


def changed_values(values: dict[str, Any], count: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` times SCALE copies of a mapping in which a field or two has another value, kind, or name."""
    draw, text = random.Random(seed), json.dumps(values)
    for _ in range(count * SCALE):
        copy = json.loads(text)
        for _ in range(draw.choice((1, 1, 2))):
            place = inside(copy, draw)
            key = draw.choice(list(place) or ["a"])
            match draw.randrange(6):
                case 0:
                    place.pop(key, None)
                case 1:
                    place[f"{key}_"] = place.pop(key, 1)
                case 2 if isinstance(place.get(key), int):
                    place[key] = place[key] * draw.choice((0, -1, 2, 3, 2**20, 2**50)) + draw.choice((0, 1))
                case _:
                    place[key] = draw.choice(VALUES)
        yield copy


def inside(values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The mapping itself, or one of those in it."""
    deeper = [value for value in values.values() if isinstance(value, dict) and value]
    return draw.choice(deeper) if deeper and draw.random() < 0.3 else values
