"""What a person sees while hasten works: one live line a stage, and plain lines where nobody watches.

On a terminal the line is redrawn four times a second; in a log file one line appears every ten seconds.
"""

import sys
import time
from types import TracebackType

QUIET_SECONDS, LIVE_SECONDS = 10.0, 0.25


def say(text: str = "") -> None:
    """Print one line to standard output at once."""
    print(text, flush=True)


class Progress:
    """A stage's live line: `with Progress("train", total=1000) as progress: progress.update(10, loss="3.2")`.

    `total` is in `unit`s, None when nobody knows it.  `update` is cheap: most calls only look at a clock.
    """

    def __init__(self, stage: str, total: float | None = None, unit: str = "") -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.live = sys.stdout.isatty()
        self.started = self.shown = time.monotonic()
        self.done, self.figures = 0.0, dict[str, str]()

    def update(self, done: float, **figures: str) -> None:
        """Note that `done` of `total` is done, with named figures to show beside it."""
        self.done, self.figures = done, figures
        now = time.monotonic()
        if now - self.shown >= (LIVE_SECONDS if self.live else QUIET_SECONDS):
            self.shown = now
            self.draw()

    def add(self, more: float) -> None:
        """Note that so much more is done."""
        self.update(self.done + more, **self.figures)

    def draw(self) -> None:
        """Show the line as it stands."""
        if self.live:
            sys.stdout.write(f"\r\x1b[2K{self.line()}")
            sys.stdout.flush()
        else:
            say(self.line())

    def line(self) -> str:
        """`train  42%  step 420/1,000  loss 3.21  5,130 tokens/s  ETA 1:05`."""
        parts = [f"{self.stage:<9}"]
        if self.total:
            share = min(self.done / self.total, 1.0)
            parts.append(f"{share:4.0%} {bar(share)}")
        if self.unit:
            parts.append(f"{self.done:,.0f}{f'/{self.total:,.0f}' if self.total else ''} {self.unit}")
        parts += [f"{name.replace('_', ' ')} {figure}" for name, figure in self.figures.items()]
        if "ETA" not in self.figures and (eta := self.remaining_seconds()) is not None:
            parts.append(f"ETA {clock(eta)}")
        return "  ".join(parts)

    def remaining_seconds(self) -> float | None:
        """What is left at the pace so far, in seconds."""
        if not self.total or self.done <= 0:
            return None
        return (time.monotonic() - self.started) * max(self.total / self.done - 1, 0.0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.draw()
        if self.live:
            sys.stdout.write("\n")


def bar(share: float, width: int = 16) -> str:
    """`bar(0.5)` -> half of a bar."""
    full = round(share * width)
    return "━" * full + "╌" * (width - full)


def clock(seconds: float) -> str:
    """`clock(65)` -> `1:05`; hours appear when there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
