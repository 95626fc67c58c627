"""Time to the loss that a well-tuned AdamW GPT-2 reaches in some minutes: how much less does hasten need?

    python bench/time_to_loss.py --sweep-only                      tune both arms; any machine, any load
    python bench/time_to_loss.py --minutes 4 --seeds 3 --save bench/results/time-to-loss.json     alone

Both arms run in hasten's engine, on the same kernels, in the same precision and with the same FLOPs per
token: 4 layers of width 256, rows of 256 tokens, a vocabulary of 4,096.  The ratio is the recipe's alone.

*Baseline*, as nanoGPT has it: LayerNorm, learned positions, GELU, a tied head, no biases; AdamW (0.9, 0.95)
with weight decay 0.1, gradients clipped at 1, cosine to a tenth.  *hasten*: its defaults.

*Tuning*, equally for both: four rates a factor of two apart at 4,096 tokens a step, then the best, and 0.7
times as much, at half the tokens, as long as that helps; hasten's rate is one factor on all of its rates.
One seed each.  Runs of the sweep have FLOPs, those of Muon's products included, and not minutes, so they
need no quiet machine.

*Final*: each training in a fresh process, arms in turn.  What counts is the time from the first batch to the
last step; start-up and validation are the same in both and count in neither.  A schedule ends with its time.
The text is Python's standard library, whole files held out (`data/split.py`); the loss is on 32,768 tokens of
them.  The ratio is the baseline's minutes over the shortest of hasten's budgets whose mean loss is below the
baseline's with a one-sided p < 0.01 (Welch).  Prints one JSON object last.
"""

import argparse
import json
import subprocess
import sys
import time
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from hasten.core.allocator import settle_allocator

if __name__ == "__main__":
    settle_allocator()

import torch
from training import ROW_TOKENS, Results, demo_text, train
from welch import one_sided_below, welch

from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.model.config import ModelConfig
from hasten.train.transfer import choose_turns, orthogonal_flops

SIZE = {"dim": 256, "num_layers": 4, "num_heads": 4, "vocab_size": 4096}
GPT2 = {
    **SIZE,
    "position": "learned",
    "norm": "layer",
    "norm_eps": 1e-5,
    "activation": "gelu_tanh",
    "tied": True,
    "init_std": 0.02,
    "max_positions": ROW_TOKENS,
}
HASTEN = {"preset": "hasten-tiny", **SIZE}
BASELINE, OURS = "baseline", "hasten"
RATES = {BASELINE: (3.5e-4, 7e-4, 1.4e-3, 2.8e-3), OURS: (0.5, 1.0, 2.0, 4.0)}
BATCHES = (4096, 2048, 1024)
SWEEP_FLOPS = {BASELINE: 22e12, OURS: 22e12 / 3}
"""A third for hasten, as in the final: a rate is tuned for about the length that it will run."""
SHARES = (1 / 3, 1 / 4, 1 / 5)
"""Hasten's budgets, of the baseline's time."""


def training(arm: str, rate: float, batch_tokens: int, seed: int) -> dict[str, Any]:
    """The `train` section of an arm, without its length."""
    fields: dict[str, Any] = {"batch_tokens": batch_tokens, "seed": seed}
    if arm == BASELINE:
        fields["optimizer"] = {"kind": "adamw", "learning_rate": rate, "betas": (0.9, 0.95)}
        fields["schedule"] = {"kind": "cosine", "final": 0.1}
    return fields


def run(arm: str, setting: dict[str, Any], seed: int, cache: Path, **length: Any) -> dict[str, Any]:
    """One training of an arm."""
    fields = training(arm, setting["rate"], setting["batch_tokens"], seed)
    scale = 1.0 if arm == BASELINE else setting["rate"]
    model = GPT2 if arm == BASELINE else HASTEN
    return train(demo_text(cache), model, {**fields, **length}, scale=scale)


def step_flops(arm: str, batch_tokens: int) -> float:
    """FLOPs of a step with its optimizer's products."""
    config = ModelConfig.model_validate(GPT2 if arm == BASELINE else HASTEN)
    work = batch_tokens * config.flops_per_token(ROW_TOKENS)
    return work if arm == BASELINE else work + orthogonal_flops(config) / choose_turns(config, batch_tokens)


def tune(arm: str, results: Results, cache: Path) -> dict[str, Any]:
    """The best setting of an arm: rates at the first batch size, then two at the second."""

    def loss(setting: dict[str, Any]) -> float:
        key = f"sweep {arm} {json.dumps(setting, sort_keys=True)}"
        steps = round(SWEEP_FLOPS[arm] / step_flops(arm, setting["batch_tokens"]))
        found = results.get(key, lambda: run(arm, setting, 0, cache, steps=steps))["validation_loss"]
        return found if isfinite(found) else inf

    best = min(({"rate": rate, "batch_tokens": BATCHES[0]} for rate in RATES[arm]), key=loss)
    for batch_tokens in BATCHES[1:]:
        near = [{"rate": best["rate"] * times, "batch_tokens": batch_tokens} for times in (1.0, 0.5**0.5)]
        better = min(near, key=loss)
        if loss(better) >= loss(best):
            break
        best = better
    return best


def fresh(arm: str, setting: dict[str, Any], seed: int, minutes: float, cache: Path) -> dict[str, Any]:
    """One training in a process of its own."""
    words = {"arm": arm, "setting": setting, "seed": seed, "minutes": minutes}
    command = [sys.executable, __file__, "--cache", str(cache), "--one", json.dumps(words)]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "process_seconds": round(time.perf_counter() - began, 2)}


def final(
    settings: dict[str, Any], budgets: list[tuple[str, float]], seeds: int, results: Results, cache: Path
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every training of the final by arm and minutes, in turn; `budgets` are (arm, minutes)."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {BASELINE: {}, OURS: {}}
    for seed in range(seeds):
        for arm, length in budgets:
            key = f"final {arm} {length:.3f} min {json.dumps(settings[arm], sort_keys=True)} / {seed}"
            figures = results.get(key, lambda a=arm, m=length, s=seed: fresh(a, settings[a], s, m, cache))
            found[arm].setdefault(f"{length:.3f}", []).append(figures)
    return found


def judge(found: dict[str, dict[str, list[dict[str, Any]]]], minutes: float) -> dict[str, Any]:
    """Mean losses, and the shortest budget that is better than the baseline."""
    (theirs,) = found[BASELINE].values()
    target = [each["validation_loss"] for each in theirs]
    budgets = []
    for length, ours in found[OURS].items():
        losses = [each["validation_loss"] for each in ours]
        difference, t, freedom = welch(losses, target) if len(losses) > 1 else (losses[0] - target[0], 0, 1)
        budgets.append(
            {
                **summary(ours),
                "ratio": round(minutes / float(length), 2),
                "below_baseline_by": round(-difference, 4),
                "p": float(f"{one_sided_below(t, freedom):.2g}") if len(losses) > 1 else None,
            }
        )
    passed = [each["ratio"] for each in budgets if each["p"] is not None and each["p"] < 0.01]
    return {BASELINE: summary(theirs), OURS: budgets, "ratio": max(passed, default=None)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs of one arm and length came to."""
    return {
        "validation_loss": round(fmean(each["validation_loss"] for each in runs), 4),
        "bits_per_byte": round(fmean(each["bits_per_byte"] for each in runs), 4),
        "seconds": round(fmean(each["seconds"] for each in runs), 1),
        "tokens": round(fmean(each["tokens"] for each in runs)),
        "tokens_per_second": round(fmean(each["tokens"] / each["seconds"] for each in runs)),
        "losses": [round(each["validation_loss"], 4) for each in runs],
    }


def one(words: str, cache: Path) -> None:
    """What a fresh process does: a training, its figures on the last line."""
    asked = json.loads(words)
    figures = run(asked["arm"], asked["setting"], asked["seed"], cache, minutes=asked["minutes"])
    print(json.dumps(figures))


def shape_of(arm: str) -> dict[str, Any]:
    """Parameters and FLOPs of an arm's model."""
    config = ModelConfig.model_validate(GPT2 if arm == BASELINE else HASTEN)
    return {"parameters": config.num_parameters, "flops_per_token": config.flops_per_token(ROW_TOKENS)}


def main() -> None:
    """Tune, train in turn, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="of the baseline")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="*", default=list(SHARES), help="hasten's budgets")
    parser.add_argument("--sweep-only", action="store_true", help="tune and stop")
    parser.add_argument("--threads", type=int, help="of a sweep; a final uses all cores")
    parser.add_argument("--cache", type=Path, default=Path("runs/data"), help="where the prepared text is")
    parser.add_argument("--runs", type=Path, default=Path("runs/time-to-loss.json"), help="of each training")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one, arguments.cache)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results, cache = Results(arguments.runs), arguments.cache
    demo_text(cache)
    settings = {arm: tune(arm, results, cache) for arm in (BASELINE, OURS)}
    result: dict[str, Any] = {
        "environment": environment(),
        "models": {arm: shape_of(arm) for arm in settings},
        "settings": settings,
    }
    if not arguments.sweep_only:
        minutes = arguments.minutes
        budgets = [(BASELINE, minutes), *((OURS, minutes * share) for share in arguments.shares)]
        found = final(settings, budgets, arguments.seeds, results, cache)
        result |= {"minutes": minutes, **judge(found, minutes)}
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.save, {**result, "runs": results.runs})
    print(json.dumps(result))
    return None


if __name__ == "__main__":
    main()
