"""One trial: a training in a process of its own, told by an order in JSON what to leave out.

    python -m hasten.ledger.trial order.json

The order names the recipe, the techniques to take out of the process, and the file for the result.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hasten.assembly import assemble
from hasten.core.files import write_json
from hasten.core.runtime import start
from hasten.ledger.techniques import TECHNIQUES
from hasten.lookup import load
from hasten.train.metrics import read_lines

Lines = list[dict[str, Any]]


def main(path: str) -> None:
    """Carry out the order in the file `path`."""
    order = json.loads(Path(path).read_text(encoding="utf-8"))
    for name in order["without"]:
        TECHNIQUES[name].without()
    recipe = load(Path(order["recipe"]))
    run = assemble(recipe, start(recipe.device), time.monotonic())
    summary = run.fit()
    lines = read_lines(recipe.output / "metrics.jsonl")
    result = {
        **asdict(summary),
        "threads": torch.get_num_threads(),
        "paces": paces(lines),
        "validation": validation_curve(lines),
    }
    write_json(Path(order["result"]), result)


def paces(lines: Lines) -> list[tuple[int, float]]:
    """Step and tokens per second of each training line."""
    return [(line["step"], line["tokens_per_second"]) for line in lines if line["kind"] == "train"]


def validation_curve(lines: Lines) -> list[tuple[float, float]]:
    """Seconds spent in training steps, and the validation loss then; looks and saves take no time here."""
    spent, tokens, curve = 0.0, 0, []
    for line in lines:
        if line["kind"] == "train":
            spent, tokens = spent + (line["tokens"] - tokens) / line["tokens_per_second"], line["tokens"]
        elif line["kind"] == "validation":
            curve.append((spent, line["validation_loss"]))
    return curve


if __name__ == "__main__":
    main(sys.argv[1])
