"""The attention kernel against the formula in float64 and against PyTorch's kernel in bfloat16."""

from collections.abc import Callable

import pytest
import torch
from against import assert_as_good, assert_threads_do_not_matter, needs_kernels, results
from torch import Tensor

from hasten.ops import attention
from hasten.ops.attention import attend, fused_attention, reference_attention
from hasten.ops.kernels.attention import kernel_attends, kernel_attention

pytestmark = needs_kernels


def make_heads(sizes: tuple[int, int, int, int, int], rows: int = 2) -> list[Tensor]:
    """Query, key and value as views of wider outputs; sizes are T, S, H, G, K."""
    queries, keys, heads, groups, width = sizes
    torch.manual_seed(0)
    shapes = [(queries, heads), (keys, groups), (keys, groups)]
    wide = [torch.randn(rows, n, h * width + 16).bfloat16() for n, h in shapes]
    return [x[..., 16:].unflatten(-1, (-1, width)) for x in wide]


def make_segments(kind: str, keys: int, rows: int = 2) -> Tensor | None:
    """Documents of some kind in rows of `keys` positions; a padding of zeros ends the packed ones."""
    torch.manual_seed(1)
    if kind == "none":
        return None
    if kind == "packed":
        numbers = torch.randint(1, 5, (rows, keys)).sort(dim=1).values
        numbers[:, keys - keys // 10 :] = 0
        return numbers
    if kind == "scattered":
        return torch.randint(-2, 2, (rows, keys)) * 2**40
    assert kind == "runs"  # numbers that come back later
    return torch.randint(1, 4, (rows, -(-keys // 20))).repeat_interleave(20, dim=1)[:, :keys]


def compare(inputs: list[Tensor], causal: bool, segments: Tensor | None = None) -> None:
    """The kernel is as near to float64 as PyTorch's kernel is: output and all three gradients."""

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        oracle = reference_attention if query.dtype == torch.float64 else fused_attention
        return oracle(query, key, value, causal=causal, segments=segments)

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return kernel_attention(query, key, value, causal=causal, segments=segments)

    assert_as_good(kernel, plain, inputs, torch.randn(inputs[0].shape).bfloat16())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tokens", [2, 3, 17, 64, 100, 256, 513])
def test_any_length_is_as_exact_as_pytorch(tokens, causal):
    compare(make_heads((tokens, tokens, 2, 2, 64)), causal)


@pytest.mark.parametrize("segments", ["none", "packed"])
@pytest.mark.parametrize("width", [16, 32, 48, 64, 96, 128, 256])
def test_any_width_is_as_exact_as_pytorch(width, segments):
    compare(make_heads((100, 100, 4, 2, width)), True, make_segments(segments, 100))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("queries, keys", [(100, 100), (300, 300), (30, 100), (65, 200), (2, 130)])
@pytest.mark.parametrize("kind", ["none", "packed", "scattered", "runs"])
def test_any_documents_and_cached_keys_are_as_exact_as_pytorch(kind, queries, keys, causal):
    compare(make_heads((queries, keys, 4, 2, 32)), causal, make_segments(kind, keys))


@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_nobody_else_gets_its_own_value(causal):
    inputs = make_heads((100, 130, 4, 2, 64))
    segments, gradient = torch.arange(130).expand(2, -1), torch.randn(inputs[0].shape).bfloat16()
    out, d_query, d_key, d_value = results(
        lambda *heads: kernel_attention(*heads, causal=causal, segments=segments), inputs, gradient
    )
    assert torch.equal(out, inputs[2][:, 30:].repeat_interleave(2, dim=2))
    assert max(d_query.abs().max(), d_key.abs().max()) < 1e-5
    shared = gradient.float().unflatten(2, (2, 2)).sum(dim=3).bfloat16()
    torch.testing.assert_close(d_value[:, 30:], shared)
    assert not d_value[:, :30].any()


@pytest.mark.parametrize("layout", [(0, 2, 1, 3), (0, 1, 3, 2)])
def test_heads_lie_in_memory_in_any_order(layout):
    shape = [(2, 70, 4, 32)[i] for i in layout]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).bfloat16().permute(layout) for _ in range(3)]
    gradient = torch.randn(shape).bfloat16().permute(layout)
    found = results(lambda *heads: kernel_attention(*heads, causal=True), inputs, gradient)
    plain = [x.contiguous() for x in (*inputs, gradient)]
    expected = results(lambda *heads: kernel_attention(*heads, causal=True), plain[:3], plain[3])
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_a_gradient_that_is_one_number_everywhere():
    query, key, value = (x.requires_grad_() for x in make_heads((40, 40, 2, 1, 16)))
    kernel_attention(query, key, value, causal=True).sum().backward()
    exact = value.detach().double().requires_grad_()
    reference_attention(query.detach().double(), key.detach().double(), exact, causal=True).sum().backward()
    torch.testing.assert_close(value.grad.double(), exact.grad, rtol=2e-2, atol=2e-2)


def test_the_scale_is_that_of_the_caller():
    inputs = make_heads((90, 90, 2, 2, 32))

    def scaled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *heads: function(*heads, causal=True, scale=0.5)

    assert_as_good(scaled(kernel_attention), scaled(reference_attention), inputs, torch.ones(inputs[0].shape))


@pytest.mark.parametrize("kind", ["none", "packed"])
def test_threads_change_no_bit(kind):
    segments = make_segments(kind, 200)
    assert_threads_do_not_matter(
        lambda *heads: kernel_attention(*heads, causal=True, segments=segments),
        make_heads((200, 200, 4, 2, 64)),
        torch.ones(2, 200, 4, 64),
    )


def test_documents_in_one_row_equal_documents_in_rows_of_their_own():
    lengths = [70, 1, 64, 33]
    segments = torch.arange(4).repeat_interleave(torch.tensor(lengths))[None]
    inputs = make_heads((sum(lengths), sum(lengths), 2, 1, 64), rows=1)
    gradient = torch.randn(inputs[0].shape).bfloat16()
    together = results(lambda *x: kernel_attention(*x, causal=True, segments=segments), inputs, gradient)
    alone = [
        results(lambda *x: kernel_attention(*x, causal=True), [query, key, value], part)
        for query, key, value, part in zip(
            *(x.split(lengths, dim=1) for x in (*inputs, gradient)), strict=True
        )
    ]
    for found, expected in zip(
        together, (torch.cat(x, dim=1) for x in zip(*alone, strict=True)), strict=True
    ):
        # The blocks begin elsewhere, so sums round differently: by a few units in the last place.
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item())


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(which, bad):
    inputs = make_heads((80, 80, 2, 2, 32))
    inputs[which][1, 5, 1, 3] = bad
    gradient = torch.ones(inputs[0].shape)
    found = results(lambda *heads: kernel_attention(*heads, causal=True), inputs, gradient)
    for x in found:
        assert x[0].isfinite().all()  # another row of the batch
        assert x[1, :, 0].isfinite().all()  # another head
    assert not found[0][1, 5:, 1].isfinite().all()
    assert not all(x[1, :, 1].isfinite().all() for x in found[1:])


def test_scores_of_any_size_do_not_overflow():
    query, key, value = make_heads((130, 130, 2, 2, 64))
    compare([query * 30, key * 30, value], True)


def test_nothing_is_kept_and_nothing_differs_without_gradients():
    query, key, value = (x.requires_grad_() for x in make_heads((70, 70, 2, 1, 64)))
    trained = kernel_attention(query, key, value, causal=True)
    with torch.inference_mode():
        inferred = kernel_attention(query, key, value, causal=True)
    assert trained.grad_fn is not None and torch.equal(trained.detach(), inferred)
    assert trained.is_contiguous() and inferred.is_contiguous()


def test_attend_takes_the_kernel_where_it_can_and_only_there(monkeypatch):
    query, key, value = make_heads((20, 20, 2, 2, 32))
    assert kernel_attends(query, key, value, causal=True)
    assert not kernel_attends(query.float(), key.float(), value.float(), causal=True)
    assert not kernel_attends(query, key, value, causal=True, dropout=1.0)
    assert not kernel_attends(query, key, value, causal=True, scale=-1.0)
    assert not kernel_attends(query[:, -1:], key, value, causal=True)
    assert not kernel_attends(query[..., :8], key[..., :8], value[..., :8], causal=True)
    assert not kernel_attends(query.to("meta"), key.to("meta"), value.to("meta"), causal=True)
    taken = []
    monkeypatch.setattr(attention, "kernel_attention", lambda *heads, **_: taken.append(heads))
    attend(query, key, value, causal=False)
    assert len(taken) == 1


def test_a_compiled_graph_holds_plain_operations():
    query, key, value = make_heads((40, 40, 2, 1, 32))
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(query, key, value, causal=True), attend(query, key, value, causal=True), rtol=2e-2, atol=2e-2
    )
