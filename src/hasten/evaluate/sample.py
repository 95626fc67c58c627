"""Drawing by name: the same choice whatever the order, and whatever else there is to choose from."""

import hashlib
import random
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from hasten.data.source import Document

T = TypeVar("T")


def draw(seed: int, name: str) -> bytes:
    """A number drawn by (seed, name): sorting by it is a shuffle that does not depend on the others."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()


def sample(documents: Sequence[Document], max_bytes: int | None, seed: int) -> list[Document]:
    """Documents drawn until they hold `max_bytes` of text or more, in their own order; None draws all."""
    if max_bytes is None:
        return list(documents)
    order = sorted(range(len(documents)), key=lambda i: draw(seed, documents[i].id))
    before = accumulate((len(documents[i].text.encode()) for i in order), initial=0)
    return [
        documents[i] for i in sorted(i for i, size in zip(order, before, strict=False) if size < max_bytes)
    ]


def drawn(items: Sequence[T], most: int | None, seed: int) -> list[T]:
    """`most` of the items in their own order; all of them where it is None, or no fewer than there are."""
    if most is None or most >= len(items):
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), most))]
