"""Forged and damaged GGUF files: refused in words that name the file and the place, in little memory.

`HASTEN_FUZZ=50` runs fifty times as many mutations.
"""

import random
import struct
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutations import SCALE

from hasten.core.errors import CheckpointError
from hasten.model.gguf import load_gguf
from hasten.model.gguf.container import ALIGNMENT, MOST_STRINGS, Container, read
from hasten.model.gguf.quant import F32, FORMATS, Q8_0, Format
from hasten.model.gguf.writer import Block, header, text, write

CASES = 6000 * SCALE
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZES = {"dim": 32, "ffn": 32, "heads": 2, "rows": len(LETTERS) + 2}
K = "tokenizer.ggml."
KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    f"{K}model": "gpt2",
    f"{K}pre": "gpt-2",
    f"{K}tokens": [*LETTERS, "ab", "<|endoftext|>"],
    f"{K}token_type": [1] * 27 + [3],
    f"{K}merges": ["a b"],
    f"{K}eos_token_id": 27,
    f"{K}add_bos_token": True,
}
SHAPES = {
    "token_embd": (28, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,),
    "blk.0.attn_q": (32, 32), "blk.0.attn_k": (32, 32), "blk.0.attn_v": (32, 32),
    "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (32, 32), "blk.0.ffn_up": (32, 32),
    "blk.0.ffn_down": (32, 32),
}  # fmt: skip


def block(name: str, shape: tuple[int, ...], format: Format = F32) -> Block:
    """A tensor of zeros."""
    packed = np.zeros(format.num_bytes(int(np.prod(shape))), np.uint8)
    return Block(name, shape, format, lambda: packed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A small file that loads: a llama with one layer and 28 tokens."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    kinds = [Q8_0 if len(shape) > 1 else F32 for shape in SHAPES.values()]
    write(path, KEYS, [block(f"{n}.weight", s, f) for (n, s), f in zip(SHAPES.items(), kinds, strict=True)])
    load_gguf(path)
    return path.read_bytes()


def refuse(path: Path, data: bytes, message: str) -> None:
    """Reading is refused with these words and the file's name, in less memory than 1 MB."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def put(path: Path, data: bytes) -> None:
    """Write over what is there: emptying a file first makes the disk wait."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(data)
        file.truncate()


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def start(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    """The first 24 bytes."""
    return b"GGUF" + u32(version) + u64(tensors, keys)


def key(name: str, kind: int, value: bytes) -> bytes:
    """One key."""
    return start(0, 1) + text(name) + u32(kind) + value


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """One entry of the tensors' list."""
    return text(name) + u32(len(dims)) + u64(*dims) + u32(kind) + u64(offset)


def nested(depth: int) -> bytes:
    """Arrays in arrays, and in the innermost one number."""
    return b"".join(u32(9) + u64(1) for _ in range(depth)) + u32(0) + u64(1) + b"\1"


HUGE = 2**63 - 1
ENTRIES = tensor("a", (32,)) + tensor("b", (32,), offset=64) + bytes(512)
FORGED = {
    "nothing": (b"", "has 0 bytes and is no GGUF file"),
    "too short": (b"GGUF", "has 4 bytes"),
    "other magic": (b"GGML" + start()[4:], r"begins with b'GGML' and not with b'GGUF'"),
    "version 1": (start(version=1), "is version 1; hasten reads versions 2 and 3"),
    "version 4": (start(version=4), "is version 4"),
    "big-endian": (start(version=3 << 24), "is big-endian"),
    "more tensors than bytes": (start(HUGE), "promises 9,223,372,036,854,775,807 tensors, and the rest"),
    "more keys than bytes": (start(0, HUGE), "promises .* keys, and the rest of the file holds 0"),
    "a name longer than the file": (start(0, 1) + u64(HUGE) + bytes(40), "key number 0: promises a text of"),
    "a name longer than allowed": (start(0, 1) + text("k" * 70_000) + bytes(40), "a text of 70,000 bytes"),
    "a key without a name": (key("", 0, bytes(9)), "the key '': has no name"),
    "a key twice": (start(0, 2) + (text("k") + u32(0) + b"\1") * 2, "the key 'k': is there twice"),
    "a key that is no UTF-8": (start(0, 1) + u64(1) + b"\xff" + bytes(20), "not UTF-8"),
    "an unknown type": (key("k", 13, bytes(20)), "the key 'k': has the type 13"),
    "a string longer than the file": (key("k", 8, u64(2**40)), "the key 'k': promises a text of"),
    "a string that is no UTF-8": (key("k", 8, u64(2) + b"\xc3\x28"), "the key 'k': holds a text that is not"),
    "a truth value of 2": (key("k", 7, b"\2"), "neither 0 nor 1"),
    "truth values of 2": (key("k", 9, u32(7) + u64(2) + b"\1\2"), "neither 0 nor 1"),
    "an array of an unknown type": (key("k", 9, u32(99) + u64(1) + bytes(8)), "an array of the type 99"),
    "an array longer than the file": (key("k", 9, u32(4) + u64(2**61)), "promises .* elements"),
    "an array whose bytes overflow": (key("k", 9, u32(12) + u64(2**62 + 1)), "promises .* elements"),
    "strings longer than the file": (key("k", 9, u32(8) + u64(2**61)), "promises .* elements"),
    "arrays longer than the file": (key("k", 9, u32(9) + u64(2**61)), "promises .* elements"),
    "arrays nested too deeply": (key("k", 9, nested(5)), "nests arrays more than 4 deep"),
    "arrays nested far too deeply": (key("k", 9, nested(5000)), "nests arrays more than 4 deep"),
    "an alignment of 0": (
        key("general.alignment", 4, u32(0)),
        "'general.alignment': is 0, not a power of two",
    ),
    "an alignment of 24": (key("general.alignment", 4, u32(24)), "is 24, not a power of two"),
    "an alignment that is text": (key("general.alignment", 8, text("32")), "is '32', not a power of two"),
    "a tensor without a name": (start(1) + tensor("", (32,)) + bytes(200), "has no name"),
    "a tensor's name of 64 bytes": (start(1) + tensor("n" * 64, (32,)), "promises a text of 64 bytes"),
    "a tensor twice": (start(2) + tensor("a", (32,)) * 2 + bytes(400), "the tensor 'a': is there twice"),
    "no dimension": (start(1) + tensor("a", ()) + bytes(200), "has 0 dimensions; the format has 1 to 4"),
    "five dimensions": (start(1) + tensor("a", (1,) * 5) + bytes(200), "has 5 dimensions"),
    "2^32 dimensions": (start(1) + text("a") + u32(2**32 - 1) + bytes(200), "has 4294967295 dimensions"),
    "a dimension of 0": (start(1) + tensor("a", (32, 0)) + bytes(200), r"has the shape \[0, 32\] and so no"),
    "dimensions whose product overflows": (
        start(1) + tensor("a", (2**32, 2**32, 2**32, 2**32)) + bytes(400),
        "the tensor 'a': needs the bytes",
    ),
    "dimensions whose product overflows to 0": (start(1) + tensor("a", (2**32, 2**32)) + bytes(400), "needs"),
    "a tensor longer than the file": (start(1) + tensor("a", (64,)) + bytes(64), "and the file ends at"),
    "rows that are no multiple of the block": (start(1) + tensor("a", (31, 2), 8) + bytes(200), "rows of 31"),
    "a format that hasten has not": (start(1) + tensor("a", (256,), 12) + bytes(200), "is stored as Q4_K"),
    "a format that nobody has": (start(1) + tensor("a", (256,), 77) + bytes(200), "is stored as type 77"),
    "an offset that is not aligned": (
        start(1) + tensor("a", (8,), 0, 4) + bytes(200),
        "lies at 4, no multiple",
    ),
    "an offset past the end": (start(1) + tensor("a", (8,), 0, 2**40) + bytes(200), "needs the bytes"),
    "an offset that overflows": (start(1) + tensor("a", (8,), 0, 2**64 - 32) + bytes(200), "needs the bytes"),
    "tensors that overlap": (start(2) + ENTRIES, "the tensor 'b': overlaps the tensor 'a'"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_header_is_refused(name, tmp_path):
    data, message = FORGED[name]
    refuse(tmp_path / "forged.gguf", data, message)


def test_more_strings_than_any_vocabulary_has_are_refused(tmp_path):
    many = MOST_STRINGS + 1
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:  # a hole in the file: every length in it is 0
        file.write(key("k", 9, u32(8) + u64(many)))
        file.truncate(file.tell() + 8 * many)
    with pytest.raises(CheckpointError, match="more than the 4,194,304 allowed"):
        read(path)


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(path)


def test_every_truncation_is_refused(whole, tmp_path):
    kinds = [Q8_0 if len(shape) > 1 else F32 for shape in SHAPES.values()]
    blocks = [block(f"{n}.weight", s, f) for (n, s), f in zip(SHAPES.items(), kinds, strict=True)]
    ends = len(header(KEYS, blocks))
    path = tmp_path / "m.gguf"
    for length in [*range(ends + ALIGNMENT), *range(ends, len(whole) - ALIGNMENT, 97)]:
        put(path, whole[:length])
        with pytest.raises(CheckpointError, match=r"m\.gguf"):
            read(path)


def test_both_versions_and_every_kind_of_value_are_read(tmp_path):
    values = [
        (0, b"\xff", 255), (1, b"\xff", -1), (2, b"\xff\xff", 65_535), (3, b"\xff\xff", -1), (4, u32(7), 7),
        (5, b"\xff" * 4, -1), (6, struct.pack("<f", 0.5), 0.5), (7, b"\1", True), (8, text("é"), "é"),
        (10, u64(2**63), 2**63), (11, b"\xff" * 8, -1), (12, struct.pack("<d", 0.1), 0.1),
        (9, u32(8) + u64(2) + text("a") + text(""), ["a", ""]),
        (9, u32(9) + u64(1) + u32(8) + u64(1) + text("a"), [["a"]]),
    ]  # fmt: skip
    body = b"".join(text(f"k{i}") + u32(kind) + data for i, (kind, data, _) in enumerate(values))
    for version in (2, 3):
        (tmp_path / "m.gguf").write_bytes(start(0, len(values), version) + body)
        file = read(tmp_path / "m.gguf")
        assert file.version == version
        assert list(file.metadata.values()) == [value for _, _, value in values]
    numbers = key("n", 9, u32(5) + u64(3) + struct.pack("<3i", 1, -2, 3))
    (tmp_path / "m.gguf").write_bytes(numbers)
    assert read(tmp_path / "m.gguf").metadata["n"].tolist() == [1, -2, 3]


def test_another_alignment_is_kept_to(tmp_path):
    head = key("general.alignment", 4, u32(128)).replace(start(0, 1), start(2, 1))
    head += tensor("a", (8,)) + tensor("b", (8,), 0, 128)
    data = np.arange(8, dtype="<f4").tobytes()
    body = bytes(-len(head) % 128) + data + bytes(96) + data[::-1]
    (tmp_path / "m.gguf").write_bytes(head + body)
    file = read(tmp_path / "m.gguf")
    assert file.floats("a").tolist() == list(range(8))
    assert file.tensors["b"].begin % 128 == 0


OTHER_TYPES = [True, 7, 0.5, "x", "x" * 5000, ["a"], ["a"] * 28, [1], [1] * 28, [0.5] * 28, [True] * 28, []]
OTHERS = [
    "general.type", "general.alignment", "split.count", "llama.vocab_size", "llama.rope.freq_base",
    "llama.rope.dimension_count", "llama.rope.scaling.type", "llama.attention.key_length",
    "tokenizer.chat_template", f"{K}bos_token_id", f"{K}eot_token_id", f"{K}add_eos_token", f"{K}scores",
    f"{K}add_space_prefix", f"{K}padding_token_id", "llama." * 900,
]  # fmt: skip


@pytest.mark.parametrize("key", [*KEYS, *OTHERS], ids=lambda key: key[:40])
def test_a_key_of_any_other_type_is_refused_or_changes_nothing_that_matters(key, tmp_path):
    blocks = [block(f"{name}.weight", shape) for name, shape in SHAPES.items()]
    for kind in ("gpt2", "llama"):
        for value in OTHER_TYPES:
            write(tmp_path / "m.gguf", {**KEYS, f"{K}model": kind, key: value}, blocks)
            try:
                model, tokenizer, _ = load_gguf(tmp_path / "m.gguf")
            except CheckpointError as error:
                assert len(str(error)) < 1500
                assert "m.gguf" in str(error)
                continue
            assert model.config.vocabulary == 28 >= tokenizer.vocab_size


NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    9,
    12,
    31,
    33,
    64,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
)


def damaged(data: bytes, ends: int, count: int, seed: int) -> Iterator[bytes]:
    """Copies with numbers, bits and pieces changed, in the header as a rule."""
    draw = random.Random(seed)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            place = draw.randrange(min(len(copy), draw.choice((ends, ends, ends, len(data)))))
            match draw.randrange(5):
                case 0:
                    copy[place] ^= 1 << draw.randrange(8)
                case 1:
                    wide = draw.choice((4, 8))
                    copy[place : place + wide] = (draw.choice(NUMBERS) % 2 ** (8 * wide)).to_bytes(
                        wide, "little"
                    )
                case 2:
                    copy[place : place + draw.randrange(1, 40)] = b""
                case 3:
                    copy[place:place] = copy[draw.randrange(ends) :][: draw.randrange(1, 60)]
                case 4:
                    copy[place : place + 1] = draw.randbytes(1)
        yield bytes(copy)


def check_places(file: Container) -> None:
    """What was let through is within the file, and no byte belongs to two."""
    entries = sorted(file.tensors.values(), key=lambda entry: entry.begin)
    for entry in entries:
        assert entry.format in FORMATS.values()
        assert 0 < entry.begin <= entry.end <= len(file.data)
        assert entry.end - entry.begin == entry.format.num_bytes(int(np.prod(entry.shape)))
    assert all(a.end <= b.begin for a, b in pairwise(entries))


@pytest.mark.parametrize("part", range(4))
def test_damaged_files_are_refused_or_are_whole_models(part, whole, tmp_path):
    path = tmp_path / "m.gguf"
    ends = whole.index(b"blk.0.ffn_down.weight") + 64
    refused = 0
    for data in damaged(whole, ends, -(-CASES // 4), seed=part):
        put(path, data)
        try:
            model, tokenizer, _ = load_gguf(path)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
            assert len(str(error)) < 1500
            continue
        check_places(read(path))
        assert tokenizer.vocab_size <= model.config.vocabulary
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert refused > CASES // 8  # damage in the header is found as a rule
