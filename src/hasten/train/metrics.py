"""What a run measures of itself: lines in metrics.jsonl, means between them, throughput, MFU."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import DataError, MissingExtraError
from hasten.core.files import write_text
from hasten.train.step import Outcome

Figures = Mapping[str, Any]


class MetricsLog:
    """A run's metrics.jsonl: one JSON object a line, each with its `step` and `kind`, in the order of events.

    A line reaches the operating system before `write` returns, so that a killed process loses none.  `keep`
    cuts the file back to what a checkpoint knows of: the lines after it will be written anew.
    """

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.events = Events(path.parent / "tensorboard") if tensorboard else None

    def write(self, step: int, kind: str, figures: Figures) -> None:
        """Append a line; a figure that is not finite becomes null, which JSON has a word for."""
        line = {"step": step, "kind": kind, **{name: finite(value) for name, value in figures.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        if self.events is not None:
            self.events.write(step, kind, line)

    def sync(self) -> None:
        """Flush every line to the disk: what a checkpoint counts on must outlast a power cut."""
        if self.path.exists():
            with self.path.open("ab") as file:
                os.fsync(file.fileno())

    def keep(self, step: int) -> None:
        """Drop the lines of later steps and a last line that was cut short by a crash."""
        if self.path.exists():
            kept = [line for line in read_lines(self.path) if line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        if self.events is not None:
            self.events.keep(step)

    def close(self) -> None:
        """Finish the event files."""
        if self.events is not None:
            self.events.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line without its end, as a crash leaves it, is not one."""
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
            lines.append({"step": int(line["step"]), **line})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(
                f"{path}:{number}: is no line of metrics, {text[:40]!r}; remove it or bring the file back"
            ) from None
    return lines


def finite(value: Any) -> Any:
    """The value, or None for a float that JSON cannot hold."""
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value


class Events:
    """TensorBoard event files of the same figures."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (an extra)
        except ImportError:
            raise MissingExtraError("tensorboard", "tensorboard", "train.tensorboard") from None
        self.folder = folder
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, kind: str, figures: Figures) -> None:
        """One scalar for each number."""
        for name, value in figures.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(f"{kind}/{name}", value, step)
        self.writer.flush()

    def keep(self, step: int) -> None:
        """Tell readers to forget what came after `step`: event files are never rewritten."""
        self.close()
        self.__init__(self.folder, purge_step=step + 1)  # type: ignore[misc]

    def close(self) -> None:
        """Finish the file."""
        self.writer.close()


@dataclass
class Window:
    """Figures of the steps since the last line, as plain numbers: part of a checkpoint's state."""

    loss_sum: float = 0.0
    good_steps: int = 0
    norm: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


class Meter:
    """Means from one log line to the next.

    Sums stay on the device until a line is due; only then is the device waited for.  Steps that were not
    finite count into throughput and not into the loss.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start(Window())

    def start(self, window: Window) -> None:
        """Go on from `window`."""
        self.tokens, self.seconds = window.tokens, window.seconds
        self.loss_sum = torch.tensor(window.loss_sum, dtype=torch.float64, device=self.device)
        self.good_steps = torch.tensor(window.good_steps, device=self.device)
        self.norm = torch.tensor(window.norm, dtype=torch.float64, device=self.device)

    def add(self, outcome: Outcome, tokens: int, seconds: float) -> None:
        """Note a step of so many tokens that took so long."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self.loss_sum += outcome.loss.double().masked_fill(~outcome.finite, 0.0)
        self.good_steps += outcome.finite
        self.norm = torch.where(outcome.finite, outcome.norm.double(), self.norm)

    def read(self) -> Window:
        """The figures as numbers; waits for the device."""
        loss_sum, good_steps, norm = torch.stack(
            [self.loss_sum, self.good_steps.double(), self.norm]
        ).tolist()
        return Window(loss_sum, int(good_steps), norm, self.tokens, self.seconds)

    def take(self) -> dict[str, float | None]:
        """Mean loss, last finite gradient norm and tokens per second of the window, which begins anew."""
        window = self.read()
        self.start(Window())
        return {
            "loss": window.loss_sum / window.good_steps if window.good_steps else None,
            "grad_norm": window.norm if window.good_steps else None,
            "tokens_per_second": window.tokens / window.seconds if window.seconds else None,
        }


def measure_peak(device: torch.device, precision: str, seconds: float = 0.5) -> float:
    """The best rate of a large matrix product here, in FLOP/s: what MFU is a share of.

    On a CPU a product takes about a millisecond, so that some fall between the turns of other processes.
    """
    size = 8192 if device.type == "cuda" else 512
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    # Random numbers: equal ones take a GPU less power, and it runs faster than it ever does in training.
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=draw).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, timed_product(a, b))
    return 2 * size**3 / best


def timed_product(a: Tensor, b: Tensor) -> float:
    """Seconds of one product, the device's queue empty before and after."""
    wait = torch.cuda.synchronize if a.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    torch.mm(a, b)
    wait()
    return time.perf_counter() - start
