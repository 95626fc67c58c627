"""How the forward and backward of a step are run: on which device, in which precision, compiled or not."""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hasten.adapt.float8 import use_float8
from hasten.core.batch import Batch
from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime, has_fast_bf16, has_float8
from hasten.model.transformer import Transformer
from hasten.objective.protocol import Objective
from hasten.ops.flex import DocumentAttention
from hasten.ops.kernels.library import library
from hasten.parallel.arrangement import Arrangement
from hasten.parallel.context import split_batch
from hasten.parallel.fsdp import forget_whole, sum_at
from hasten.parallel.gradients import sum_gradients


class Engine(Protocol):
    """Whatever can run a step's forward and backward."""

    model: nn.Module
    objective: Objective
    runtime: Runtime
    arrangement: Arrangement

    def run(self, batches: Sequence[Batch], scale: Tensor) -> Tensor:
        """Leave the gradient of the group's summed loss times `scale` in `.grad`; return this rank's share.

        The share of the loss is [], in float32 on the device; those of all processes add up to it.
        """
        ...

    def measure(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's share of loss [], count [] and correct guesses [], without dropout and gradients."""
        ...


class Whole:
    """All layers on one device, whole or a part of each; processes share the batch and add up gradients.

    `packed` says that rows may hold several documents: all batches then look alike to compiled code.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        runtime: Runtime,
        *,
        precision: str,
        compiled: bool,
        packed: bool = False,
        arrangement: Arrangement | None = None,
    ) -> None:
        self.arrangement = arrangement or Arrangement.of(model, runtime)
        self.grid = self.arrangement.grid
        self.model, self.objective, self.runtime, self.precision = model, objective, runtime, precision
        self.alike = compiled and packed
        rings = self.grid.degrees["context"] > 1
        self.documents = DocumentAttention() if can_skip_tiles(runtime.device) and not rings else None
        if self.documents is not None:
            attend_by(model, self.documents)
        if precision == "fp8":
            use_float8(model)
        self.loss = torch.compile(objective.loss) if compiled else objective.loss
        if compiled:
            compile_blocks(model)

    def run(self, batches: Sequence[Batch], scale: Tensor) -> Tensor:
        """Forward and backward of each micro-batch, then one sum of gradients over the group."""
        self.model.train()
        total = torch.zeros((), device=self.runtime.device)
        for number, batch in enumerate(batches, 1):
            sum_at(self.model, number == len(batches), self.grid.config.stage)
            with self.ready(batch) as here:
                loss = self.forward(here) * scale
                loss.backward()
            total += loss.detach()
        sum_gradients(self.model, self.arrangement)
        return self.share(total)

    @torch.no_grad()
    def measure(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss, count and correct guesses of this rank's batches; the model is in evaluation mode."""
        training = self.model.training
        self.model.eval()
        figures = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)
        for loss_and_correct in self.judged(batches):
            figures += loss_and_correct
        forget_whole(self.model)
        self.model.train(training)
        total, correct = self.share(figures)
        return total, count_of(self, batches), correct

    def judged(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """Summed loss and correct guesses [2] of each batch whose hidden states come out here."""
        for batch in batches:
            with self.ready(batch) as here, self.autocast():
                yield self.judge(self.model(**self.objective.inputs(here)), here)

    def judge(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Summed loss and correct guesses, [2] in float64, of a batch that is `ready`."""
        loss = self.loss(self.model, hidden, batch)
        return torch.stack([loss.double(), self.objective.correct(self.model, hidden, batch).double()])

    def share(self, figure: Tensor) -> Tensor:
        """This process's share of a figure that all parts of a matrix have alike."""
        return figure if self.grid.place["tensor"] == 0 else torch.zeros_like(figure)

    @contextmanager
    def ready(self, batch: Batch) -> Iterator[Batch]:
        """One micro-batch on the device, in the form in which all are, and attention set to its documents."""
        # The names of documents stay behind: a compiled loss would be made anew for each of them.
        batch = replace(batch, documents=()).to(self.runtime.device)
        batch = self.objective.enrich(with_segments(batch) if self.alike else batch)
        batch = split_batch(batch, self.grid.place["context"], self.grid.degrees["context"])
        if self.documents is None:
            yield batch
            return
        with self.documents.over(batch.segments):
            yield batch

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss [] of one micro-batch that is `ready`."""
        with self.autocast():
            hidden = self.model(**self.objective.inputs(batch))
            return self.loss(self.model, hidden, batch)

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in bf16 on fp32 weights, or everything in fp32."""
        return torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=self.precision != "fp32")


def count_of(engine: Engine, batches: Sequence[Batch]) -> Tensor:
    """This process's share [] of what the loss sums over, on the device; of equal rows one counts them."""
    count = torch.stack([engine.objective.count(batch) for batch in batches]).sum()
    count = count if engine.arrangement.grid.speaks_for_rows else torch.zeros_like(count)
    return count.to(engine.runtime.device, non_blocking=True)  # else a GPU's queue would run empty here


def with_segments(batch: Batch) -> Batch:
    """The same batch with its segments and positions written out: with and without are two graphs."""
    if batch.segments is not None:
        return batch
    length = batch.tokens.shape[1]
    positions = torch.arange(length, device=batch.tokens.device).expand_as(batch.tokens).contiguous()
    return replace(batch, segments=torch.ones_like(batch.tokens), positions=positions)


def can_skip_tiles(device: torch.device) -> bool:
    """Whether FlexAttention has its kernels here."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def attend_by(model: nn.Module, attention: DocumentAttention) -> None:
    """Put one attention into the sockets of all layers."""
    for block in cast(Transformer, model).blocks():
        block.attention.attend = attention


def pinned(batch: Batch) -> Batch:
    """The batch in memory that a GPU reads by itself, so that moving it there keeps no one waiting."""
    tensors: dict[str, Any] = {k: v.pin_memory() for k, v in vars(batch).items() if isinstance(v, Tensor)}
    extra = {name: tensor.pin_memory() for name, tensor in batch.extra.items()}
    return replace(batch, **tensors, extra=extra)


def choose_precision(asked: str, device: torch.device) -> str:
    """`auto` is bf16 where it is faster than fp32."""
    if asked == "fp8" and not has_float8(device):
        raise ConfigError(
            "train.precision: fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper and later), and"
            f" {device} is none; write bf16 or auto"
        )
    if asked != "auto":
        return asked
    return "bf16" if has_fast_bf16(device) else "fp32"


def compile_blocks(model: nn.Module) -> None:
    """Compile each block by itself: blocks are alike, so one compilation serves them all."""
    for block in cast(Transformer, model).blocks():
        block.compile(dynamic=False)


COLD_SECONDS, WARM_SECONDS = 60.0, 8.0
"""What compiling costs: 25 to 90 s were seen on two CPU cores, and 3 to 8 s where all is in the cache."""
COMPILE_GAIN = 0.2
"""Share of a step's time that it saves: 1.15x to 1.3x were seen."""


def choose_compile(
    asked: str, device: torch.device, expected_seconds: float, *, warm: bool = False
) -> tuple[bool, str]:
    """Whether to compile, and why, in words; `auto` compiles where that earns back its time.

    `warm` says that the compiler's cache holds this very model.
    """
    missing = missing_toolchain(device)
    if asked == "off":
        return False, "train.compile is off"
    if asked == "on":
        if missing:
            raise ConfigError(f"train.compile: 'on' needs {missing} and none was found; write off or auto")
        return True, "train.compile is on"
    if device.type == "cpu" and library() is not None:
        return False, "the kernels made for this processor are as fast and are there at once"
    if missing:
        return False, f"{missing} is needed and none was found"
    shortest = (WARM_SECONDS if warm else COLD_SECONDS) / COMPILE_GAIN
    if expected_seconds < shortest:
        return (
            False,
            f"a run of about {expected_seconds:,.0f} s is under the {shortest:,.0f} s that earn it back",
        )
    return True, f"a run of about {expected_seconds:,.0f} s earns it back"


def missing_toolchain(device: torch.device) -> str | None:
    """What inductor needs on this device and does not find, in words, or None."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton"
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    return None if any(map(shutil.which, compilers)) else "a C++ compiler"
