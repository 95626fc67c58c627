"""How a run will go, decided before its first step: length, cutting of batches, precision, compiling."""

from dataclasses import dataclass, replace

import torch

from hasten.core.console import say
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.model.config import ModelConfig
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.distilled import Distilled
from hasten.objective.protocol import Objective
from hasten.ops.kernels.library import library
from hasten.parallel.grid import Grid
from hasten.parallel.schedules import program
from hasten.train.config import TrainConfig
from hasten.train.engine import choose_compile, choose_precision
from hasten.train.footprint import FULL, Workload, with_recompute
from hasten.train.horizon import Clock, Horizon, Steps
from hasten.train.memory import choose_micro_rows, choose_recompute, cut
from hasten.train.metrics import measure_peak
from hasten.train.optim import Rates
from hasten.train.warm import is_warm, note_of

MODEST_FLOPS = 1e12
"""FLOP/s of all ranks, for a first guess whether a run is long."""
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
    work: Workload  # of this process in a step
    source_tokens: int = 0  # of a row, where it holds pairs

    @property
    def batch_tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_rows * self.row_tokens

    def is_long(self, seconds: float) -> bool:
        """Whether the run will take longer than that, by the clock that it was given or at a low MFU."""
        if isinstance(self.horizon, Clock):
            return self.horizon.total > seconds
        return expected_seconds(self, 0, MODEST_FLOPS) > seconds

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
    grid: Grid | None = None,
    adaptation: tuple[int | None, float] = (None, FULL),
) -> Plan:
    """Decide what the recipe left open; raises ConfigError or DataError where it cannot work.

    Of a step's rows each replica of the `grid` takes a part; by default each process is one.
    `adaptation` is the rank of pairs that are trained, and the bytes of a number in the frozen matrices.
    """
    grid = grid or Grid.make(runtime)
    rows, row_tokens = config.batch_rows(corpus.row_tokens, grid.replicas), corpus.row_tokens
    whole = undivided(config, model, corpus, objective, runtime, rows=rows, grid=grid, adaptation=adaptation)
    micro_rows = config.micro_rows(row_tokens) or choose_micro_rows(whole, runtime.device)
    corpus.check(rows, micro_rows, grid.replicas)
    chunk_tokens = logits_at_once(objective, micro_rows * row_tokens, model, runtime.device)
    work = replace(cut(whole, micro_rows), chunk_tokens=chunk_tokens)
    if grid.degrees["pipeline"] > 1:  # refuses what its schedule cannot take
        program(grid.config.order, grid.degrees["pipeline"], work.micro_batches, grid.config.interleave)
    shape = micro_rows, row_tokens, corpus.source_tokens, round(corpus.head_share * row_tokens)
    flops = model.flops_per_token(row_tokens, source_tokens=work.source_tokens, head_share=corpus.head_share)
    return Plan(
        batch_rows=rows,
        row_tokens=row_tokens,
        micro_rows=micro_rows,
        horizon=make_horizon(config, rows, corpus.num_rows),
        precision=work.precision,
        note=note_of(model, shape, work.precision, runtime.device),
        # Frozen matrices have no gradient of their own: two products are left of three.
        flops_per_token=flops if work.adapter_rank is None else flops * 2 // 3,
        source_tokens=corpus.source_tokens,
        work=with_recompute(work, *choose_recompute(work, runtime.device)),
    )


def undivided(
    config: TrainConfig,
    model: ModelConfig,
    corpus: Corpus,
    objective: Objective,
    runtime: Runtime,
    *,
    rows: int,
    grid: Grid,
    adaptation: tuple[int | None, float],
) -> Workload:
    """A step of `rows` rows, of which a replica takes its share at once."""
    adapter_rank, matrix_bytes = adaptation
    share, row_tokens = rows // grid.replicas, corpus.row_tokens
    return Workload(
        model=model,
        micro_rows=share,
        row_tokens=row_tokens,
        precision=choose_precision(config.precision, runtime.device),
        optimizer=config.optimizer.kind,
        turns=Rates.at(config.optimizer, model, rows * row_tokens).turns,
        parallel=grid.config,
        degrees=grid.degrees,
        head_share=corpus.head_share,
        chunk_tokens=logits_at_once(objective, share * row_tokens, model, runtime.device),
        source_tokens=corpus.source_tokens or None,
        kernels=runtime.device.type == "cpu" and library() is not None,
        adapter_rank=adapter_rank,
        matrix_bytes=matrix_bytes,
        teacher=reading_along(objective),
    )


def logits_at_once(
    objective: Objective, num_tokens: int, model: ModelConfig, device: torch.device
) -> int | None:
    """For how many tokens the objective holds logits, None for all of a micro-batch."""
    if not isinstance(objective, CrossEntropy | Distilled):
        return None
    return objective.chunk(num_tokens, model.vocabulary, device)


def reading_along(objective: Objective) -> ModelConfig | None:
    """The shape of a teacher that reads each batch before the student does."""
    teacher = objective.teacher if isinstance(objective, Distilled) else None
    return teacher.config if teacher is not None else None


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


def again(work: Workload) -> str:
    """What the backward pass makes again, in words."""
    if not work.recomputed:
        return ""
    return f"; recompute {work.recompute} in {work.recomputed} of {work.layers} layers"


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
            f" {'compiled' if compiled else 'not compiled'}: {why}{again(plan.work)}"
        )
    return peak, compiled
