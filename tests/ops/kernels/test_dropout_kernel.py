"""Dropout: how much is dropped, that the gradient goes the same way, and where the numbers come from."""

import pytest
import torch
from against import DTYPES, assert_threads_do_not_matter, needs_kernels, results

from hasten.ops.dropout import dropout

pytestmark = needs_kernels
SHARE = 0.2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (33,), (7, 5, 13), (300, 384)])
def test_a_number_is_dropped_or_grown_and_so_is_its_gradient(shape, dtype):
    x, gradient = (torch.randn(shape).to(dtype) + 10 for _ in range(2))
    out, slope = results(lambda x: dropout(x, SHARE), [x], gradient)
    kept = out != 0
    for found, given in ((out, x), (slope, gradient)):
        expected = (given.double() * kept / (1 - SHARE)).to(dtype)
        torch.testing.assert_close(found, expected)


def test_what_is_dropped_looks_like_chance():
    """The share, and correlations at distances within and between blocks, within five standard deviations."""
    kept = (dropout(torch.ones(2**20), SHARE) != 0).double()
    assert abs(kept.mean() - (1 - SHARE)) < 5 * (SHARE * (1 - SHARE) / kept.numel()) ** 0.5
    waves = (kept - kept.mean()) / kept.std()
    for step in (1, 2, 3, 16, 384, 4096, 8192):
        assert (waves[step:] * waves[:-step]).mean().abs() < 5 / (len(waves) - step) ** 0.5, step
    counts = kept.view(-1, 4096).sum(dim=1)
    assert 0.7 < counts.var() / (4096 * SHARE * (1 - SHARE)) < 1.4


def test_numbers_come_from_torch_and_threads_do_not_matter():
    x = torch.ones(100_000)

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return dropout(x, SHARE)

    assert_threads_do_not_matter(seeded, [x], torch.ones(100_000))
    first, second = seeded(x), dropout(x, SHARE)
    assert torch.equal(seeded(x), first) and not torch.equal(first, second)


def test_strides_do_not_matter_and_a_share_of_nothing_changes_nothing():
    x = torch.randn(40, 70)
    torch.manual_seed(7)
    strided = dropout(x.mT.contiguous().mT, SHARE)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, SHARE), strided)
    assert dropout(x, 0.0) is x


def test_what_is_not_a_number_stays_so_unless_dropped():
    x = torch.full((1000,), float("nan"))
    out = dropout(x, SHARE)
    assert out.isnan().any() and (out.isnan() | (out == 0)).all()


def test_a_compiled_graph_holds_plain_operations():
    compiled = torch.compile(dropout, backend="eager", fullgraph=True)
    out = compiled(torch.ones(10_000), SHARE)
    assert abs((out != 0).double().mean() - (1 - SHARE)) < 0.03
