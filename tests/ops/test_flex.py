"""Attention inside documents by tiles, against the formula in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hasten.ops.attention import reference_attention
from hasten.ops.flex import BLOCK, DocumentAttention, document_mask, tile_mask
from hasten.ops.sight import Sight

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's backward needs a GPU")


def make_heads(length: int, heads: int, groups: int, width: int = 16) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, length, heads, width), (2, length, groups, width), (2, length, groups, width)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def make_segments(*rows: list[int]) -> Tensor:
    """Rows of documents of these lengths, the last one being padding (0)."""
    numbers = [torch.repeat_interleave(torch.arange(1, len(r) + 1), torch.tensor(r)) for r in rows]
    return torch.stack([n.masked_fill(n == n[-1], 0) if n[-1] > 1 else n for n in numbers])


def uncompiled() -> DocumentAttention:
    """With every score written out, as FlexAttention does without a compiler."""
    attention = DocumentAttention()
    attention.kernel = flex_attention
    return attention


def tiles(mask: BlockMask) -> tuple[Tensor, Tensor]:
    """Which tiles are looked at, and which without asking for each pair: bool [B, N, N] each."""
    dense = torch.zeros(2, len(mask.kv_indices), *mask.kv_indices.shape[2:], dtype=torch.bool)
    kinds = (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)
    for kind, (count, which) in enumerate(kinds):
        assert count is not None and which is not None
        for b, _, i in torch.cartesian_prod(*map(torch.arange, count.shape)).tolist():
            dense[kind, b, i, which[b, 0, i, : int(count[b, 0, i])].long()] = True
    return dense[0] | dense[1], dense[1]


def brute_force(segments: Tensor) -> tuple[Tensor, Tensor]:
    """The same from every pair of positions."""
    return squares_of((segments[:, :, None] == segments[:, None, :]).tril())


def squares_of(seen: Tensor) -> tuple[Tensor, Tensor]:
    """In which tiles some pair sees, and every: bool [B, T, S] -> [B, N, M] each."""
    padded = torch.nn.functional.pad(seen, (0, -seen.shape[2] % BLOCK, 0, -seen.shape[1] % BLOCK))
    squares = padded.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3).flatten(3)
    return squares.any(dim=-1), squares.all(dim=-1)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_the_tiles_are_those_that_hold_a_visible_pair(cuts: list[int]) -> None:
    segments = make_segments(cuts)
    some, every = tiles(document_mask(segments))
    expected_some, expected_every = brute_force(segments)
    assert torch.equal(some, expected_some) and torch.equal(every, expected_every)


@pytest.mark.parametrize(
    ("causal", "window"),
    [(True, None), (True, 1), (True, 130), (True, 257), (False, 1), (False, 200), (False, None)],
)
@pytest.mark.parametrize("length", [2 * BLOCK, 3 * BLOCK + 5])
def test_tiles_by_place_are_those_that_hold_a_visible_pair(causal, window, length) -> None:
    """With numbers of queries and keys that differ, none that is needed is missing."""
    at = torch.arange(length)
    hidden = (at > at[:, None]) & causal
    if window is not None:
        hidden = hidden | (at <= at[:, None] - window)
    some, every = tiles(tile_mask(Sight(causal, window=window), length, length, at.device))
    expected = squares_of(~hidden[None])
    assert torch.equal(some, expected[0]) and torch.equal(every, expected[1])
    mine, theirs = make_segments([100, length - 100]), make_segments([length - 60, 60])
    some, every = tiles(tile_mask(Sight(causal, mine, theirs, window), length, length, at.device))
    expected = squares_of(~hidden & (mine[:, :, None] == theirs[:, None, :]))
    assert not (expected[0] & ~some).any() and not (every & ~expected[1]).any()
    assert not some.all()


def test_a_part_has_tiles_of_other_lengths() -> None:
    mine, theirs = make_segments([BLOCK, BLOCK]), make_segments([BLOCK + 9, 2 * BLOCK])
    some, every = tiles(tile_mask(Sight(False, mine, theirs), 2 * BLOCK, 3 * BLOCK + 9, mine.device))
    expected = squares_of(mine[:, :, None] == theirs[:, None, :])
    assert torch.equal(some, expected[0]) and torch.equal(every, expected[1])


def test_numbers_in_any_order_lose_no_visible_pair() -> None:
    torch.manual_seed(1)
    segments = torch.randint(0, 5, (2, 4)).repeat_interleave(100, dim=1)
    some, every = tiles(document_mask(segments))
    expected_some, expected_every = brute_force(segments)
    assert not (expected_some & ~some).any() and not (every & ~expected_every).any()


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("length", [2 * BLOCK, 2 * BLOCK + 9, 40])
def test_outputs_equal_the_reference(length: int, groups: int) -> None:
    inputs = make_heads(length, 4, groups)
    segments = make_segments([length], [length // 3, length // 2, length - length // 3 - length // 2])
    attention = uncompiled()
    for scale in (None, 0.3):
        expected = reference_attention(*inputs, causal=True, segments=segments, scale=scale)
        with attention.over(segments):
            found = attention(*inputs, causal=True, segments=segments, scale=scale)
        torch.testing.assert_close(found, expected)


def test_what_flex_attention_cannot_do_and_what_is_outside_goes_the_usual_way() -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("FlexAttention was called")

    inputs = make_heads(40, 4, 2)
    segments = make_segments([40], [13, 20, 7])
    attention = DocumentAttention()
    attention.kernel = refuse  # type: ignore[assignment]
    expected = reference_attention(*inputs, causal=True, segments=segments)
    torch.testing.assert_close(attention(*inputs, causal=True, segments=segments), expected)
    with attention.over(segments):
        attention(*inputs, causal=True, segments=segments, dropout=0.5)
        attention(*(x[..., :8] for x in inputs), causal=True, segments=segments)
        last = [inputs[0][:, -1:], *inputs[1:]]
        torch.testing.assert_close(attention(*last, causal=True, segments=segments), expected[:, -1:])
    with attention.over(None):
        expected = reference_attention(*inputs, causal=True)
        torch.testing.assert_close(attention(*inputs, causal=True), expected)


def test_other_documents_of_the_same_shape_make_no_second_graph() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    attention = uncompiled()
    inputs = make_heads(300, 2, 2)
    compiled: Callable = torch.compile(attention.__call__, backend=counter, dynamic=False, fullgraph=True)
    for cut in (100, 130, 299):
        segments = make_segments([cut, 300 - cut], [300])
        with torch.no_grad(), attention.over(segments):
            found = compiled(*inputs, causal=True, segments=segments)
        expected = reference_attention(*inputs, causal=True, segments=segments)
        torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_the_compiled_kernel_equals_the_reference() -> None:
    torch._dynamo.reset()
    inputs = [x.float() for x in make_heads(2 * BLOCK + 9, 4, 2)]
    segments = make_segments([BLOCK, BLOCK + 9], [200, 60, 5])
    attention = DocumentAttention()
    with torch.no_grad(), attention.over(segments):
        found = attention(*inputs, causal=True, segments=segments)
    expected = reference_attention(*inputs, causal=True, segments=segments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("groups", [4, 2])
def test_gradients_equal_the_reference_on_a_gpu(groups: int) -> None:
    exact = [x.cuda().requires_grad_() for x in make_heads(3 * BLOCK + 9, 4, groups, width=64)]
    inputs = [x.detach().bfloat16().requires_grad_() for x in exact]
    segments = make_segments([100, 293], [200, 180, 13]).cuda()
    attention = DocumentAttention()
    expected = reference_attention(*exact, causal=True, segments=segments)
    with attention.over(segments):
        found = attention(*inputs, causal=True, segments=segments)
    direction = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, exact, direction)
    ours = torch.autograd.grad(found, inputs, direction.bfloat16())
    for mine, reference in zip([found, *ours], [expected, *theirs], strict=True):
        assert (mine.double() - reference).norm() < 0.02 * reference.norm()
