"""What a good general-purpose compressor makes of the same text: the figure a language model has to beat.

LZMA2 without a container (`FORMAT_RAW`), preset 9 extreme: no header, no checksum, so that small files
are not charged for either.  A model that predicts the text in n bits per byte is, with an arithmetic
coder behind it, a compressor of n bits per byte, so the two stand on one scale (Shannon 1948).  The
model has seen its training text before and LZMA has seen nothing: "one stream" lets LZMA learn from
the files before, "each file" does not.
"""

import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from hasten.core.errors import DataError

PRESET = 9 | lzma.PRESET_EXTREME
PRESET_DICTIONARY, SMALLEST_DICTIONARY = 64 << 20, 4096  # bytes; liblzma's for preset 9, and its least


@dataclass(frozen=True)
class Compressed:
    """How small a compressor made `bytes` bytes of text."""

    bytes: int
    compressed_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits of output per byte of input."""
        return 8 * self.compressed_bytes / self.bytes


def baselines(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """`{"lzma_each": {bits_per_byte, bytes, compressed_bytes}, "lzma_stream": {...}}` for these documents.

    Raises DataError where there is no byte to compress.
    """
    results = {"lzma_each": compress_each(texts), "lzma_stream": compress_stream(texts)}
    return {name: {"bits_per_byte": r.bits_per_byte, **asdict(r)} for name, r in results.items()}


def compress_each(texts: Iterable[str]) -> Compressed:
    """Every document by itself, nothing carried over; an empty one is nothing to store."""
    sizes = [(len(data), compressed_bytes([data])) for data in encoded(texts)]
    return checked(sum(size for size, _ in sizes), sum(packed for _, packed in sizes))


def compress_stream(texts: Sequence[str]) -> Compressed:
    """All documents as one stream, in their order, nothing between them."""
    return checked(sum(map(len, encoded(texts))), compressed_bytes(encoded(texts)))


def encoded(texts: Iterable[str]) -> Iterator[bytes]:
    """The UTF-8 bytes of every document that has any."""
    return (text.encode() for text in texts if text)


def compressed_bytes(parts: Iterable[bytes]) -> int:
    """Length of the raw LZMA2 stream of all `parts`, without holding it."""
    parts = list(parts)
    # A dictionary as long as the data finds the same matches as preset 9's 64 MiB and starts 16 times faster.
    dictionary = min(max(sum(map(len, parts)), SMALLEST_DICTIONARY), PRESET_DICTIONARY)
    chain = [{"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": dictionary}]
    compressor = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=chain)
    return sum(len(compressor.compress(part)) for part in parts) + len(compressor.flush())


def checked(size: int, packed: int) -> Compressed:
    """The result, unless there was nothing to compress."""
    if not size:
        raise DataError("the documents to compress hold no byte of text; give at least one that is not empty")
    return Compressed(size, packed)
