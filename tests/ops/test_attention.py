"""Every way of attending against the formula in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.ops.attention import attend, fused_attention, reference_attention
from hasten.ops.blockwise import BLOCK, blocks_win, blockwise_attention

KERNELS = pytest.mark.parametrize("kernel", [attend, fused_attention, blockwise_attention])


def make_heads(rows: int, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value that ask for gradients; sizes are T, S, H, G."""
    queries, keys, heads, groups = sizes
    torch.manual_seed(0)
    shapes = [(rows, queries, heads, 8), (rows, keys, groups, 8), (rows, keys, groups, 8)]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def make_segments(rows: int, keys: int) -> Tensor:
    """Rows of a few documents that end in padding (0)."""
    numbers = torch.randint(1, 4, (rows, keys)).sort(dim=1).values
    numbers[:, -max(keys // 8, 1) :] = 0
    return numbers


def slow_attention(query: Tensor, key: Tensor, value: Tensor, segments: Tensor | None) -> Tensor:
    """Causal attention by loops over rows, queries and heads: no mask, no broadcasting."""
    out = torch.zeros_like(query)
    rows, queries, heads, width = query.shape
    for b in range(rows):
        for t in range(queries):
            at = key.shape[1] - queries + t
            seen = [s for s in range(at + 1) if segments is None or segments[b, s] == segments[b, at]]
            for h in range(heads):
                g = h * key.shape[2] // heads
                weights = torch.softmax(key[b, seen, g] @ query[b, t, h] / width**0.5, dim=0)
                out[b, t, h] = weights @ value[b, seen, g]
    return out


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", [(7, 7, 4, 2), (3, 9, 2, 2), (1, 5, 4, 1)])
def test_the_written_out_attention_is_the_formula(sizes, packed):
    query, key, value = make_heads(2, sizes, torch.float64)
    segments = make_segments(2, sizes[1]) if packed else None
    found = reference_attention(query, key, value, causal=True, segments=segments)
    with torch.no_grad():
        expected = slow_attention(query, key, value, segments)
    torch.testing.assert_close(found, expected)


@KERNELS
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (5, 5, 2, 2),
        (2 * BLOCK + 3, 2 * BLOCK + 3, 4, 2),
        (8 * BLOCK + 9, 8 * BLOCK + 9, 2, 1),
        (BLOCK, BLOCK, 3, 1),
        (3, 9, 4, 2),
        (1, 300, 2, 1),
    ],
)
def test_outputs_and_gradients_equal_the_reference(kernel, sizes, packed):
    inputs = make_heads(2, sizes, torch.float64)
    segments = make_segments(2, sizes[1]) if packed else None
    expected = reference_attention(*inputs, causal=True, segments=segments)
    found = kernel(*inputs, causal=True, segments=segments)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for mine, reference in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("packed", [False, True])
def test_without_causality_every_position_of_a_segment_is_seen(packed):
    inputs = make_heads(2, (6, 6, 4, 2), torch.float64)
    segments = make_segments(2, 6) if packed else None
    found = attend(*inputs, causal=False, segments=segments)
    torch.testing.assert_close(found, reference_attention(*inputs, causal=False, segments=segments))


@KERNELS
def test_a_scale_takes_the_place_of_the_default(kernel):
    inputs = make_heads(1, (6, 6, 2, 2), torch.float64)
    expected = reference_attention(*inputs, causal=True, scale=0.7)
    torch.testing.assert_close(kernel(*inputs, causal=True, scale=0.7), expected)


@KERNELS
@pytest.mark.parametrize("packed", [False, True])
def test_bfloat16_stays_near_the_reference(kernel, packed):
    """Weights and values are rounded to 8 bits once each, so 3 units of 2^-8 of the largest value."""
    inputs = [x.detach() for x in make_heads(2, (200, 200, 4, 2), torch.bfloat16)]
    segments = make_segments(2, 200) if packed else None
    found = kernel(*inputs, causal=True, segments=segments)
    expected = reference_attention(*(x.double() for x in inputs), causal=True, segments=segments)
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).abs().max() < 3 * 2**-8 * expected.abs().max()


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_documents_in_one_row_attend_as_if_they_were_alone(cuts):
    """The blocks' edges fall anywhere among the documents' edges."""
    length = sum(cuts)
    query, key, value = make_heads(1, (length, length, 2, 1), torch.float64)
    segments = torch.repeat_interleave(torch.arange(1, len(cuts) + 1), torch.tensor(cuts))[None]
    together = blockwise_attention(query, key, value, causal=True, segments=segments)
    alone = [
        reference_attention(*pieces, causal=True)
        for pieces in zip(*(x.split(cuts, dim=1) for x in (query, key, value)), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


@KERNELS
def test_dropout_follows_torch_random_numbers_and_keeps_the_mean(kernel):
    query, key, value = make_heads(64, (8, 8, 8, 8), torch.float64)
    torch.manual_seed(3)
    first = kernel(query, key, value, causal=True, dropout=0.5)
    torch.manual_seed(3)
    assert torch.equal(first, kernel(query, key, value, causal=True, dropout=0.5))
    assert not torch.equal(first, kernel(query, key, value, causal=True, dropout=0.5))
    ones = torch.ones_like(value)
    # The weights of a query sum to one; dropped and doubled, to one on average over 32,768 of them.
    assert abs(kernel(query, key, ones, causal=True, dropout=0.5).mean().item() - 1) < 0.02


def test_blocks_are_chosen_for_bfloat16_on_a_cpu_and_only_for_whole_rows():
    query, key, _ = make_heads(1, (256, 256, 2, 1), torch.bfloat16)
    assert blocks_win(query, key, None)
    assert not blocks_win(query[:, -1:], key, None)
    assert not blocks_win(query.float(), key.float(), None)
    assert torch.compile(blocks_win, backend="eager")(query.float(), key.float(), None)
    assert not blocks_win(query.to("meta"), key.to("meta"), None)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_compile_into_one_graph_with_equal_results(packed):
    inputs = make_heads(2, (BLOCK + 5, BLOCK + 5, 4, 2), torch.float32)
    segments = make_segments(2, BLOCK + 5) if packed else None
    compiled = torch.compile(blockwise_attention, fullgraph=True, dynamic=False)
    found = compiled(*inputs, causal=True, segments=segments)
    expected = reference_attention(*inputs, causal=True, segments=segments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(expected)
    for mine, reference in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
