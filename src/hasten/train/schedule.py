"""Learning-rate schedules as pure functions: (progress, step) -> a multiplier on every learning rate.

`progress` is the share of the run that lies behind, 0 at the first step and (N - 1) / N at the last of
N steps; it may come from a count of steps or from a clock.  The warm-up is counted in steps and multiplies
the rest, so that nothing needs to know how many steps there will be.
"""

from math import cos, pi
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from hasten.core.config import Config

Share = Annotated[float, Field(ge=0, le=1)]


class Shape(Config):
    """What every schedule has: a linear warm-up over the first steps."""

    warmup_steps: NonNegativeInt = Field(
        default=20, description="step s gets (s + 1) / warmup_steps of the rate"
    )

    def multiplier(self, progress: float, step: int) -> float:
        """What to multiply the learning rates with at this step, in [0, 1]."""
        ramp = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return ramp * self.shape(min(max(progress, 0.0), 1.0))

    def shape(self, progress: float) -> float:
        """The schedule after warm-up."""
        raise NotImplementedError


class WSD(Shape):
    """Warm up, stay, decay (Hu et al. 2024): constant, then linear over the last `decay_share` of the run.

    Runs of several lengths share their constant part, so a longer one can start from a shorter one's.
    """

    kind: Literal["wsd"] = "wsd"
    decay_share: Share = Field(default=0.5, gt=0, description="share of the run in which the rate falls")
    final: Share = Field(default=0.0, description="multiplier at the very end")

    def shape(self, progress: float) -> float:
        left = min(1.0, (1 - progress) / self.decay_share)
        return self.final + (1 - self.final) * left


class Cosine(Shape):
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    final: Share = Field(default=0.1, description="multiplier at the very end")

    def shape(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + cos(pi * progress)) / 2


class Linear(Shape):
    """A straight line from 1 to `final`."""

    kind: Literal["linear"] = "linear"
    final: Share = Field(default=0.0, description="multiplier at the very end")

    def shape(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 - progress)


class Constant(Shape):
    """The same rate throughout, after warm-up."""

    kind: Literal["constant"] = "constant"

    def shape(self, progress: float) -> float:
        return 1.0


Schedule = Annotated[WSD | Cosine | Linear | Constant, Field(discriminator="kind")]
