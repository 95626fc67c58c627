"""What a search is to reach: a size on the disk, a speed, or a share of the original's quality."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
WRITTEN = re.compile(r"(size|speed|quality)=(\d+(?:\.\d*)?|\.\d+)\s*(%|x|[kKMG]?B)")
GOES_WITH = {"size": ("%", *UNITS), "speed": ("x",), "quality": ("%",)}


@dataclass(frozen=True)
class Wanted:
    """`size` in bytes, or as a share of the original's; `speed` as a multiple; `quality` as a share."""

    kind: Literal["size", "speed", "quality"]
    amount: float
    is_share: bool
    words: str

    def bytes_of(self, original: int) -> int:
        """The size wanted, in bytes, of an original of so many."""
        return round(self.amount * original if self.is_share else self.amount)


def parse_target(text: Any) -> Any:
    """`size=20MB` -> Wanted("size", 20e6, False, "size=20MB"); anything else but such words is refused."""
    if isinstance(text, Wanted):
        return text
    found = WRITTEN.fullmatch(text.replace(" ", "")) if isinstance(text, str) else None
    kind, number, unit = found.groups() if found else ("", "0", "")
    if found is None or unit not in GOES_WITH[kind] or float(number) == 0:
        raise ValueError(f"target is {str(text)[:40]!r}; write size=20MB, size=25%, speed=2x or quality=99%")
    factor = {"%": 0.01, "x": 1.0}.get(unit) or UNITS[unit]
    return Wanted(kind, float(number) * factor, unit == "%", found[0])  # type: ignore[arg-type]


Target = Annotated[
    Wanted,
    PlainValidator(parse_target),
    PlainSerializer(lambda wanted: wanted.words, return_type=str),
    WithJsonSchema({"type": "string"}),
]
"""A field of a recipe that is written as text."""
