"""Targets: bytes by arithmetic beside those on the disk, budgets met, what is beyond reach refused."""

import re
from itertools import product

import pytest
import torch
from tiny_compressed import QUICK, record, trained

from hasten.cli import main
from hasten.compress.quantize import Quantize
from hasten.compression.arithmetic import (
    CHOICES,
    Layer,
    coarsest,
    error_of,
    file_bytes,
    groups_of,
    layers_of,
    spent,
    within,
)
from hasten.compression.search import fewest
from hasten.compression.target import parse_target
from hasten.exchange.compressed import save_compressed
from hasten.exchange.parcel import Parcel
from hasten.model.compressed import CompressionNote
from hasten.model.config import ModelConfig
from hasten.model.quantized import Quantization
from hasten.model.transformer import build
from hasten.ops.quantize import dequantize, quantize

SHAPE = ModelConfig(vocab_size=300, dim=64, num_layers=2, num_heads=2, max_positions=64)
MIXED = Quantization(
    bits=4, group_size=32, embedding_bits=4, eight_bits=("*.down", "embedding"), skip=("layers.1.*",)
)


@pytest.mark.parametrize(
    "quantization",
    [None, Quantization(group_size=64), Quantization(bits=8, group_size=None, embedding_bits=None), MIXED],
    ids=["plain", "four", "eight", "mixed"],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_files_bytes_are_told_beforehand(tmp_path, quantization, kind, tied):
    config = SHAPE.model_copy(update={"tied": tied})
    model = build(config, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(kind).float())
    types = {name: kind for name, _ in model.named_parameters()}
    if quantization is not None:
        Quantize(method="rtn", **quantization.model_dump()).apply(model)
    note = CompressionNote(quantization=quantization, parent="")
    save_compressed(tmp_path / "model", Parcel(model, types, None, None, None, "model"), note)
    actual = (tmp_path / "model/weights/model.safetensors").stat().st_size
    assert file_bytes(config, quantization, kind) == actual


def test_a_budget_is_spent_as_by_trying_everything():
    """Of all choices that use the budget to FILLED, none has a smaller sum of errors."""
    draw = torch.Generator().manual_seed(0)
    layers = [
        Layer(f"layer{n}", (16 * (n + 1), 64), 4, {4: e, 8: e / 100, None: 0.0})
        for n, e in enumerate(torch.rand(6, generator=draw).tolist())
    ]
    least = sum(layer.bytes(4, 32) for layer in layers)
    for budget in (least + 3000, least + 9000, least + 20_000, least + 45_000):
        tried = [
            (sum(layer.errors[c] for layer, c in zip(layers, choices, strict=True)), used)
            for choices in product(CHOICES, repeat=len(layers))
            if (used := sum(layer.bytes(c, 32) for layer, c in zip(layers, choices, strict=True))) <= budget
        ]
        full = [error for error, used in tried if used >= 0.985 * budget]
        chosen = spent(layers, 32, least, budget)
        used = sum(layer.bytes(chosen[layer.name], 32) for layer in layers)
        assert used <= budget
        if full:
            found = sum(layer.errors[chosen[layer.name]] for layer in layers)
            assert used >= 0.98 * budget and found == pytest.approx(min(full), rel=0.02)


def test_errors_are_of_what_a_layer_gives():
    """Against ||(Q(W) - W) X||² / ||W X||² written out, X of independent channels."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 32, generator=draw, dtype=torch.float64)
    squares = torch.rand(32, generator=draw, dtype=torch.float64) + 0.1
    change = dequantize(*quantize(weight.float(), 4, 32)).double() - weight
    wanted = (change**2 * squares).sum() / (weight**2 * squares).sum()
    assert error_of(weight.float(), 4, 32, squares.float()) == pytest.approx(float(wanted), rel=1e-4)
    layers = layers_of(build(SHAPE, 0), [], 32, 4)
    assert all(layer.errors[4] > layer.errors[8] > layer.errors[None] == 0 for layer in layers)
    assert {"embedding", "layers.0.attention.query", "layers.1.ffn.down"} <= {layer.name for layer in layers}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 0.9])
def test_any_budget_between_four_bits_and_the_original_is_met(share):
    config = SHAPE.model_copy(update={"dim": 64, "num_layers": 4, "ffn_dim": 128})
    model = build(config, 0)
    (group, *_), least = groups_of(model), file_bytes(config, coarsest(64, "rtn").quantization, torch.float32)
    assert group == 64
    budget = round(least + share * (0.95 * file_bytes(config, None, torch.float32) - least))
    step, size, _ = within(config, layers_of(model, [], group, 4), group, budget, "rtn")
    assert size == file_bytes(config, step.quantization, torch.float32)
    assert 0.98 * budget <= size <= budget


def test_the_least_number_is_found_by_halving():
    for answer in range(1, 10):
        asked = []
        assert (
            fewest(1, 9, lambda n, answer=answer, asked=asked: not asked.append(n) and n >= answer) == answer
        )
        assert len(asked) <= 4


def test_targets_are_read_as_they_are_written():
    assert parse_target("size=20MB").bytes_of(10**9) == 20_000_000
    assert parse_target("size = 25%").bytes_of(4000) == 1000
    assert parse_target("speed=1.5x").amount == 1.5 and parse_target("quality=99%").amount == 0.99
    assert parse_target(parse_target("speed=2x")).words == "speed=2x"


@pytest.fixture(scope="module")
def run(tmp_path_factory, text_files):
    return trained(tmp_path_factory.mktemp("target"), text_files)


@pytest.mark.parametrize(
    "target", ["size=18%", "size=45kB", "size=30kB"], ids=["share", "bytes", "fewer-layers"]
)
def test_a_size_is_met_within_two_percent(run, target, capsys):
    assert main(["compress", str(run), "--target", target, *QUICK]) == 0
    found = record(run)
    wanted = parse_target(target).bytes_of(found["models"][0]["bytes"])
    assert 0.98 * wanted <= found["models"][-1]["bytes"] <= wanted
    assert found["target"]["asked"] == target and found["target"]["budget_bytes"] == wanted
    said = capsys.readouterr().out
    assert f"{target}: " in said and "of the quality" in said, "what the budget has cost"


def test_a_size_beyond_reach_is_refused_with_the_nearest(run, capsys):
    assert main(["compress", str(run), "--target=size=1%", *QUICK]) == 2
    said = capsys.readouterr().err
    nearest = re.search(
        r"compress.target size=1% cannot be reached with this model; the nearest is (\S+)", said
    )
    assert nearest
    assert main(["compress", str(run), "--target", nearest[1], *QUICK]) == 0
    assert record(run)["models"][-1]["bytes"] <= int(nearest[1][len("size=") : -1])
    assert main(["compress", str(run), "--target", "size=99GB", *QUICK]) == 2
    assert "is no less than the" in capsys.readouterr().err


def test_a_quality_is_kept_by_the_smallest_that_does(run, capsys):
    assert main(["compress", str(run), "--target", "quality=99%", *QUICK]) == 0
    found = record(run)
    tried = {int(size): kept for size, kept in found["target"]["tried"].items()}
    size = found["models"][-1]["bytes"]
    assert tried[size] >= 0.99 and not any(kept >= 0.99 for other, kept in tried.items() if other < size)
    assert main(["compress", str(run), "--target", "quality=10000%", *QUICK]) == 2
    assert "cannot be reached with this model; the nearest is quality=" in capsys.readouterr().err


def test_a_speed_beyond_reach_is_refused_with_the_nearest(run, capsys):
    assert main(["compress", str(run), "--target", "speed=1000x", *QUICK]) == 2
    assert re.search(r"the nearest is speed=\d+\.\d\dx", capsys.readouterr().err)


def test_a_speed_that_any_model_has_is_found_at_once(run):
    assert main(["compress", str(run), "--target", "speed=0.001x", *QUICK]) == 0
    assert [model["name"] for model in record(run)["models"]] == ["original", "1-quantize"]


def test_without_a_word_behind_it_a_target_is_refused(run, capsys):
    assert main(["compress", str(run), "--target"]) == 2
    assert "--target needs a word behind it: size=20MB" in capsys.readouterr().err
