"""Float16 copies of weights for decoding: rounded to nearest, aligned, refused where they don't fit."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hasten.generate import half
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate, ready
from hasten.generate.half import half_weights, worth_packing
from hasten.ops.kernels.library import library

needs_kernels = pytest.mark.skipif(library() is None, reason="the kernels cannot be compiled or run here")


@needs_kernels
def test_copies_are_rounded_to_nearest_and_begin_on_cache_lines():
    torch.manual_seed(0)
    matrices = [torch.randn(3, 5) * 100, torch.randn(401, 333), torch.full((1, 1), 65504.0)]
    matrices[0][0] = torch.tensor([1e-9, -1e-6, 0.0, 1 + 2**-11, 6e-5])
    copies = half_weights(matrices)
    assert copies is not None
    for matrix, half_copy in zip(matrices, copies, strict=True):
        assert torch.equal(half_copy, matrix.half())
        assert half_copy.data_ptr() % 64 == 0


@needs_kernels
@pytest.mark.parametrize("value", [65520.0, -1e9, float("inf"), float("nan")])
@pytest.mark.parametrize("at", [0, 77, 70_000, -1])
def test_what_float16_cannot_hold_is_refused(value, at):
    matrix = torch.zeros(300, 301)
    matrix.view(-1)[at] = value
    assert half_weights([torch.zeros(2, 2), matrix]) is None


def test_only_long_texts_from_large_models_are_worth_it(small_model, monkeypatch):
    model = small_model()
    assert not worth_packing(model, new_tokens=1000)  # too small
    monkeypatch.setattr(half, "WORTHWHILE_PARAMETERS", 1000)
    assert worth_packing(model, new_tokens=half.WORTHWHILE_TOKENS)
    assert not worth_packing(model, new_tokens=half.WORTHWHILE_TOKENS - 1)


@needs_kernels
def test_auto_decodes_in_half_precision_where_that_is_worth_it(small_model, bytes_only, monkeypatch):
    monkeypatch.setattr(half, "WORTHWHILE_PARAMETERS", 1000)
    model, config = small_model(max_positions=256), GenerateConfig(max_new_tokens=80, seed=1)
    with ready(model, config) as prepared:
        assert prepared.native.cache_dtype == torch.float16
    with ready(model, config.model_copy(update={"precision": "model"})) as prepared:
        assert prepared.native.cache_dtype == torch.float32
    prompts = ["a", "longer", "床前明月光"]
    together = generate(model, bytes_only, prompts, config)
    assert together == [generate(model, bytes_only, [prompt], config)[0] for prompt in prompts]


@needs_kernels
def test_weights_beyond_float16_are_read_as_they_are(small_model, monkeypatch):
    monkeypatch.setattr(half, "WORTHWHILE_PARAMETERS", 1000)
    model = small_model()
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    with ready(model, GenerateConfig(max_new_tokens=80)) as prepared:
        assert prepared.native.cache_dtype == torch.float32


@needs_kernels
def test_every_call_reads_the_weights_of_that_moment(small_model, bytes_only, monkeypatch):
    monkeypatch.setattr(half, "WORTHWHILE_PARAMETERS", 1000)
    model, config = small_model(max_positions=256), GenerateConfig(max_new_tokens=40, temperature=0)
    generate(model, bytes_only, ["a"], config)
    other = small_model(seed=1, max_positions=256)
    model.load_state_dict(other.state_dict())
    assert generate(model, bytes_only, ["a"], config) == generate(other, bytes_only, ["a"], config)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell about its pages")
def test_the_copies_lie_in_private_memory_that_asks_for_huge_pages():
    memory = half.huge_pages(2**23)
    described = Path("/proc/self/smaps").read_text(encoding="utf-8").split("\nVmFlags:")
    for before, after in pairwise(described):
        # Each mapping begins with its line of addresses and ends with its flags.
        head = next(line for line in before.splitlines() if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line))
        begin, end = (int(word, 16) for word in head.split()[0].split("-"))
        if begin <= memory.data_ptr() < end:
            assert head.split()[1] == "rw-p"
            assert "hg" in after.splitlines()[0].split()
            return
    raise AssertionError("the memory is in no mapping")
