"""When a run ends, and when it pauses to look at itself or to save.  All times are seconds of the run."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

Every = int | Literal["auto"] | None


@dataclass(frozen=True)
class Moment:
    """Where a run stands between two steps; equal on all ranks."""

    step: int  # steps taken
    elapsed: float  # seconds, those before a resume included
    progress: float  # share of the run that lies behind, for the schedule
    ended: bool  # nothing is left to train


class Horizon(Protocol):
    """How long a run is."""

    @property
    def unit(self) -> str:
        """What it counts: `steps` or `s`."""
        ...

    @property
    def total(self) -> float:
        """How many of them there are."""
        ...

    def moment(self, step: int, elapsed: float, *, reserve: float = 0, step_seconds: float = 0) -> Moment:
        """Where a run stands after so many steps and seconds."""
        ...


@dataclass(frozen=True)
class Steps:
    """A number of steps."""

    total: float
    unit: str = "steps"

    def moment(self, step: int, elapsed: float, *, reserve: float = 0, step_seconds: float = 0) -> Moment:
        """Progress counts steps."""
        return Moment(step, elapsed, min(step / self.total, 1.0), ended=step >= self.total)


@dataclass(frozen=True)
class Clock:
    """A time, from the start of the run until everything is saved.

    The schedule follows the clock, so it is complete whatever a step costs.  `reserve` is set aside for what
    comes after the last step, as long as it took before.  Another step is taken if half of it still fits: on
    average runs then end in time.
    """

    total: float
    unit: str = "s"

    def moment(self, step: int, elapsed: float, *, reserve: float = 0, step_seconds: float = 0) -> Moment:
        """Progress counts the time in which steps are taken."""
        for_steps = max(self.total - reserve, 1e-9)
        ended = step > 0 and elapsed + step_seconds / 2 >= for_steps
        return Moment(step, elapsed, min(elapsed / for_steps, 1.0), ended)


@dataclass(frozen=True)
class Cadence:
    """When something is due again: every so many steps, or `auto`, ten times a run and every `seconds`.

    It is due before the first step (except for None) and after the last, once each.
    """

    every: Every
    seconds: float = float("inf")
    last_step: int = -1
    last_tenth: int = -1
    last_elapsed: float = 0.0

    def due(self, moment: Moment) -> bool:
        """Whether it is time."""
        if moment.step == self.last_step:
            return False
        if moment.ended:
            return True
        if self.every is None:
            return False
        if self.every == "auto":
            late = moment.elapsed - self.last_elapsed >= self.seconds
            return late or int(10 * moment.progress) > self.last_tenth
        return moment.step // self.every > self.last_step // self.every

    def done(self, moment: Moment) -> "Cadence":
        """The same cadence, after it was done at `moment`."""
        tenth = int(10 * moment.progress)
        return replace(self, last_step=moment.step, last_tenth=tenth, last_elapsed=moment.elapsed)

    def state(self) -> dict[str, Any]:
        """What `restored` needs: JSON."""
        return {"last_step": self.last_step, "last_tenth": self.last_tenth, "last_elapsed": self.last_elapsed}

    def restored(self, state: dict[str, Any]) -> "Cadence":
        """The same cadence, where `state` left it."""
        return replace(self, **state)
