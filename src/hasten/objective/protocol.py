"""What training asks of an objective: two pure halves around the model's forward.

The loss is a **sum** over the things that `count` counts.  The step divides once, by the count of the whole
batch over all processes, so how a batch is cut changes neither loss nor gradient.
"""

from typing import Protocol

from torch import Tensor, nn

from hasten.core.batch import Batch


class Objective(Protocol):
    """A loss, cut so that anything (a pipeline, a cache, a teacher) can stand between its halves."""

    def count(self, batch: Batch) -> Tensor:
        """How many things the loss sums over, an integer [] on the batch's device."""
        ...

    def enrich(self, batch: Batch) -> Batch:
        """The batch with what frozen models say about it in `extra`."""
        ...

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """Keyword arguments of the model's forward."""
        ...

    def loss(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """The summed loss [] in float32, from the forward's `hidden` [B, T, D]."""
        ...

    def correct(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """How many of the things were guessed right, [], where an accuracy is wanted; else 0."""
        ...
