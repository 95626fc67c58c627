"""The program that times smaller models counts what they compute, and gives each its turns."""

import json

import pruning
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hasten.compress.low_rank import LowRank
from hasten.compress.width import Width
from hasten.core.batch import Batch
from hasten.model.config import ModelConfig
from hasten.model.transformer import build


def test_it_prints_the_turns_of_every_model_and_what_they_save(tmp_path, capsys):
    steps = ["--steps", "depth -50%", "width -25%", "low rank -50%"]
    pruning.main(
        ["--shape", "tiny", "--tokens", "32", "--repeats", "3", *steps, "--save", str(tmp_path / "it")]
    )
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "it").read_text())
    models = printed["models"]
    assert list(models) == ["original", "depth -50%", "width -25%", "low rank -50%"]
    assert all(len(one["seconds"]) == 3 for one in models.values())
    assert models["original"]["saved_flops"] == models["original"]["saved_time"] == 0
    assert models["depth -50%"]["saved_flops"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "step", [None, Width(share=0.25), LowRank(share=0.5)], ids=["plain", "width", "low rank"]
)
@torch.no_grad()
def test_its_count_is_that_of_the_products(step, capsys):
    shape = {"vocab_size": pruning.VOCABULARY, "activation": "swiglu", **pruning.SHAPES["tiny"]}
    model, tokens = build(ModelConfig.model_validate(shape), seed=0).eval(), pruning.drawn(1, 32)
    if step is not None:
        model = step.apply(model, [Batch(tokens, tokens)])
    heads = model.config.num_heads * model.config.head_dim
    attention = model.config.num_layers * 2 * 32 * heads  # half of the square, as the configuration counts it
    linears = [m for block in model.blocks() for m in block.modules() if isinstance(m, torch.nn.Linear)]
    with FlopCounterMode(display=False) as counter:
        for linear in linears:
            linear(torch.zeros(1, linear.in_features))
    assert pruning.flops(model, 32) == counter.get_total_flops() + attention
