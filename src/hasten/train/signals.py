"""Asking a run to stop: the first signal asks, the second insists."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from hasten.core.console import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 1.0
"""One request may arrive twice: from the terminal or the scheduler, and passed on by the launcher."""


class StopSignals:
    """Within `with`, SIGTERM or SIGINT sets `stopping`; another, a second later, ends the process at once.

    Only the main thread can receive signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.stopping, self.asked = False, 0.0
        self.before: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; do not survive one that comes later than its echo."""
        if self.stopping:
            if time.monotonic() - self.asked >= ECHO_SECONDS:
                os._exit(128 + number)
            return
        self.stopping, self.asked = True, time.monotonic()
        say(f"\n{signal.Signals(number).name}: saving after this step; once more stops without saving")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
