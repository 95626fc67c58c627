"""One short training for the benches of the recipe: hasten's own parts, without checkpoints and journal.

The text is the demo's: the source of Python's standard library, a byte-level BPE of 4,096 tokens.  Files are
held out whole (`data/split.py`), so no part of a validation file was trained on.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from hasten.core.files import write_json
from hasten.core.runtime import choose_device
from hasten.core.runtime import start as start_runtime
from hasten.data.corpus import Corpus
from hasten.data.prefetch import Prefetch
from hasten.data.prepare import Prepared
from hasten.lookup import read
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.config import TrainConfig
from hasten.train.engine import Whole
from hasten.train.optim import Optimizer, Rates
from hasten.train.plan import make_plan
from hasten.train.step import train_step
from hasten.train.validate import Validation

ROW_TOKENS = 256
VALIDATION_TOKENS = 32_768


def demo_text(cache: Path) -> Prepared:
    """The demo's text as shards, made in `cache` the first time."""
    return read("demo", [f"data.cache={cache}"]).prepared()


def train(
    prepared: Prepared,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    objective: Mapping[str, Any] | None = None,
    scale: float = 1.0,
    row_tokens: int = ROW_TOKENS,
    ramp: Sequence[tuple[float, int]] = (),
) -> dict[str, Any]:
    """Train with the fields of the three sections, every rate times `scale`; what came of it, as JSON.

    `seconds` are those of the training steps, reading of batches included, validation not; a run by
    minutes ends its schedule by this clock.  A loss that is not finite ends the run, as `nan`.  `ramp` holds
    (share of the tokens, rows of a step) until that share; then the batch is `training`'s.
    """
    tokenizer = Tokenizer.load(prepared.tokenizer)
    config = TrainConfig.model_validate({"precision": "bf16", "compile": "off", **training})
    shape = ModelConfig.model_validate({"vocab_size": tokenizer.vocab_size, **model})
    runtime, loss = start_runtime(str(choose_device("auto"))), CrossEntropy.model_validate(objective or {})
    corpus = Corpus(prepared.folder, "train", row_tokens, config.seed)
    plan = make_plan(config, shape, corpus, loss, runtime)
    decoder = build(shape, config.seed, runtime.device)
    engine = Whole(decoder, loss, runtime, precision=plan.precision, compiled=False)
    rates = Rates.at(config.optimizer, shape, plan.batch_tokens)
    optimizer = Optimizer(decoder, config.optimizer, rates)
    validation = Validation(
        Corpus(prepared.folder, "validation", row_tokens, 0),
        runtime,
        max_tokens=VALIDATION_TOKENS,
        micro_rows=plan.micro_rows,
        tokenizer=tokenizer,
    )

    total_rows = plan.batch_rows * (config.steps or 0)
    ramped = ramp_up([*ramp, (1.0, plan.batch_rows)], total_rows) if ramp else []

    def batches(step: int) -> list[Any]:
        first, rows = (
            ramped[min(step, len(ramped) - 1)] if ramp else (step * plan.batch_rows, plan.batch_rows)
        )
        return corpus.batches(first // rows, rows=rows, micro_rows=min(rows, plan.micro_rows))

    step, losses, began, previous = 0, [], time.perf_counter(), 0.0
    with Prefetch(batches) as ready:
        while True:
            elapsed = time.perf_counter() - began
            moment = plan.horizon.moment(step, elapsed, step_seconds=elapsed - previous)
            if ramp:
                done = ramped[step][0] / total_rows if step < len(ramped) else 1.0
                moment = replace(moment, progress=done, ended=step == len(ramped))
            if moment.ended or (losses and not isfinite(losses[-1])):
                break
            previous = elapsed
            outcome = train_step(
                engine,
                optimizer,
                next(ready),
                multiplier=scale * config.schedule.multiplier(moment.progress, step),
                max_norm=config.max_grad_norm,
                turn=step,
            )
            losses.append(outcome.loss.item())
            step += 1
    figures = validation(engine)
    return {
        "validation_loss": figures["validation_loss"],
        "bits_per_byte": figures["bits_per_byte"],
        "training_loss": sum(losses[-10:]) / len(losses[-10:]),
        "steps": step,
        "tokens": step * plan.batch_tokens if not ramp else total_rows * row_tokens,
        "seconds": round(elapsed, 2),
        "parameters": shape.num_parameters,
    }


class Results:
    """Figures of trainings by key, in a file that is written after each: a bench goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures under `key`, made now where they are not there yet."""
        if key not in self.runs:
            torch.manual_seed(0)
            self.runs[key] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.runs)
            print(key, self.runs[key], flush=True)
        return self.runs[key]


def ramp_up(ramp: Sequence[tuple[float, int]], total_rows: int) -> list[tuple[int, int]]:
    """(first row, rows) of each step of a run over `total_rows`; each first row is a multiple of its rows."""
    steps, first = [], 0
    while first < total_rows:
        rows = next(rows for share, rows in ramp if first < share * total_rows or share == 1)
        while first % rows:
            rows //= 2
        steps.append((first, rows))
        first += rows
    return steps


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)
