"""One step, the same for every kind of training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, distributed

from hasten.core.batch import Batch
from hasten.parallel.gradients import clip_gradients
from hasten.train.engine import Engine, count_of
from hasten.train.optim import Optimizer


@dataclass(frozen=True)
class Outcome:
    """What a step came to, equal on all ranks; still on the device, for reading it waits for the step."""

    loss: Tensor  # [] mean over everything that was counted, before the update
    norm: Tensor  # [] of the gradient before clipping
    finite: Tensor  # [] bool: False means that the step changed nothing


def train_step(
    engine: Engine,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    *,
    multiplier: float = 1.0,
    max_norm: float | None = None,
    turn: int | None = None,
    halfway: Callable[[], None] = lambda: None,
) -> Outcome:
    """Take one step over this rank's micro-`batches`, at `multiplier` times the learning rates.

    The loss is a sum, divided by the count of the whole step over all ranks: however a step is cut into
    ranks and micro-batches, its gradient is the same.  A loss or gradient that is not finite leaves weights
    and optimizer as they are, on every rank, for all of them see the same sums.  `turn` is the number of the
    step, where matrices take turns (`Muon`).  `halfway` is called when the gradients are there: a clock may
    want to know.
    """
    group = engine.runtime.group
    count = count_of(engine, batches)
    if group is not None:
        distributed.all_reduce(count, group=group)
    loss = engine.run(batches, 1 / count.clamp(min=1))  # a step with nothing to learn is a step of zero
    if group is not None:
        distributed.all_reduce(loss, group=group)
    halfway()
    optimizer.receive()
    norm = clip_gradients(optimizer.parameters, max_norm, engine.arrangement)
    finite = loss.isfinite() & norm.isfinite()
    optimizer.step(multiplier, finite, turn)
    optimizer.zero_grad()
    return Outcome(loss, norm, finite)
