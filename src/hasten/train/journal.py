"""What a run tells about itself, on rank 0 alone: metrics.jsonl, quarantine.jsonl, the live line."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hasten.core.console import Progress, clock, say
from hasten.train.metrics import MetricsLog
from hasten.train.plan import Plan
from hasten.train.quarantine import Quarantine


class Journal:
    """The run's files of lines, and the line that a person watches; on other ranks it says nothing."""

    def __init__(self, folder: Path, plan: Plan, *, tensorboard: bool, leads: bool) -> None:
        self.plan, self.leads = plan, leads
        self.shown: dict[str, str] = {}
        if leads:
            self.log = MetricsLog(folder / "metrics.jsonl", tensorboard)
            self.quarantine = Quarantine(folder / "quarantine.jsonl")

    def __enter__(self) -> "Journal":
        """The live line begins."""
        if self.leads:
            self.progress = Progress("train", self.plan.horizon.total, self.plan.horizon.unit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.leads:
            self.progress.__exit__(kind, value, trace)
            self.log.close()

    def say(self, text: str) -> None:
        """A plain line on the console."""
        if self.leads:
            say(text)

    def write(self, step: int, kind: str, figures: Mapping[str, Any]) -> None:
        """A line of metrics; the best known of its figures are shown live from now on."""
        if not self.leads:
            return
        self.log.write(step, kind, figures)
        spelt = {"loss": ".3f", "validation_loss": ".3f", "validation_accuracy": ".1%", "score": ".1f"}
        spelt |= {"tokens_per_second": ",.0f", "mfu": ".0%"}
        words = {"validation_accuracy": "accuracy", "tokens_per_second": "tokens/s", "mfu": "MFU"}
        for name, spelling in spelt.items():
            if figures.get(name) is not None:
                self.shown[words.get(name, name)] = format(figures[name], spelling)

    def show(self, step: int, elapsed: float, step_seconds: float) -> None:
        """Bring the live line up to date."""
        if not self.leads:
            return
        horizon = self.plan.horizon
        timed = horizon.unit == "s"
        left = horizon.total - elapsed if timed else (horizon.total - step) * step_seconds
        self.progress.update(
            elapsed if timed else step, step=f"{step:,}", **self.shown, ETA=clock(max(left, 0))
        )

    def skipped(
        self, step: int, data_step: int, documents: tuple[str, ...], loss: float, norm: float
    ) -> None:
        """Record a step that was not finite, and so changed nothing."""
        if self.leads:
            self.quarantine.write(step, data_step, documents, loss, norm)
            say(
                f"step {step} changed nothing: its loss is {loss:g} and its gradient norm {norm:g}; the"
                f" documents of the batch are in {self.quarantine.path}"
            )

    def keep(self, step: int) -> None:
        """Forget the lines of later steps: they will be written anew."""
        if self.leads:
            self.log.keep(step)

    def sync(self) -> None:
        """Flush the lines to the disk."""
        if self.leads:
            self.log.sync()
