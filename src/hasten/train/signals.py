"""Asking a run to stop: the first signal asks, the second insists."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from hasten.core.console import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Within `with`, SIGTERM or SIGINT sets `stopping`; a second one ends the process at once.

    Only the main thread can receive signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.before: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; do not survive the second."""
        if self.stopping:
            os._exit(128 + number)
        self.stopping = True
        say(f"\n{signal.Signals(number).name}: saving after this step; once more stops without saving")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
