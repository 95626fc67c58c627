"""Whether processes together came to what one comes to."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from parity import whole


def assert_as_one(here: Sequence[Mapping[str, Any]], expected: Mapping[str, Any], what: str) -> None:
    """Losses, norms, measured figures and weights of all processes `here` against those of one."""
    for result in here:
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-6), what
        assert result["norm"] == pytest.approx(expected["norm"], rel=5e-6), what
    sums = torch.tensor([result["measured"] for result in here], dtype=torch.float64).sum(0)
    assert sums.tolist() == pytest.approx(expected["measured"], rel=1e-5), what
    weights = whole([result["weights"] for result in here])
    for name, (_, tensor) in expected["weights"].items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6, msg=f"{what} {name}")
