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
    flops_per_token: int  # of a training step, for each place of a row
    source_tokens: int = 0  # of a row, where it holds pairs

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_rows * self.row_tokens

    @property
    def row(self) -> str:
        """What a row holds, in words."""
        if not self.source_tokens:
            return f"{self.row_tokens:,} tokens a step"
        return f"{self.source_tokens:,} source and {self.row_tokens:,} target tokens a step"


def make_plan(
    config: TrainConfig,
    model: ModelConfig,
    corpus: Corpus,
    objective: Objective,
    runtime: Runtime,
    *,
    replicas: int | None = None,
) -> Plan:
    """Decide what the recipe left open; raises ConfigError or DataError where it cannot work.

    Of a step's rows each of `replicas`, by default each process, takes a part.
    """
    row_tokens, replicas = corpus.row_tokens, replicas or runtime.world_size
    rows = config.batch_rows(row_tokens, replicas)
    precision = choose_precision(config.precision, runtime.device)
    micro_rows = config.micro_rows(row_tokens) or choose_micro_rows(
        model,
        rows // replicas,
        row_tokens,
        device=runtime.device,
        precision=precision,
        optimizer=config.optimizer.kind,
        chunk_tokens=logits_at_once(objective, rows // replicas * row_tokens, model, runtime.device),
        head_share=corpus.head_share,
    )
    corpus.check(rows, micro_rows, replicas)
    horizon = make_horizon(config, rows, corpus.num_rows)
    shape = micro_rows, row_tokens, corpus.source_tokens, round(corpus.head_share * row_tokens)
    return Plan(
        batch_rows=rows,
        row_tokens=row_tokens,
        micro_rows=micro_rows,
        horizon=horizon,
        precision=precision,
        note=note_of(model, shape, precision, runtime.device),
        flops_per_token=model.flops_per_token(
            row_tokens, source_tokens=corpus.source_tokens or None, head_share=corpus.head_share
        ),
        source_tokens=corpus.source_tokens,
    )


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


def expected_seconds(plan: Plan, steps_done: int, peak: float) -> float:
    """About how long a run will take, at a peak of so many FLOP/s over all ranks."""
    if isinstance(plan.horizon, Clock):
        return plan.horizon.total
    tokens = (plan.horizon.total - steps_done) * plan.batch_tokens
    return tokens * plan.flops_per_token / (EXPECTED_MFU * peak)


def settle_machine(
    plan: Plan, config: TrainConfig, model: ModelConfig, runtime: Runtime, steps_done: int
) -> tuple[float, bool]:
    """The measured matrix peak in FLOP/s over all ranks, and whether to compile; says what was decided."""
    peak = measure_peak(runtime.device, plan.precision) * runtime.world_size
    expected = expected_seconds(plan, steps_done, peak)
    compiled, why = choose_compile(config.compile, runtime.device, expected, warm=is_warm(plan.note))
    if runtime.rank == 0:
        say(
            f"{model.num_parameters:,} parameters on {runtime.world_size} x {runtime.device.type},"
            f" {plan.precision} at up to {peak / 1e12:.2f} TFLOP/s; {plan.batch_rows} rows of"
            f" {plan.row}, {plan.micro_rows} at once;"
            f" {'compiled' if compiled else 'not compiled'}: {why}"
        )
    return peak, compiled
