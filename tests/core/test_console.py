"""The live line of a stage, on a terminal and in a log file."""

import pytest

from hasten.core import console
from hasten.core.console import Progress, bar, clock


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves: `now[0] += seconds`."""
    moment = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: moment[0])
    return moment


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (59.4, "0:59"), (65, "1:05"), (3599.6, "1:00:00"), (90_061, "25:01:01")]
)
def test_a_clock_shows_hours_only_where_there_are_any(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("share, full", [(0, 0), (0.5, 8), (1, 16)])
def test_a_bar_fills_with_its_share(share, full):
    assert bar(share) == "━" * full + "╌" * (16 - full)


def test_the_line_says_stage_share_figures_and_time_left(now):
    progress = Progress("train", total=1000, unit="steps")
    now[0] += 60
    progress.update(400, loss="3.21", tokens_per_second="5,130")
    line = progress.line()
    for part in ("train", "40%", "400/1,000 steps", "loss 3.21", "tokens per second 5,130", "ETA 1:30"):
        assert part in line


def test_nothing_is_promised_where_the_end_is_unknown(now):
    progress = Progress("prepare", unit="documents")
    now[0] += 60
    progress.update(5)
    assert progress.remaining_seconds() is None
    assert "%" not in progress.line() and "ETA" not in progress.line()


def test_more_than_all_is_shown_as_all(now):
    progress = Progress("train", total=10)
    now[0] += 1
    progress.update(12)
    assert "100%" in progress.line()
    assert progress.remaining_seconds() == 0


def test_a_log_file_gets_a_line_every_ten_seconds_and_the_last(now, capsys):
    with Progress("train", total=100, unit="steps") as progress:
        for step in range(101):
            now[0] += 0.25
            progress.update(step)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # at 10 s, at 20 s and at the end, of 25 s
    assert "100/100 steps" in lines[-1]
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_a_terminal_gets_one_line_that_is_redrawn_four_times_a_second(now, capsys, monkeypatch):
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
    with Progress("train", total=100) as progress:
        for step in range(101):
            now[0] += 0.05
            progress.update(step)
    out = capsys.readouterr().out
    assert out.count("\r\x1b[2K") == pytest.approx(5.05 / 0.25, abs=3)
    assert out.count("\n") == 1
