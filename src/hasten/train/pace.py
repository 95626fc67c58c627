"""How fast a run goes: seconds a step for its plans, throughput and MFU for its lines."""

import time
from collections import deque
from statistics import median

import torch

from hasten.train.metrics import Meter, Window, measure_peak
from hasten.train.plan import Plan
from hasten.train.step import Outcome

RECENT = 9  # steps


class Pace:
    """Means over the steps since the last line, and the seconds of the last few steps.

    `flops_per_token` are those of the model in training, `peak` the FLOP/s of all ranks together.
    """

    def __init__(self, device: torch.device, plan: Plan, flops_per_token: int, world_size: int) -> None:
        self.device, self.plan = device, plan
        self.flops_per_token, self.world_size = flops_per_token, world_size
        self.meter = Meter(device)
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.peak = 0.0

    @property
    def step_seconds(self) -> float:
        """What a step takes now; 0 before the first."""
        return median(self.recent) if self.recent else 0.0

    def add(self, outcome: Outcome, began: float) -> None:
        """A step that began at `began` by `time.perf_counter()` is over."""
        self.recent.append(time.perf_counter() - began)
        self.meter.add(outcome, self.plan.batch_tokens, self.recent[-1])

    def restore(self, window: Window) -> None:
        """Go on from a saved window."""
        self.meter.start(window)

    def take(self) -> dict[str, float | None]:
        """The figures of a line; the device is waited for."""
        figures = self.meter.take()
        rate = figures["tokens_per_second"]
        return {**figures, "mfu": self.share_of_peak(rate * self.flops_per_token) if rate else None}

    def share_of_peak(self, flops_per_second: float) -> float:
        """MFU.  Above one, the peak was measured while others had the processors: it is measured again."""
        if flops_per_second > self.peak:
            again = measure_peak(self.device, self.plan.precision) * self.world_size
            self.peak = max(self.peak, again)
        return flops_per_second / self.peak
