"""How the forward and backward of a step are run: on which device, in which precision, compiled or not."""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hasten.core.batch import Batch
from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime, has_fast_bf16
from hasten.objective.protocol import Objective
from hasten.parallel.gradients import sum_gradients


class Engine(Protocol):
    """Whatever can run a step's forward and backward."""

    model: nn.Module
    objective: Objective
    runtime: Runtime

    def run(self, batches: Sequence[Batch], scale: Tensor) -> Tensor:
        """Leave the gradient of the group's summed loss times `scale` in `.grad`; return this rank's share.

        The share of the loss is [], in float32 on the device.
        """
        ...

    def measure(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """This rank's summed loss [] and count [], without dropout and without gradients."""
        ...


class Whole:
    """The whole model on one device; ranks share the batch and add up their gradients."""

    def __init__(
        self, model: nn.Module, objective: Objective, runtime: Runtime, *, precision: str, compiled: bool
    ) -> None:
        self.model, self.objective, self.runtime, self.precision = model, objective, runtime, precision
        self.loss = torch.compile(objective.loss) if compiled else objective.loss
        if compiled:
            compile_blocks(model)

    def run(self, batches: Sequence[Batch], scale: Tensor) -> Tensor:
        """Forward and backward of each micro-batch, then one sum of gradients over the group."""
        self.model.train()
        total = torch.zeros((), device=self.runtime.device)
        for batch in batches:
            loss = self.forward(batch) * scale
            loss.backward()
            total += loss.detach()
        sum_gradients([p for p in self.model.parameters() if p.requires_grad], self.runtime.group)
        return total

    @torch.no_grad()
    def measure(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Summed loss and count of this rank's batches, with the model in evaluation mode."""
        training = self.model.training
        self.model.eval()
        total, count = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)
        for batch in batches:
            total += self.forward(batch)
            count += self.objective.count(batch)
        self.model.train(training)
        return total, count

    def forward(self, batch: Batch) -> Tensor:
        """The summed loss [] of one micro-batch."""
        # The names of documents stay behind: a compiled loss would be made anew for each of them.
        batch = self.objective.enrich(replace(batch, documents=()).to(self.runtime.device))
        with self.autocast():
            hidden = self.model(**self.objective.inputs(batch))
            return self.loss(self.model, hidden, batch)

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in bf16 on fp32 weights, or everything in fp32."""
        return torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def pinned(batch: Batch) -> Batch:
    """The batch in memory that a GPU reads by itself, so that moving it there keeps no one waiting."""
    tensors: dict[str, Any] = {k: v.pin_memory() for k, v in vars(batch).items() if isinstance(v, Tensor)}
    extra = {name: tensor.pin_memory() for name, tensor in batch.extra.items()}
    return replace(batch, **tensors, extra=extra)


def choose_precision(asked: str, device: torch.device) -> str:
    """`auto` is bf16 where it is faster than fp32."""
    if asked != "auto":
        return asked
    return "bf16" if has_fast_bf16(device) else "fp32"


def compile_blocks(model: nn.Module) -> None:
    """Compile each block by itself: blocks are alike, so one compilation serves them all."""
    layers = model.layers
    assert isinstance(layers, nn.ModuleDict)
    for block in layers.values():
        block.compile(dynamic=False)


COMPILE_SECONDS = 60.0
"""What compiling costs on a cold cache: 25 to 90 s were seen on two CPU cores."""
COMPILE_GAIN = 0.2
"""Share of a step's time that it saves: 1.15x to 1.3x were seen."""


def choose_compile(asked: str, device: torch.device, expected_seconds: float) -> tuple[bool, str]:
    """Whether to compile, and why, in words; `auto` compiles where that earns back its time."""
    missing = missing_toolchain(device)
    if asked == "off":
        return False, "train.compile is off"
    if asked == "on":
        if missing:
            raise ConfigError(f"train.compile: 'on' needs {missing} and none was found; write off or auto")
        return True, "train.compile is on"
    if missing:
        return False, f"{missing} is needed and none was found"
    shortest = COMPILE_SECONDS / COMPILE_GAIN
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
