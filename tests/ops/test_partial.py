"""Attention in parts, joined, against attention over all keys at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.ops import flex, partial
from hasten.ops.attention import reference_attention
from hasten.ops.kernels.library import library
from hasten.ops.partial import Part, Result, attend_part, join, part_gradients, written_part
from hasten.ops.sight import Sight

TOKENS, CUT = 40, 24
SCALE = 0.3
DOCUMENTS = torch.tensor([[1] * 11 + [2] * 20 + [0] * 9, [1] * 30 + [2] * 10])
CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "documents": {"segments": DOCUMENTS},
    "soft cap": {"soft_cap": 2.0, "segments": DOCUMENTS},
    "bias": {"bias": True},
}


def make_heads(dtype: torch.dtype, width: int = 16) -> list[Tensor]:
    """Query [2, T, 4, K], key and value [2, T, 2, K], and the gradient of an output."""
    torch.manual_seed(0)
    return [torch.randn(2, TOKENS, heads, width).to(dtype) for heads in (4, 2, 2, 4)]


def in_parts(heads: list[Tensor], case: dict[str, Any]) -> list[Tensor]:
    """Output and gradients of query, key and value (and bias) where all look at two parts of the keys."""
    query, key, value, grad = heads
    segments = case.get("segments")
    bias = made_bias(query.dtype) if "bias" in case else None
    out, lse = torch.zeros(query.shape), torch.full((2, 4, TOKENS), -torch.inf)
    out, lse = (x.double() if query.dtype == torch.float64 else x for x in (out, lse))
    parts = [
        (
            some,
            Part(
                Sight(False, segments, None if segments is None else segments[:, some]),
                SCALE,
                case.get("soft_cap"),
            ),
        )
        for some in (slice(0, CUT), slice(CUT, TOKENS))
    ]
    for some, part in parts:
        join(out, lse, *attend_part(query, key[:, some], value[:, some], part, cut(bias, some)))
    result = Result(out.to(query.dtype), lse, grad)
    found = [
        part_gradients((query, key[:, some], value[:, some]), part, result, cut(bias, some))
        for some, part in parts
    ]
    (first, one), (second, two) = found
    sums = [(first[0].float() if query.dtype != torch.float64 else first[0]) + second[0]]
    sums += [torch.cat(pair, dim=1) for pair in zip(first[1:], second[1:], strict=True)]
    biases = [] if one is None or two is None else [torch.cat((one, two), dim=2)]
    return [out, *sums, *biases]


def made_bias(dtype: torch.dtype) -> Tensor:
    bias = torch.randn(4, TOKENS, TOKENS, generator=torch.Generator().manual_seed(1))
    return bias.double() if dtype == torch.float64 else bias


def cut(bias: Tensor | None, some: slice) -> Tensor | None:
    return None if bias is None else bias[..., some]


def at_once(heads: list[Tensor], case: dict[str, Any]) -> list[Tensor]:
    """The same by the formula in float64."""
    *leaves, grad = (x.double() for x in heads)
    given: dict[str, Any] = {**case, **({"bias": made_bias(torch.float64)} if "bias" in case else {})}
    leaves += [given["bias"]] if "bias" in case else []
    leaves = [x.requires_grad_() for x in leaves]
    out = reference_attention(*leaves[:3], causal=False, scale=SCALE, **given)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_two_parts_joined_are_the_whole(name: str, dtype: torch.dtype) -> None:
    heads = make_heads(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for found, expected in zip(in_parts(heads, CASES[name]), at_once(heads, CASES[name]), strict=True):
        assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.skipif(library() is None, reason="no kernels here")
def test_bfloat16_is_left_to_the_kernel_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "written_part", None)
    monkeypatch.setattr(partial, "written_gradients", None)
    in_parts(make_heads(torch.bfloat16), CASES["documents"])
    with pytest.raises(TypeError):  # heads that the kernel does not take
        in_parts(make_heads(torch.bfloat16, width=8), CASES["documents"])


PLACED = [(True, None), (True, 7), (False, 7), (False, 1)]


@pytest.mark.parametrize(("causal", "window"), PLACED)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_part_sees_by_places_and_numbers(causal, window, packed, dtype) -> None:
    """Numbers of queries and keys that differ: some queries see nothing at all, and say so."""
    query, key, value, grad = make_heads(dtype)
    mine, theirs = (DOCUMENTS, DOCUMENTS.roll(15, 1)) if packed else (None, None)
    part = Part(Sight(causal, mine, theirs, window), SCALE)
    out, lse = attend_part(query, key, value, part)
    exact, exact_lse, gradients = by_the_formula([query, key, value, grad], part)
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(lse.double(), exact_lse, rtol=tolerance, atol=tolerance)
    assert (out.double() - exact).norm() <= tolerance * exact.norm()
    blind = (exact_lse == -torch.inf).transpose(1, 2)
    assert not packed or blind.any()
    assert not out[blind].any()
    found, _ = part_gradients((query, key, value), part, Result(out.to(dtype), lse, grad))
    for mine_, theirs_ in zip(found, gradients, strict=True):
        assert (mine_.double() - theirs_).norm() <= 2 * tolerance * theirs_.norm()


def by_the_formula(heads: list[Tensor], part: Part) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, log-sum-exp and gradients in float64, every score written out."""
    *leaves, grad = (x.double() for x in heads)
    query, key, value = leaves = [x.requires_grad_() for x in leaves]
    key, value = (x.repeat_interleave(2, dim=2) for x in (key, value))
    scores = torch.einsum("bthk,bshk->bhts", query, key) * part.scale
    at = torch.arange(TOKENS)
    seen = torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool)
    if part.sight.causal:
        seen = seen & (at <= at[:, None])
    if part.sight.window is not None:
        seen = seen & (at > at[:, None] - part.sight.window)
    if part.sight.segments is not None and part.sight.key_segments is not None:
        seen = seen & (part.sight.segments[:, None, :, None] == part.sight.key_segments[:, None, None, :])
    scores = scores.masked_fill(~seen, -torch.inf)
    blind = ~seen.any(dim=-1, keepdim=True)
    weights = scores.masked_fill(blind, 0).softmax(dim=-1).masked_fill(blind, 0)
    out = torch.einsum("bhts,bshk->bthk", weights, value)
    return out, scores.logsumexp(dim=-1), list(torch.autograd.grad(out, leaves, grad))


def test_few_scores_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = make_heads(torch.float64)
    whole = in_parts(heads, CASES["soft cap"])
    monkeypatch.setattr(partial, "MOST_SCORES", 2 * 4 * 24 * 7)
    for found, expected in zip(in_parts(heads, CASES["soft cap"]), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_flex_attention_is_told_what_a_part_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output and log-sum-exp, in places that are no multiple of a tile."""
    monkeypatch.setattr(partial, "flex_kernel", lambda: flex.flex_attention)
    query, key, value, _ = make_heads(torch.float64)
    for causal, window in [*PLACED, (False, None)]:
        for numbers in ((None, None), (DOCUMENTS, DOCUMENTS.roll(15, 1))):
            part = Part(Sight(causal, *numbers, window), SCALE, soft_cap=3.0)
            with torch.no_grad():
                found = partial.flex_part(query, key, value, part)
            for mine, theirs in zip(found, written_part(query, key, value, part, None), strict=True):
                torch.testing.assert_close(mine, theirs)


def test_gradients_by_a_second_forward_pass_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The algebra of `flex_gradients` with a stand-in: FlexAttention has no backward pass on CPUs."""

    def stand_in(query: Tensor, key: Tensor, value: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        assert query.requires_grad
        keys = key.repeat_interleave(2, dim=2)
        scores = torch.einsum("bthk,bshk->bhts", query, keys) * part.scale
        mine, theirs = part.sight.segments, part.sight.key_segments
        assert mine is not None and theirs is not None
        scores = scores.masked_fill(mine[:, None, :, None] != theirs[:, None, None], -1e9)
        weights = scores.softmax(dim=-1)
        return torch.einsum("bhts,bshk->bthk", weights, value.repeat_interleave(2, dim=2)), scores.logsumexp(
            -1
        )

    monkeypatch.setattr(partial, "flex_part", stand_in)
    written: Callable[..., Any] = partial.written_gradients
    query, key, value, grad = make_heads(torch.float64)
    segments = DOCUMENTS.clamp(min=1)
    out, lse = written_part(query, key, value, Part(Sight(False, segments, segments), SCALE), None)
    some = slice(0, CUT)
    part = Part(Sight(False, segments, segments[:, some]), SCALE)
    heads, result = (query, key[:, some], value[:, some]), Result(out, lse, grad)
    expected, _ = written(heads, part, result, None)
    for found, exact in zip(partial.flex_gradients(heads, part, result), expected, strict=True):
        torch.testing.assert_close(found, exact)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's backward needs a GPU")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_parts_on_a_gpu_are_those_of_the_formula(causal: bool, packed: bool) -> None:
    heads = [x.cuda() for x in make_heads(torch.bfloat16, width=64)]
    numbers = (DOCUMENTS.cuda(), DOCUMENTS.roll(15, 1).cuda()) if packed else (None, None)
    part = Part(Sight(causal, *numbers, 9), SCALE, soft_cap=4.0)
    query, key, value, grad = heads
    assert partial.flex_takes(query, None)
    out, lse = attend_part(query, key, value, part)
    exact, exact_lse = written_part(*(x.double() for x in heads[:3]), part, None)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-2, atol=1e-2)
    assert (out.double() - exact).norm() <= 1e-2 * exact.norm()
    found, _ = part_gradients((query, key, value), part, Result(out, lse, grad))
    wide = (query.double(), key.double(), value.double())
    gradients, _ = partial.written_gradients(wide, part, Result(exact, exact_lse, grad.double()), None)
    for mine, theirs in zip(found, gradients, strict=True):
        assert (mine.double() - theirs).norm() <= 2e-2 * theirs.norm()
