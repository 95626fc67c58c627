"""How a step is run where the layers are spread over stages.

A stage executes, operation by operation, the program that `parallel/schedules.py` also simulates.  All
stages of a pipeline have the same batches: only streams of activations and their gradients travel.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hasten.core.batch import Batch
from hasten.parallel.fsdp import sum_at
from hasten.parallel.gradients import sum_gradients
from hasten.parallel.messages import Mail
from hasten.parallel.pipeline import Chain
from hasten.parallel.schedules import Op, forwards, program
from hasten.train.engine import Whole


class Held(NamedTuple):
    """What a forward leaves for its backward, and with it all activations between the two."""

    received: list[Tensor]
    """Their gradients go back to the stage before."""
    made: list[GradientEdge | None]
    """Where gradients enter; not the tensors themselves, which others read.  None where nothing learns."""


class Pipelined(Whole):
    """A stage of a pipeline: one or several chunks of the layers of a model that was `cut`.

    Takes what `Whole` takes.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.stage, self.stages = self.grid.place["pipeline"], self.grid.degrees["pipeline"]
        self.last = self.grid.config.chunks - 1
        self.mail = Mail(self.grid)
        self.held = dict[tuple[int, int], Held]()  # by micro-batch and chunk

    def run(self, batches: Sequence[Batch], scale: Tensor) -> Tensor:
        """This stage's forwards and backwards of all micro-batches, then one sum of gradients.

        Raises ConfigError where the schedule cannot take so many micro-batches.
        """
        self.model.train()
        config = self.grid.config
        ops = program(config.order, self.stages, len(batches), config.interleave)[self.stage]
        total = torch.zeros((), device=self.runtime.device)
        for number, (op, arrived) in enumerate(self.walk(ops, batches), 1):
            if op.kind == "forward":
                total += self.go_forward(op, arrived, batches[op.micro_batch], scale)
            else:
                sum_at(self.model, number == len(ops), config.stage)
                self.go_backward(op, arrived, batches[op.micro_batch])
        sum_gradients(self.model, self.arrangement)
        return self.share(total)

    def judged(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Summed loss and correct guesses [2] of each batch, where the last chunk is here."""
        ops = forwards(self.stage, self.stages, len(batches), self.grid.config.interleave)
        for op, arrived in self.walk(ops, batches):
            batch = batches[op.micro_batch]
            with self.ready(batch) as here, self.autocast():
                made = self.chunk(op, arrived, here)
                if op.chunk == self.last:
                    yield self.judge(made[0], here)
            self.mail.send(op, size(batch), made)

    def walk(self, ops: Sequence[Op], batches: Sequence[Batch]) -> Iterator[tuple[Op, list[Tensor]]]:
        """The operations with what each reads of another stage; meanwhile that of the next comes in."""
        for op, following in zip_longest(ops, ops[1:]):
            arrived = self.mail.receive(op, size(batches[op.micro_batch]))
            if following is not None:
                self.mail.expect(following, size(batches[following.micro_batch]))
            yield op, arrived
        self.mail.finish()

    def go_forward(self, op: Op, arrived: list[Tensor], batch: Batch, scale: Tensor) -> Tensor:
        """One forward; the scaled loss [] of the last chunk, 0 of all others."""
        for tensor in arrived:
            tensor.requires_grad_()
        with self.ready(batch) as here, self.autocast():
            made = self.chunk(op, arrived, here)
            if op.chunk == self.last:
                made = [self.loss(self.model, made[0], here) * scale]
        entries = [get_gradient_edge(tensor) if tensor.requires_grad else None for tensor in made]
        self.held[op.micro_batch, op.chunk] = Held(arrived, entries)
        self.mail.send(op, size(batch), made)
        return made[0].detach() if op.chunk == self.last else torch.zeros_like(scale)

    def chunk(self, op: Op, arrived: list[Tensor], batch: Batch) -> list[Tensor]:
        """What one chunk of the model gives to the next; of the last chunk the hidden states [B, T, D]."""
        made = self.model(op.chunk, arrived, **self.objective.inputs(batch))
        return [*made, *cast(Chain, self.model.forward).passed_on(op.chunk, arrived)]

    def go_backward(self, op: Op, arrived: list[Tensor], batch: Batch) -> None:
        """One backward, from the gradients that `arrived`, or from the loss."""
        received, made = self.held.pop((op.micro_batch, op.chunk))
        gradients = arrived or [torch.ones((), device=self.runtime.device)]
        entries = [(edge, gradient) for edge, gradient in zip(made, gradients, strict=True) if edge]
        if entries:
            with self.ready(batch):  # what is made again attends as it did
                torch.autograd.backward([edge for edge, _ in entries], [gradient for _, gradient in entries])
        self.mail.send(op, size(batch), [gradient_of(tensor) for tensor in received])


def size(batch: Batch) -> tuple[tuple[int, ...], ...]:
    """What the shapes of activations depend on."""
    read = (batch.tokens, batch.extra.get("source"))
    return tuple(tuple(tensor.shape) for tensor in read if tensor is not None)


def gradient_of(tensor: Tensor) -> Tensor:
    """A tensor's gradient, 0 where nothing depends on it."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
