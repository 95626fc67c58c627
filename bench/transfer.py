"""Does the best learning rate stay where it is when width, depth, batch or horizon change?

    python bench/transfer.py --save bench/results/transfer.json
    python bench/transfer.py --series width --rule off       the same without the rules of train/transfer.py

One factor on all rates is swept over powers of two around 1, outwards until the best lies between two others.
The best of each size is also the vertex of the parabola through it and its neighbours, in log2 of the factor:
a shift of 1 is one cell.  Results are kept after each training.  Prints one JSON object last.
"""

import argparse
import json
from math import inf, isfinite, log2
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from training import Results, demo_text, train

from hasten.core.runtime import environment
from hasten.train.transfer import Base

WIDTH_OF_HEAD = 64
FACTORS = [2.0**k for k in range(-4, 5)]
FIRST = (0.5, 1.0, 2.0)
SERIES: dict[str, dict[str, dict[str, int]]] = {
    "width": {f"width {d}": {"dim": d} for d in (64, 128, 256)},
    "depth": {f"depth {n}": {"num_layers": n} for n in (2, 4, 8)},
    "batch": {f"batch {b}": {"batch_tokens": b} for b in (512, 1024, 2048, 4096)},
    "horizon": {f"tokens {t:,}": {"tokens": t} for t in (61_440, 122_880, 245_760)},
}
SHAPE = {"dim": 128, "num_layers": 4, "batch_tokens": 1024, "tokens": 122_880}


def train_size(prepared: Any, size: dict[str, int], factor: float, seed: int, rule: Any) -> dict[str, Any]:
    """One training of the default recipe at `size`, with every rate times `factor`."""
    size = {**SHAPE, **size}
    model = {
        "preset": "hasten-tiny",
        "dim": size["dim"],
        "num_heads": size["dim"] // WIDTH_OF_HEAD,
        "num_layers": size["num_layers"],
    }
    optimizer = {"kind": "muon", "base": Base() if rule == "on" else None}
    training = {"tokens": size["tokens"], "batch_tokens": size["batch_tokens"], "seed": seed}
    return train(prepared, model, {**training, "optimizer": optimizer}, scale=factor)


class Sweep:
    """The losses of one size by factor, each a mean over seeds."""

    def __init__(self, results: Results, prepared: Any, seeds: int, rule: str) -> None:
        self.results, self.prepared, self.seeds, self.rule = results, prepared, seeds, rule

    def loss(self, size: dict[str, int], factor: float) -> float:
        """Mean validation loss; infinite where a training ended in NaN."""
        named = json.dumps({**SHAPE, **size}, sort_keys=True)
        found = [
            self.results.get(
                f"{self.rule} {named} x{factor:g} / {seed}",
                lambda s=seed: train_size(self.prepared, size, factor, s, self.rule),
            )["validation_loss"]
            for seed in range(self.seeds)
        ]
        mean = fmean(found)
        return mean if isfinite(mean) else inf

    def sweep(self, size: dict[str, int]) -> dict[str, Any]:
        """Outwards from 1 until the best factor has a worse one on either side."""
        losses = {factor: self.loss(size, factor) for factor in FIRST}
        while True:
            best = min(losses, key=losses.__getitem__)
            missing = [f for f in (best / 2, best * 2) if f not in losses and f in FACTORS]
            if not missing:
                return {"losses": dict(sorted(losses.items())), "best": best, "vertex": vertex(losses, best)}
            losses |= {factor: self.loss(size, factor) for factor in missing}


def vertex(losses: dict[float, float], best: float) -> float | None:
    """log2 of the factor at the bottom of the parabola through the best and its neighbours."""
    below, middle, above = (losses.get(f, inf) for f in (best / 2, best, best * 2))
    bend = below - 2 * middle + above
    return round(log2(best) + (below - above) / (2 * bend), 2) if 0 < bend < inf else None


def judge(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By how many cells the best factor moves over the sizes of a series."""
    cells = [log2(each["best"]) for each in found.values()]
    vertices = [each["vertex"] for each in found.values() if each["vertex"] is not None]
    return {
        "cells_moved": max(cells) - min(cells),
        "vertex_moved": round(max(vertices) - min(vertices), 2) if len(vertices) == len(found) else None,
        "sizes": found,
    }


def main() -> None:
    """Sweep the series that were asked for, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", nargs="*", choices=SERIES, default=["width", "depth"])
    parser.add_argument("--rule", nargs="*", choices=("on", "off"), default=["on"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, help="losses do not depend on it")
    parser.add_argument("--cache", type=Path, default=Path("runs/data"), help="where the prepared text is")
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer.json"), help="of each training")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results, prepared = Results(arguments.runs), demo_text(arguments.cache)
    found: dict[str, Any] = {}
    for rule in arguments.rule:
        sweep = Sweep(results, prepared, arguments.seeds, rule)
        found[rule] = {
            series: judge({name: sweep.sweep(size) for name, size in SERIES[series].items()})
            for series in arguments.series
        }
    result = {"environment": environment(), "setting": SHAPE, "base": Base().model_dump(), "rule": found}
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.write_text(json.dumps({**result, "runs": results.runs}, indent=2) + "\n", "utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
