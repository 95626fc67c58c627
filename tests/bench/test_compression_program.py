"""The program that sets quality against size: its figures from sums, and its windows."""

import math

import pytest
import torch
from compression import ARMS, rows_of, summary


def test_figures_follow_from_the_sums_of_windows():
    original = {"nll": [20.0, 30.0], "divergence": [0.0, 0.0], "bytes": 400}
    found = {"nll": [22.0, 34.0], "divergence": [1.0, 3.0], "bytes": 100}
    told = summary(found, original, tokens=20, text_bytes=50, parameters=200)
    assert told["perplexity"] == pytest.approx(math.exp(56 / 20))
    assert told["bits_per_byte"] == pytest.approx(56 / math.log(2) / 50)
    assert told["bits_per_weight"] == 4
    assert told["divergence_per_token"] == pytest.approx(4 / 20)
    # A token more costs 0.2 nats in one window and 0.4 in the other, which differ from their mean by 0.1.
    assert told["rise"]["mean"] == pytest.approx(0.3)
    assert told["rise"]["standard_error"] == pytest.approx(math.sqrt(2 * 0.1**2) / math.sqrt(2))
    assert told["perplexity_over_original"] == pytest.approx(told["perplexity"] / math.exp(50 / 20))


def test_windows_are_spread_from_the_first_token_to_the_last():
    rows = rows_of(list(range(103)), count=4, length=10)
    assert rows.shape == (4, 10)
    assert rows[:, 0].tolist() == [0, 31, 62, 93]
    assert torch.equal(rows[-1], torch.arange(93, 103))


def test_arms_that_are_compared_with_each_other_differ_in_their_method_alone():
    names = ("int4, nearest, searched scales", "int4, AWQ", "int4, GPTQ")
    kept = [{k: v for k, v in ARMS[name].model_dump().items() if k != "method"} for name in names]
    assert kept[0] == kept[1] == kept[2]
