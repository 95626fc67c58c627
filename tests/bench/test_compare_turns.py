"""Systems take turns: no step before its turn, hasten in every heat, and nothing left out in silence."""

import io
import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from peers import comparison, turns
from peers.comparison import Comparison, Terms
from peers.process import MissingError, Worker, WorkerError
from peers.shapes import SHAPES
from peers.systems import System

TINY = SHAPES["tiny"]


class Listener:
    """A voice that is heard at once."""

    def __init__(self) -> None:
        self.said: list[dict] = []

    def tell(self, **what: object) -> None:
        self.said.append(what)


class EndError(Exception):
    """The process would have ended here."""


@pytest.fixture
def commanded(monkeypatch):
    """`commanded("2\\n1\\n")` is what stdin will say; the end of the process is an EndError."""

    def leave(_: int) -> None:
        raise EndError

    monkeypatch.setattr(os, "_exit", leave)
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def run_loop(asked: turns.Turns, ahead: int) -> list[str]:
    """A loop that reads `ahead` batches ahead; what happened, in order."""
    events, ready = [], 0
    with pytest.raises(EndError):
        while True:
            while ready <= ahead:
                asked.wait()
                events.append("read")
                ready += 1
            asked.note_update()
            events.append("step")
            ready -= 1
    return events


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_turn_has_as_many_updates_as_steps_were_asked_for(commanded, ahead):
    commanded("1\n2\n3\n")
    voice = Listener()
    events = run_loop(turns.Turns(voice, ahead), ahead)
    assert [(said["steps"], said["updates"]) for said in voice.said] == [(1, 1), (2, 2), (3, 3)]
    assert events.count("step") == 6


def test_a_step_before_the_first_turn_is_an_error(commanded):
    commanded("1\n")
    asked = turns.Turns(Listener(), ahead=1)
    asked.wait()
    asked.note_update()
    with pytest.raises(RuntimeError, match="`ahead` is too large"):
        asked.wait()


def test_only_the_first_row_of_a_batch_waits(commanded):
    commanded("2\n")
    rows = turns.Rows(TINY, turns.Turns(Listener()))
    read = [rows[i] for i in range(2 * TINY.rows)]
    assert torch.equal(torch.stack(read), turns.random_rows(TINY)[: 2 * TINY.rows])
    with pytest.raises(EndError):
        rows[2 * TINY.rows]


class Fake:
    """A worker that needs no process: a family is a number of seconds a step."""

    alive: ClassVar[list["Fake"]] = []
    most = 0

    def __init__(self, family: str, shape: str, options: dict, **_: object) -> None:
        if family == "absent":
            raise MissingError("No module named 'absent'")
        self.family, self.started, self.turns = family, 0.0, 0
        self.busy = options.get("busy", 0)
        self.hello = {"parameters": 1, "baseline_bytes": 1, "versions": {}}
        Fake.alive.append(self)
        Fake.most = max(Fake.most, len(Fake.alive))

    def turn(self, steps: int = 1) -> dict:
        self.turns += 1
        if self.family == "dies" and self.turns > 4:
            raise WorkerError("its last words")
        if self.family == "peak":
            return {"rates": {"512x512x512": 1e12}, "others": 0.0, "seconds": 1.0, "steps": 1}
        seconds = 1.0 if self.family == "hasten" else 2.0
        return {"seconds": seconds * steps, "steps": steps, "others": float(3 < self.turns <= 3 + self.busy)}

    def costs(self) -> dict:
        return {"peak_bytes": 10, "tree_peak_bytes": 10, "idle_cores": 0.0}

    def stop(self) -> None:
        if self in Fake.alive:
            Fake.alive.remove(self)


@pytest.fixture
def compared(monkeypatch, tmp_path):
    """`compared(systems, room=...)` runs a comparison of fakes with room for so many at once."""

    def run(systems: list[System], room: int = 99, peers: str | None = "python", seconds: float = 1e6):
        monkeypatch.setattr(comparison, "Worker", Fake)
        monkeypatch.setattr(Fake, "alive", [])
        monkeypatch.setattr(Fake, "most", 0)
        monkeypatch.setattr(Comparison, "room", lambda _, heat: len(heat) < room)
        held = Comparison(systems, Terms("tiny", 3, 6, seconds, peers), tmp_path)
        held.run()
        assert not Fake.alive, "every process is ended"
        return held

    return run


HASTEN = System("hasten", "hasten", {})


def peers(count: int) -> list[System]:
    return [System(f"peer {i}", "peer", {}) for i in range(count)]


def test_everybody_gets_the_repeats_that_were_asked_for(compared):
    held = compared([HASTEN, *peers(2)])
    assert {name: len(member.repeats) for name, member in held.members.items()} == {
        "hasten": 3,
        "peer 0": 3,
        "peer 1": 3,
    }
    assert {r["round"] for r in held.members["hasten"].repeats} == {0, 1, 2}
    assert len(held.readings) == 6  # two a round


def test_where_memory_is_short_hasten_is_in_every_heat(compared):
    held = compared([HASTEN, *peers(4)], room=3)
    assert Fake.most == 3 + 1  # and the peak
    ours = {r["round"] for r in held.members["hasten"].repeats}
    for i in range(4):
        rounds = {r["round"] for r in held.members[f"peer {i}"].repeats}
        assert len(rounds) == 3
        assert rounds <= ours


def test_disturbed_turns_are_taken_again_beside_hasten(compared):
    held = compared([HASTEN, System("peer 0", "peer", {"busy": 2}), *peers(3)[1:]])
    disturbed = held.members["peer 0"].repeats
    assert [r["disturbed"] for r in disturbed] == [True, True, False, False, False]
    assert {r["round"] for r in disturbed} <= {r["round"] for r in held.members["hasten"].repeats}
    assert len(held.members["peer 1"].repeats) == 3


def test_turns_are_made_shorter_to_keep_to_the_time(compared):
    held = compared([HASTEN, *peers(1)], seconds=3 * 2 * 4.5)
    assert {r["steps"] for r in held.members["hasten"].repeats} == {4}
    assert {r["steps"] for r in held.members["peer 0"].repeats} == {2}


def test_what_is_missing_or_dies_is_named_and_the_others_go_on(compared):
    held = compared([HASTEN, System("a", "absent", {}), System("d", "dies", {}), *peers(1)])
    assert held.missing == {"a": "No module named 'absent'"}
    assert held.failed == {"d": "its last words"}
    assert len(held.members["peer 0"].repeats) == 3


def test_without_an_environment_all_peers_are_missing(compared):
    held = compared([HASTEN, *peers(2)], peers=None)
    assert set(held.missing) == {"peer 0", "peer 1"}
    assert "make bench-peers" in held.missing["peer 0"]


def test_a_worker_without_its_package_says_what_is_missing(tmp_path):
    with pytest.raises(MissingError, match="with_nothing"):
        Worker(
            "nothing", "tiny", {}, python=sys.executable, folder=tmp_path / "w", environment=dict(os.environ)
        )


@pytest.mark.slow
def test_hasten_trains_in_turns_and_is_idle_between_them(tmp_path):
    environment = {**os.environ, "HASTEN_KERNELS": "off", "OMP_NUM_THREADS": "1"}
    options = {"optimizer": "adamw", "compiled": False}
    worker = Worker(
        "hasten", "tiny", options, python=sys.executable, folder=tmp_path / "w", environment=environment
    )
    try:
        answers = [worker.turn(steps) for steps in (1, 3, 2)]
        assert [(said["steps"], said["updates"]) for said in answers] == [(1, 1), (3, 3), (2, 2)]
        costs = worker.costs()
        assert costs["peak_bytes"] >= worker.hello["baseline_bytes"] > 0
        assert costs["tree_peak_bytes"] >= costs["peak_bytes"]
    finally:
        worker.stop()
    assert worker.process.returncode == 0
    assert json.loads(json.dumps(worker.hello))["versions"]["torch"] == torch.__version__
    assert Path(tmp_path / "w/stderr").read_text() == ""
