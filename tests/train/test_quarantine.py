"""The record of bad batches, and the signals that stop a run."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from hasten.train.quarantine import Quarantine
from hasten.train.signals import SIGNALS, StopSignals

NAN, INF = float("nan"), float("inf")


def test_a_bad_batch_is_written_once_with_its_documents_and_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).write(3, 5, ("b.txt", "a.txt", "b.txt"), NAN, INF)
    again = Quarantine(path)  # as after a crash: the run meets the same batch again
    again.write(3, 5, ("b.txt", "a.txt"), NAN, INF)
    again.write(3, 6, ("ü.txt",), 1.5, INF)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"step": 3, "data_step": 5, "loss": None, "grad_norm": None, "documents": ["a.txt", "b.txt"]},
        {"step": 3, "data_step": 6, "loss": 1.5, "grad_norm": None, "documents": ["ü.txt"]},
    ]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_handlers_of_before_come_back(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.stopping
        os.kill(os.getpid(), number)
        assert signals.stopping
    assert signal.getsignal(number) is before
    assert f"{number.name}: saving after this step" in capsys.readouterr().out


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    errors: list[Exception] = []

    def enter() -> None:
        try:
            with StopSignals():
                assert [signal.getsignal(number) for number in SIGNALS] == before
        except Exception as error:  # a thread's failure must reach the test
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors
