"""How a run will go, decided before its first step: length, cutting of batches, precision, compiling."""

from dataclasses import dataclass

import torch

from hasten.core.console import say
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.model.config import ModelConfig
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.protocol import Objective
from hasten.train.config import TrainConfig
from hasten.train.engine import choose_compile, choose_precision
from hasten.train.horizon import Clock, Horizon, Steps
from hasten.train.memory import choose_micro_rows
from hasten.train.metrics import measure_peak
from hasten.train.warm import is_warm, note_of

EXPECTED_MFU = 0.4
"""For a guess at the length of a run before its first step."""


@dataclass(frozen=True)
class Plan:
    """What follows from recipe, data and machine."""

    batch_rows: int  # of one step, over all ranks
    row_tokens: int
    micro_rows: int  # of one forward pass
    horizon: Horizon
    precision: str
    note: str  # of all that compiled code depends on

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_rows * self.row_tokens


def make_plan(
    config: TrainConfig, model: ModelConfig, corpus: Corpus, objective: Objective, runtime: Runtime
) -> Plan:
    """Decide what the recipe left open; raises ConfigError or DataError where it cannot work."""
    row_tokens, world_size = corpus.row_tokens, runtime.world_size
    rows = config.batch_rows(row_tokens, world_size)
    precision = choose_precision(config.precision, runtime.device)
    micro_rows = config.micro_rows(row_tokens) or choose_micro_rows(
        model,
        rows // world_size,
        row_tokens,
        device=runtime.device,
        precision=precision,
        optimizer=config.optimizer.kind,
        chunk_tokens=logits_at_once(objective, rows // world_size * row_tokens, model, runtime.device),
    )
    corpus.check(rows, micro_rows, world_size)
    horizon = make_horizon(config, rows, corpus.num_rows)
    note = note_of(model, (micro_rows, row_tokens), precision, runtime.device)
    return Plan(rows, row_tokens, micro_rows, horizon, precision, note)


def logits_at_once(
    objective: Objective, num_tokens: int, model: ModelConfig, device: torch.device
) -> int | None:
    """For how many tokens the objective holds logits, None for all of a micro-batch."""
    if not isinstance(objective, CrossEntropy):
        return None
    return objective.chunk(num_tokens, model.vocabulary, device)


def make_horizon(config: TrainConfig, batch_rows: int, num_rows: int) -> Horizon:
    """A number of steps, or a clock."""
    steps = config.num_steps(batch_rows, num_rows)
    return Clock(60 * (config.minutes or 0)) if steps is None else Steps(steps)


def expected_seconds(plan: Plan, model: ModelConfig, steps_done: int, peak: float) -> float:
    """About how long a run will take, at a peak of so many FLOP/s over all ranks."""
    if isinstance(plan.horizon, Clock):
        return plan.horizon.total
    tokens = (plan.horizon.total - steps_done) * plan.batch_tokens
    return tokens * model.flops_per_token(plan.row_tokens) / (EXPECTED_MFU * peak)


def settle_machine(
    plan: Plan, config: TrainConfig, model: ModelConfig, runtime: Runtime, steps_done: int
) -> tuple[float, bool]:
    """The measured matrix peak in FLOP/s over all ranks, and whether to compile; says what was decided."""
    peak = measure_peak(runtime.device, plan.precision) * runtime.world_size
    expected = expected_seconds(plan, model, steps_done, peak)
    compiled, why = choose_compile(config.compile, runtime.device, expected, warm=is_warm(plan.note))
    if runtime.rank == 0:
        say(
            f"{model.num_parameters:,} parameters on {runtime.world_size} x {runtime.device.type},"
            f" {plan.precision} at up to {peak / 1e12:.2f} TFLOP/s; {plan.batch_rows} rows of"
            f" {plan.row_tokens:,} tokens a step, {plan.micro_rows} at once;"
            f" {'compiled' if compiled else 'not compiled'}: {why}"
        )
    return peak, compiled
