"""Bfloat16 in twelve bits: every number comes back, and decoding by it changes nothing."""

import pytest
import torch
from torch import Tensor

from hasten.generate.cache import KeyValueCache
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import ready
from hasten.generate.half import WORTHWHILE_TOKENS
from hasten.generate.native import NativeDecoder
from hasten.generate.twelve import Packed, twelve_bits
from hasten.ops.kernels.library import library

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels cannot be compiled or run here")


def unpacked(packed: Packed, shape: torch.Size) -> Tensor:
    """The matrix in bfloat16, from the layout as `project.h` describes it."""
    blocks = packed.blocks.view(torch.uint8).view(-1, 48).int()
    rest, codes = blocks[:, :32], blocks[:, 32:].view(-1, 2, 8)  # of each sixteen, eight bytes of two codes
    nibbles = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)  # [blocks, 2, 16] by place
    place = torch.tensor([8 * (i % 2) + i // 2 for i in range(16)])
    exponents = packed.exponents[nibbles[:, :, place].flatten(1).long()]
    bits = ((rest & 0x80) << 24) | exponents | ((rest & 0x7F) << 16)
    whole = bits.to(torch.int32).view(torch.float32).view(shape).clone()
    for output, column, value in packed.odd.tolist():
        assert whole[output, column] == 0
        whole[output, column] = torch.tensor(value, dtype=torch.int32).view(torch.float32)
    return whole.bfloat16()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("shape", [(1, 32), (7, 64), (300, 96), (513, 416)])
def test_every_number_comes_back(shape):
    matrix = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    matrix[0, :3] = torch.tensor([0.0, -0.0, 1e-40])
    (packed,) = twelve_bits([matrix])
    assert packed.blocks.nbytes == matrix.nbytes * 3 // 4
    assert same_bits(unpacked(packed, matrix.shape), matrix)


def test_rare_exponents_are_kept_beside_the_matrix_in_order():
    matrix = torch.full((200, 128), 0.5).bfloat16()
    rare = {(0, 5): 1e30, (3, 127): -1e-30, (3, 126): float("inf"), (199, 0): float("nan")}
    for place, value in rare.items():
        matrix[place] = value
    (packed,) = twelve_bits([matrix])
    assert [tuple(odd[:2]) for odd in packed.odd.tolist()] == [(0, 5), (3, 126), (3, 127), (199, 0)]
    assert torch.equal(unpacked(packed, matrix.shape).nan_to_num(7.0), matrix.nan_to_num(7.0))


def test_float32_that_is_bfloat16_at_heart_is_taken_and_other_float32_is_not():
    matrix = torch.randn(8, 32)
    assert twelve_bits([matrix]) is None
    (packed,) = twelve_bits([matrix.bfloat16().float()])
    assert same_bits(unpacked(packed, matrix.shape), matrix.bfloat16())


def test_what_packing_would_not_shorten_is_refused():
    assert twelve_bits([torch.ones(4, 48).bfloat16()]) is None, "no whole blocks"
    spread = torch.logspace(-30, 30, 32).expand(8, 32).bfloat16()
    assert twelve_bits([torch.ones(4, 32).bfloat16(), spread]) is None, "too many exponents"


def follow(model, decoder: NativeDecoder, rows: int) -> Tensor:
    """Logits after each of six tokens of `rows` rows."""
    ids = torch.randint(0, 257, (rows, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), KeyValueCache(model, [i % 3 for i in range(rows)], 20, decoder) as cache:
        cache.read(ids[:, :4])
        return torch.stack([cache.follow(tokens).clone() for tokens in ids[:, 4:].T], dim=1)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_decoding_gives_the_same_bits_with_rare_numbers_too_on_any_threads(small_model, monkeypatch, rows):
    monkeypatch.setattr("hasten.generate.native.THREADED_BYTES", 0)
    model = small_model(dim=64, ffn_dim=96).bfloat16()
    with torch.no_grad():
        for layer in model.layers.values():
            layer.ffn.down.weight[5, 7], layer.ffn.down.weight[5, 90] = 30.0, -0.1e-9
            layer.attention.query.weight[0, 0], layer.attention.query.weight[63, 31] = 1e-9, 2e-9
    packed, plain = NativeDecoder(model, twelve=True), follow(model, NativeDecoder(model), rows)
    assert any(len(m.odd) for m in packed.matrices.values())
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(follow(model, packed, rows), plain)
    finally:
        torch.set_num_threads(threads)


def test_long_texts_from_bfloat16_models_are_written_by_it(small_model, monkeypatch):
    monkeypatch.setattr("hasten.generate.half.WORTHWHILE_PARAMETERS", 1000)
    model = small_model(dim=64, ffn_dim=96).bfloat16()
    for tokens, kind in ((WORTHWHILE_TOKENS, Packed), (WORTHWHILE_TOKENS - 1, Tensor)):
        with ready(model, GenerateConfig(max_new_tokens=tokens)) as prepared:
            assert all(isinstance(matrix, kind) for matrix in prepared.native.matrices.values())
