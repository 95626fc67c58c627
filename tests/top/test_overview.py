"""What `hasten show` says of learning rates."""

import pytest

from hasten.lookup import read
from hasten.overview import costs


def rates(name: str, *overrides: str) -> dict[str, float]:
    (line,) = [line for line in costs(read(name, list(overrides))) if line.startswith("learning rates")]
    pairs = (pair.split() for pair in line.removeprefix("learning rates").split(","))
    return {kind: float(rate) for kind, rate in pairs}


def test_published_rates_stay_as_they_are_written() -> None:
    assert set(rates("gpt2").values()) == {6e-4}


def test_rates_of_a_recipe_follow_its_size() -> None:
    muon = "train.optimizer.kind=muon"
    same = rates("demo", muon, "train.optimizer.base.batch_tokens=4096", "train.batch_tokens=4096")
    assert same == rates("demo", muon, "train.optimizer.base=null")
    size = ["model.dim=512", "model.num_layers=8"]
    larger = rates("demo", muon, "train.optimizer.base.batch_tokens=4096", "train.batch_tokens=4096", *size)
    assert larger["head"] == pytest.approx(same["head"] / 2)
    assert larger["output"] == pytest.approx(same["output"] / 2)
    assert larger["matrix"] == same["matrix"]
