"""Time the forward pass of a decoder before and after it is made smaller, beside what its arithmetic says.

    python bench/pruning.py                                        about two minutes on two cores
    python bench/pruning.py --shape 98m --repeats 15 --save bench/results/pruning.json

Depth, width and low rank take a share of the blocks away; each smaller model reads the same random tokens in
turns with the original, so that a busy machine meets them alike.  What counts is how much of the saved
arithmetic is saved time: (1 - seconds / seconds) / (1 - FLOPs / FLOPs), of medians.  FLOPs are those of the
products and of attention, which `ModelConfig` counts; of low rank those of the thin matrices.  Weights are
random, for time asks the shapes alone; which parts go is chosen on random tokens.

The JSON on the last line has all repeats, medians, ratios and parameters.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hasten.compress.depth import Depth
from hasten.compress.low_rank import LowRank
from hasten.compress.statistics import linear_layers
from hasten.compress.width import Width
from hasten.core.batch import Batch
from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build

SHAPES = {
    "tiny": {"dim": 64, "ffn_dim": 192, "num_layers": 4, "num_heads": 8, "num_kv_heads": 4},
    "25m": {"dim": 512, "ffn_dim": 1408, "num_layers": 8, "num_heads": 8},
    "98m": {"dim": 768, "ffn_dim": 2048, "num_layers": 14, "num_heads": 12},
}
STEPS = {
    "depth -25%": Depth(share=0.25),
    "depth -50%": Depth(share=0.5),
    "width -25%": Width(share=0.25),
    "width -50%": Width(share=0.5),
    "low rank -50%": LowRank(share=0.5),
}
VOCABULARY, CALIBRATION = 8192, (2, 256)
"""Words of the vocabulary; rows and tokens of the text that parts are chosen on."""


def drawn(rows: int, tokens: int) -> torch.Tensor:
    """Random tokens [rows, tokens]."""
    return torch.randint(VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(0))


def flops(model: Transformer, tokens: int) -> int:
    """Operations of the blocks per token in a row of so many."""
    whole = model.config.forward_flops_per_token(tokens, head_share=0)
    there = sum(layer.weight.numel() for layer in linear_layers(model).values())
    return whole + 2 * (there - model.config.num_matrix_parameters)


@torch.no_grad()
def seconds(model: Transformer, tokens: torch.Tensor) -> float:
    """Of one forward pass."""
    began = time.perf_counter()
    model(tokens)
    return time.perf_counter() - began


def measured(models: dict[str, Transformer], tokens: int, repeats: int) -> dict[str, Any]:
    """Figures of each model; every repeat gives one turn to each, after one that does not count."""
    row = drawn(1, tokens)
    turns = [{name: seconds(model, row) for name, model in models.items()} for _ in range(repeats + 1)][1:]
    each = {name: [turn[name] for turn in turns] for name in models}
    whole_seconds, whole_flops = median(each["original"]), flops(models["original"], tokens)
    figures = {}
    for name, model in models.items():
        saved_time = 1 - median(each[name]) / whole_seconds
        saved_flops = 1 - flops(model, tokens) / whole_flops
        figures[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "flops_per_token": flops(model, tokens),
            "seconds": each[name],
            "median_seconds": median(each[name]),
            "saved_flops": saved_flops,
            "saved_time": saved_time,
            "saved_time_of_flops": saved_time / saved_flops if saved_flops else None,
        }
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the smaller models, time all, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="25m")
    parser.add_argument("--tokens", type=int, default=512, help="in the row that is read")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--save", type=Path, help="write the JSON to this file too")
    asked = parser.parse_args(arguments)
    shape = {"vocab_size": VOCABULARY, "activation": "swiglu", "max_positions": max(asked.tokens, 1024)}
    model = build(ModelConfig.model_validate({**shape, **SHAPES[asked.shape]}), seed=0).eval()
    text = drawn(*CALIBRATION)
    models = {"original": model}
    for name in asked.steps:
        whole = build(model.config, seed=0).eval()
        models[name] = STEPS[name].apply(whole, [Batch(text, text)])
    figures = measured(models, asked.tokens, asked.repeats)
    for name, one in figures.items():
        told = f"{one['saved_time']:6.1%} less, where the FLOPs are {one['saved_flops']:.1%} less"
        print(f"{name:<16}{one['median_seconds'] * 1e3:9.1f} ms  {told}")
    result = {"shape": asked.shape, "tokens": asked.tokens, "models": figures, "environment": environment()}
    if asked.save:
        write_json(asked.save, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
