"""How GGUF stores numbers: plain floats, and blocks of 32 small integers with a scale in float16.

After ggml's `ggml-common.h` and `ggml-quants.c`.  A block of Q8_0 is d and 32 signed bytes, x = d q.  In Q4_0
and Q4_1 byte i of 16 holds numbers i (low half) and i + 16 (high half): x = d (q - 8), and x = d q + m.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
BLOCK = 32


@dataclass(frozen=True)
class Format:
    """One way to store numbers: `block` of them in `block_bytes` bytes; `unpack` takes blocks [N, bytes]."""

    name: str
    id: int
    block: int
    block_bytes: int
    unpack: Callable[[Bytes], Floats]

    def num_bytes(self, count: int) -> int:
        """Bytes of `count` numbers, a multiple of the block."""
        return count // self.block * self.block_bytes


def unpack_f32(blocks: Bytes) -> Floats:
    return blocks.view("<f4").astype(np.float32)


def unpack_f16(blocks: Bytes) -> Floats:
    return blocks.view("<f2").astype(np.float32)


def unpack_bf16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def unpack_q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8) * half(blocks, 0)


def unpack_q4_0(blocks: Bytes) -> Floats:
    return (nibbles(blocks[:, 2:]) - np.float32(8)) * half(blocks, 0)


def unpack_q4_1(blocks: Bytes) -> Floats:
    return nibbles(blocks[:, 4:]) * half(blocks, 0) + half(blocks, 2)


def half(blocks: Bytes, at: int) -> Floats:
    """The float16 that begins at byte `at` of each block, [N, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(packed: Bytes) -> Floats:
    """[N, 16] bytes to [N, 32] numbers from 0 to 15, all the low halves first."""
    return np.concatenate((packed & 15, packed >> 4), axis=1).astype(np.float32)


F32, F16 = Format("F32", 0, 1, 4, unpack_f32), Format("F16", 1, 1, 2, unpack_f16)
BF16, Q8_0 = Format("BF16", 30, 1, 2, unpack_bf16), Format("Q8_0", 8, BLOCK, 34, unpack_q8_0)
Q4_0, Q4_1 = Format("Q4_0", 2, BLOCK, 18, unpack_q4_0), Format("Q4_1", 3, BLOCK, 20, unpack_q4_1)
FORMATS = {each.id: each for each in (F32, F16, Q4_0, Q4_1, Q8_0, BF16)}
OTHERS = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""What else ggml knows, for the complaint."""


def dequantize(packed: Bytes, format: Format) -> Floats:
    """Every number of `packed`, whole blocks, in float32."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        return format.unpack(packed.reshape(-1, format.block_bytes)).reshape(-1)


def quantize(values: Floats, format: Format) -> Bytes:
    """`values` as bytes of F32, F16, Q8_0 or Q4_0; for the last two their number is a multiple of 32.

    As in ggml's reference: d = max |x| / 127, and in four bits the number of the largest magnitude over -8; q
    = x / d, halves rounded away from zero, in four bits up; d itself is rounded to float16 only when stored.
    """
    if format is F32:
        return np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
    if format is F16:
        with np.errstate(over="ignore"):  # the caller looks for infinities
            return np.frombuffer(values.astype("<f2").tobytes(), np.uint8)
    blocks = values.reshape(-1, BLOCK)
    return quantize_q8_0(blocks) if format is Q8_0 else quantize_q4_0(blocks)


def quantize_q8_0(blocks: Floats) -> Bytes:
    """Numbers [N, 32] as blocks of Q8_0."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * inverse_of(scale)
    return pack(np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8), scale, Q8_0)


def quantize_q4_0(blocks: Floats) -> Bytes:
    """Numbers [N, 32] as blocks of Q4_0."""
    largest = np.abs(blocks).argmax(axis=1, keepdims=True)
    scale = np.take_along_axis(blocks, largest, axis=1) / np.float32(-8)
    scaled = blocks * inverse_of(scale) + np.float32(8.5)
    return pack(np.minimum(scaled.astype(np.int8), 15) - np.int8(8), scale, Q4_0)


def inverse_of(scale: Floats) -> Floats:
    """1 / scale, and 0 for 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def pack(values: NDArray[np.int8], scales: Floats, format: Format) -> Bytes:
    """Integers [N, 32], -8 to 7 in four bits, and their scales [N, 1] as blocks of Q8_0 or Q4_0."""
    with np.errstate(over="ignore"):  # the caller looks for infinities
        halves = scales.astype("<f2").view(np.uint8)
    if format is Q8_0:
        return np.concatenate((halves, values.view(np.uint8)), axis=1).reshape(-1)
    assert format is Q4_0, format.name
    codes = (values + np.int8(8)).view(np.uint8)
    return np.concatenate((halves, codes[:, :16] | codes[:, 16:] << 4), axis=1).reshape(-1)
