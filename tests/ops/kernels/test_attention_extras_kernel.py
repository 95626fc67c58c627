"""What encoders, encoder-decoders, T5 and Gemma ask of the attention kernel, against the formula in float64.

Letters as in `ops/attention.py`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from against import Op, assert_as_good, assert_threads_do_not_matter, needs_kernels, results
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.ops import attention
from hasten.ops.attention import attend, fused_attention
from hasten.ops.kernels.attention import kernel_attends, kernel_attention

pytestmark = needs_kernels
DROPOUT = 0.3


def visible(queries: int, keys: int, options: dict[str, Any]) -> Tensor:
    """Which keys each query may see, bool [B or 1, T, S], pair by pair from the definition."""
    t, s = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None, :]
    seen = torch.ones(1, queries, keys, dtype=torch.bool)
    if options.get("causal"):
        seen = seen & (s <= t)
    if options.get("window"):
        seen = seen & (s > t - options["window"])
    mine, theirs = options.get("segments"), options.get("key_segments")
    if mine is not None:
        seen = seen & (mine[:, -queries:, None] == (mine if theirs is None else theirs)[:, None, :])
    return seen


def written_out(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, kept: Any = 1, **options: Any
) -> Tensor:
    """Attention with the whole square of scores; `kept` [B, H, T, S] says which weights stay."""
    heads, (groups, width) = query.shape[2], key.shape[2:]
    key, value = (x.repeat_interleave(heads // groups, dim=2) for x in (key, value))
    scores = torch.einsum("bthk,bshk->bhts", query, key) * options.get("scale", width**-0.5)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if cap := options.get("soft_cap"):
        scores = cap * (scores / cap).tanh()
    if bias is not None:
        scores = scores + bias
    hidden = ~visible(query.shape[1], key.shape[1], options)[:, None]
    weights = scores.masked_fill(hidden, -1e30).softmax(dim=-1).masked_fill(hidden, 0)
    weights = weights * kept / (1 - options.get("dropout", 0))
    return torch.einsum("bhts,bshk->bthk", weights.to(value.dtype), value)


def make_heads(sizes: tuple[int, int, int, int, int], rows: int = 2) -> list[Tensor]:
    """Query, key and value; sizes are T, S, H, G, K."""
    queries, keys, heads, groups, width = sizes
    torch.manual_seed(0)
    shapes = [(rows, queries, heads, width), (rows, keys, groups, width), (rows, keys, groups, width)]
    return [torch.randn(shape).bfloat16() for shape in shapes]


def pairs(rows: int, queries: int, keys: int, seed: int = 0) -> dict[str, Tensor]:
    """Segments of both sides: rising, with padding (0) at the queries' end and none at the keys'."""
    draw = torch.Generator().manual_seed(seed)
    mine = torch.randint(1, 7, (rows, queries), generator=draw).sort(dim=1).values
    theirs = torch.randint(1, 7, (rows, keys), generator=draw).sort(dim=1).values
    mine[:, queries - queries // 5 :] = 0
    return {"segments": mine, "key_segments": theirs}


def both(options: dict[str, Any]) -> tuple[Op, Op]:
    """The kernel and the formula as functions of query, key, value and perhaps a bias."""
    options = {"causal": False, **options}

    def kernel(*tensors: Tensor) -> Tensor:
        return kernel_attention(*tensors[:3], bias=[*tensors, None][3], **options)

    def plain(*tensors: Tensor) -> Tensor:
        return written_out(*tensors, **options)

    return kernel, plain


def compare(inputs: list[Tensor], **options: Any) -> None:
    """The kernel is as near to float64 as the formula in bfloat16: output and all gradients."""
    assert_as_good(*both(options), inputs, torch.randn(inputs[0].shape).bfloat16())


def compare_few(inputs: list[Tensor], **options: Any) -> None:
    """The same for a handful of numbers, whose errors are chance: within eight roundings of their size.

    Where one key takes nearly all the weight, gradients are small differences of numbers near one.
    """
    (kernel, plain), gradient = both(options), torch.randn(inputs[0].shape).bfloat16()
    exact = results(plain, [x.double() for x in inputs], gradient)
    for found, truth in zip(results(kernel, inputs, gradient), exact, strict=True):
        error, size = ((x.double().square().mean().sqrt()) for x in (found - truth, truth))
        assert error <= 8 * 2**-8 * size + 1e-2, (error, size)


@pytest.mark.parametrize(
    "sizes", [(40, 100, 2, 2, 64), (100, 40, 2, 2, 64), (2, 65, 4, 2, 32), (130, 3, 2, 1, 16)]
)
@pytest.mark.parametrize("segmented", [True, False])
def test_queries_and_keys_of_two_sequences(sizes, segmented):
    compare(make_heads(sizes), **(pairs(2, *sizes[:2]) if segmented else {}))


def test_attend_hands_the_kernel_all_that_it_is_asked(monkeypatch):
    """And what the kernel cannot take is answered all the same."""
    query, key, value = make_heads((20, 30, 2, 2, 32))
    numbers = {"segments": torch.ones(2, 20), "key_segments": torch.ones(2, 30)}
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(attention, "kernel_attention", lambda *_, **options: taken.append(options))
    attend(query, key, value, causal=False, dropout=0.1, **numbers)
    assert taken[0]["dropout"] == 0.1 and taken[0]["key_segments"] is numbers["key_segments"]
    attend(
        query,
        key,
        value,
        causal=True,
        window=4,
        soft_cap=3.0,
        scale=0.7,
        bias=lambda t, s: torch.ones(2, t, s),
    )
    assert taken[1]["window"] == 4 and taken[1]["soft_cap"] == 3.0 and taken[1]["scale"] == 0.7
    assert taken[1]["bias"].shape == (2, 20, 30)
    assert not kernel_attends(key, query, query, causal=False, window=3)
    assert not kernel_attends(key, query, query, causal=False, segments=numbers["segments"])
    assert kernel_attends(key, query, query, causal=False)


@pytest.mark.parametrize("options", [{"window": 9}, {"soft_cap": 4.0}, {"bias": True}, {"pairs": True}])
def test_the_kernel_and_the_other_paths_agree(options):
    """Also on those who see nothing: zeros, and not what a softmax over nothing gives."""
    heads = make_heads((40, 40, 4, 2, 32))
    options = {"causal": "pairs" not in options, **options}
    if options.pop("pairs", False):
        options |= pairs(2, 40, 40)
    if options.get("bias"):
        options["bias"] = torch.randn(4, 40, 40)
    gradient = torch.randn(heads[0].shape).bfloat16()
    for found, other in zip(
        results(lambda *x: kernel_attention(*x, **options), heads, gradient),
        results(lambda *x: fused_attention(*x, **options), heads, gradient),
        strict=True,
    ):
        assert found.isfinite().all() and other.isfinite().all()
        torch.testing.assert_close(found, other, rtol=5e-2, atol=5e-2)


def test_sentence_pairs_attend_as_if_they_were_alone():
    mine, theirs = [20, 31, 7, 40], [33, 9, 17, 50]
    query, _, _ = make_heads((sum(mine), 1, 2, 2, 32), rows=1)
    _, key, value = make_heads((1, sum(theirs), 2, 2, 32), rows=1)
    labels = torch.tensor([3, 1, 7, 2])
    together = kernel_attention(
        query,
        key,
        value,
        causal=False,
        segments=labels.repeat_interleave(torch.tensor(mine))[None],
        key_segments=labels.repeat_interleave(torch.tensor(theirs))[None],
    )
    parts = zip(query.split(mine, 1), key.split(theirs, 1), value.split(theirs, 1), strict=True)
    alone = torch.cat([kernel_attention(*part, causal=False) for part in parts], dim=1)
    torch.testing.assert_close(together, alone, rtol=2e-2, atol=2e-2)


def test_who_sees_no_key_gets_zero_and_gives_no_gradient():
    """Padding of the queries, and of the keys: also where tiles hold both kinds."""
    query, key, value = make_heads((100, 70, 4, 2, 32))
    segments, key_segments = torch.ones(2, 100, dtype=torch.long), torch.ones(2, 70, dtype=torch.long)
    segments[0, 61:], key_segments[:, 50:] = 0, 9
    segments[1] = 0
    gradient = torch.randn(query.shape).bfloat16()
    out, d_query, d_key, d_value = results(
        lambda *x: kernel_attention(*x, causal=False, segments=segments, key_segments=key_segments),
        [query, key, value],
        gradient,
    )
    for mine in (out, d_query):
        assert mine[0, :61].abs().sum(dim=-1).min() > 0
        assert not mine[0, 61:].any() and not mine[1].any()
    for theirs in (d_key, d_value):
        assert theirs[0, :50].abs().sum(dim=-1).min() > 0
        assert not theirs[:, 50:].any() and not theirs[1].any()


@pytest.mark.parametrize("window", [2, 31, 64, 100, 1000])
@pytest.mark.parametrize("queries, keys", [(200, 200), (70, 200)])
def test_a_window_hides_what_is_long_past(queries, keys, window):
    heads = make_heads((queries, keys, 4, 2, 32))
    compare(heads, causal=True, window=window)
    segments = torch.randint(1, 4, (2, keys)).sort(dim=1).values
    compare(heads, causal=True, window=window, segments=segments)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sizes", [(70, 70, 4, 2, 32), (129, 129, 2, 2, 64), (33, 90, 2, 1, 16)])
def test_a_bias_and_its_gradient(sizes, causal):
    """T5's: its gradient is summed over the batch."""
    bias = torch.randn(sizes[2], *sizes[:2]) * 2
    segments = torch.randint(1, 4, (3, sizes[1])).sort(dim=1).values
    compare([*make_heads(sizes, rows=3), bias], causal=causal, segments=segments)
    compare([*make_heads(sizes, rows=3), bias], causal=causal, scale=1.0)


def test_a_window_of_one_sees_itself():
    heads = make_heads((40, 40, 2, 2, 32))
    assert torch.equal(kernel_attention(*heads, causal=True, window=1), heads[2])
    compare_few(heads, causal=True, window=1)


def test_a_bias_may_be_a_view_of_any_precision_that_needs_no_gradient():
    heads = make_heads((40, 40, 2, 2, 32))
    bias = torch.randn(40, 40, 2)
    view = bias.permute(2, 0, 1)
    plain = kernel_attention(*heads, causal=True, bias=view.contiguous())
    assert torch.equal(kernel_attention(*heads, causal=True, bias=view), plain)
    whole = view.bfloat16()
    assert torch.equal(
        kernel_attention(*heads, causal=True, bias=whole),
        kernel_attention(*heads, causal=True, bias=whole.float()),
    )


@pytest.mark.parametrize("cap", [0.5, 5.0, 50.0])
def test_a_soft_cap_and_its_gradient(cap):
    query, key, value = make_heads((90, 90, 4, 2, 32))
    compare([query * 4, key, value], causal=True, soft_cap=cap, window=40)


def kept_weights(sizes: tuple[int, int, int, int, int], rows: int, **options: Any) -> Tensor:
    """Which weights [B, H, T, S] the kernel keeps after `manual_seed(5)`: values are unit vectors, S is K."""
    query, key, _ = make_heads(sizes, rows)
    value = torch.eye(sizes[4]).bfloat16()[None, :, None, :].expand(key.shape)
    torch.manual_seed(5)
    return kernel_attention(query, key, value, **options).permute(0, 2, 1, 3) != 0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sizes", [(64, 64, 4, 2, 64), (40, 96, 2, 2, 96), (17, 32, 2, 1, 32)])
def test_the_same_weights_are_dropped_forward_and_backward(sizes, causal):
    options = {"causal": causal, "dropout": DROPOUT}
    kept = kept_weights(sizes, 2, **options)

    def kernel(*heads: Tensor) -> Tensor:
        torch.manual_seed(5)
        return kernel_attention(*heads, **options)

    def plain(*heads: Tensor) -> Tensor:
        return written_out(*heads, kept=kept, **options)

    assert_as_good(kernel, plain, make_heads(sizes), torch.randn(make_heads(sizes)[0].shape).bfloat16())


def test_what_is_dropped_looks_like_chance():
    """Shares of all, and correlations between neighbours of every kind, within five standard deviations."""
    sizes, rows = (128, 128, 8, 8, 128), 8
    kept = kept_weights(sizes, rows, causal=False, dropout=DROPOUT).double()
    assert abs(kept.mean() - (1 - DROPOUT)) < 5 * (DROPOUT * (1 - DROPOUT) / kept.numel()) ** 0.5
    waves = (kept - kept.mean()) / kept.std()
    for dim in range(4):
        for step in (1, 2, 4):
            moved = waves.narrow(dim, step, waves.shape[dim] - step)
            product = waves.narrow(dim, 0, waves.shape[dim] - step) * moved
            assert product.mean().abs() < 5 / product.numel() ** 0.5, (dim, step)
    for dim in range(4):  # and no row, head, query or key is favoured
        means = waves.mean(dim=[d for d in range(4) if d != dim])
        assert means.abs().max() < 5 / (waves.numel() / len(means)) ** 0.5, dim


def test_dropping_follows_the_seed_of_torch_and_keeps_the_mean():
    query, key, value = make_heads((64, 64, 8, 8, 32), rows=8)
    kernel: Callable[..., Tensor] = lambda v: kernel_attention(query, key, v, causal=True, dropout=DROPOUT)  # noqa: E731
    torch.manual_seed(3)
    first, second = kernel(value), kernel(value)
    torch.manual_seed(3)
    assert torch.equal(first, kernel(value)) and not torch.equal(first, second)
    assert abs(kernel(torch.ones_like(value)).float().mean().item() - 1) < 0.02


@pytest.mark.parametrize("options", [{"dropout": DROPOUT}, {"soft_cap": 5.0, "window": 20}, {"bias": True}])
def test_threads_change_no_bit(options):
    heads = make_heads((100, 100, 4, 2, 32), rows=3)
    given = [*heads, torch.randn(4, 100, 100)] if options.get("bias") else heads
    options = {name: x for name, x in options.items() if name != "bias"}

    def kernel(*tensors: Tensor) -> Tensor:
        torch.manual_seed(5)
        return kernel_attention(*tensors[:3], bias=[*tensors, None][3], causal=True, **options)

    assert_threads_do_not_matter(kernel, given, torch.ones(heads[0].shape))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_everything_together_in_random_shapes(data):
    draw = data.draw
    groups, shared, width = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from([16, 48, 64])),
    )
    rows, keys = draw(st.integers(1, 3)), draw(st.integers(1, 150))
    cross = draw(st.booleans())
    queries = draw(st.integers(2, 150)) if cross else max(2, draw(st.integers(1, keys)))
    keys = keys if cross else max(keys, queries)
    options: dict[str, Any] = {"causal": not cross and draw(st.booleans())}
    if cross:
        options |= pairs(rows, queries, keys, draw(st.integers(0, 99))) if draw(st.booleans()) else {}
    elif draw(st.booleans()):
        few = draw(st.integers(1, 6))
        numbers = torch.randint(few, (rows, keys), generator=torch.Generator().manual_seed(keys))
        options["segments"] = numbers if draw(st.booleans()) else numbers.sort(dim=1).values
    if options["causal"] and draw(st.booleans()):
        options["window"] = draw(st.integers(1, 200))
    if draw(st.booleans()):
        options["soft_cap"] = draw(st.sampled_from([2.0, 20.0]))
    heads = make_heads((queries, keys, groups * shared, groups, width), rows)
    asked = {name: x for name, x in options.items() if name != "soft_cap"}
    assert kernel_attends(*heads, **asked)
    compare_few([*heads, *[torch.randn(groups * shared, queries, keys)] * draw(st.integers(0, 1))], **options)
