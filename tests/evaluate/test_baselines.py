"""The LZMA figures are those of real streams that decompress to the text."""

import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import DataError
from hasten.evaluate.baselines import PRESET, baselines, compress_each, compress_stream, compressed_bytes

PLAIN = [{"id": lzma.FILTER_LZMA2, "preset": PRESET}]


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(st.text(max_size=300), max_size=5).map(lambda texts: [t.encode() for t in texts]))
def test_the_length_is_that_of_presets_own_stream_which_gives_the_text_back(parts):
    """The preset's 64 MiB dictionary and ours, sized to the data, make streams of one length."""
    whole = b"".join(parts)
    stream = lzma.compress(whole, lzma.FORMAT_RAW, filters=PLAIN)
    assert compressed_bytes(parts) == len(stream)
    assert lzma.decompress(stream, lzma.FORMAT_RAW, filters=PLAIN) == whole


def test_long_text_too_compresses_to_the_presets_length():
    text = "".join(f"def f{i}(x):\n    return x * {i * i % 97}\n" for i in range(9000)).encode()
    assert len(text) > 200_000
    assert compressed_bytes([text]) == len(lzma.compress(text, lzma.FORMAT_RAW, filters=PLAIN))


def test_one_stream_learns_from_the_files_before_and_each_file_by_itself_does_not():
    texts = [f"the same text, numbered {i}, over and over again" for i in range(20)]
    results = baselines(texts)
    assert results["lzma_stream"]["bits_per_byte"] < results["lzma_each"]["bits_per_byte"] / 3
    alone = [compress_each([text]).compressed_bytes for text in texts]
    assert results["lzma_each"]["compressed_bytes"] == sum(alone)


def test_bits_per_byte_count_utf8_bytes():
    result = compress_stream(["中文", "é"])
    assert result.bytes == 8
    assert result.bits_per_byte == 8 * result.compressed_bytes / 8


def test_an_empty_document_costs_nothing():
    assert compress_each(["abc", "", ""]) == compress_each(["abc"])


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_compress_is_refused(texts):
    with pytest.raises(DataError, match="hold no byte of text; give at least one that is not empty"):
        baselines(texts)
