"""How a run will go, decided before its first step: length, cutting of batches, precision, compiling."""

from dataclasses import dataclass

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
from hasten.train.memory import choose_micro_rows, choose_recompute
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
    grid, row_tokens = grid or Grid.make(runtime), corpus.row_tokens
    adapter_rank, matrix_bytes = adaptation
    replicas, rows = grid.replicas, config.batch_rows(row_tokens, grid.replicas)
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
        degrees=grid.degrees,
        parallel=grid.config,
        adapter_rank=adapter_rank,
        matrix_bytes=matrix_bytes,
    )
    corpus.check(rows, micro_rows, replicas)
    micro_batches = rows // replicas // micro_rows
    if grid.degrees["pipeline"] > 1:  # refuses what its schedule cannot take
        program(grid.config.order, grid.degrees["pipeline"], micro_batches, grid.config.interleave)
    work = Workload(
        model=model,
        micro_rows=micro_rows,
        row_tokens=row_tokens,
        micro_batches=micro_batches,
        precision=precision,
        optimizer=config.optimizer.kind,
        turns=Rates.at(config.optimizer, model, rows * row_tokens).turns,
        parallel=grid.config,
        degrees=grid.degrees,
        head_share=corpus.head_share,
        chunk_tokens=logits_at_once(objective, micro_rows * row_tokens, model, runtime.device),
        source_tokens=corpus.source_tokens or None,
        kernels=runtime.device.type == "cpu" and library() is not None,
        adapter_rank=adapter_rank,
        matrix_bytes=matrix_bytes,
    )
    horizon = make_horizon(config, rows, corpus.num_rows)
    shape = micro_rows, row_tokens, corpus.source_tokens, round(corpus.head_share * row_tokens)
    whole = model.flops_per_token(
        row_tokens, source_tokens=corpus.source_tokens or None, head_share=corpus.head_share
    )
    return Plan(
        batch_rows=rows,
        row_tokens=row_tokens,
        micro_rows=micro_rows,
        horizon=horizon,
        precision=precision,
        note=note_of(model, shape, precision, runtime.device),
        # Frozen matrices have no gradient of their own: two products are left of three.
        flops_per_token=whole if adapter_rank is None else whole * 2 // 3,
        source_tokens=corpus.source_tokens,
        work=with_recompute(work, *choose_recompute(work, runtime.device)),
    )


def logits_at_once(
    objective: Objective, num_tokens: int, model: ModelConfig, device: torch.device
) -> int | None:
    """For how many tokens the objective holds logits, None for all of a micro-batch."""
    if not isinstance(objective, CrossEntropy | Distilled):
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
