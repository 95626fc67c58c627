"""Trainings in two processes that things happen to: one dies, one is asked to stop, one has a bad batch."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from launched import hasten, write_recipe
from outcome import steady_lines, tensors_of

STEPS = 10


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on what happened to a run: weights, optimizer, lines."""
    tensors = tensors_of(run, STEPS)
    assert len(tensors) > 20
    return {**tensors, "lines": steady_lines(run), "quarantine": (run / "quarantine.jsonl").read_text()}


@pytest.mark.slow
def test_killed_stopped_and_given_a_bad_batch_it_ends_as_if_only_the_batch_had_been(tmp_path):
    """One rank is hit each time, and the other goes with it."""
    write_recipe(tmp_path)
    words = ("train", "recipe.yaml", "parallel.data=2")
    bad = {"rank": 1, "step": 7, "act": "nan"}
    killed = {"rank": 1, "step": 5, "act": "kill", "once": str(tmp_path / "killed")}
    asked = {"rank": 1, "step": 9, "act": "term", "once": str(tmp_path / "asked")}
    undisturbed = hasten(tmp_path, *words, "output=quiet", faults=[bad])
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert undisturbed.stdout.count("starting 2 processes of 1 thread") == 1
    assert undisturbed.stdout.count("trained 10 steps") == 1, "one process speaks"

    stopped = hasten(tmp_path, *words, faults=[bad, killed, asked])
    assert stopped.returncode == 0, stopped.stderr
    assert "rank 1 on " in stopped.stdout and "was killed by SIGKILL" in stopped.stdout
    assert re.search("going on from step-00000[1-4]\n", stopped.stdout), "the fourth may not have been whole"
    assert "stopped and saved" in stopped.stdout and "9 steps" in stopped.stdout
    assert stopped.stderr == ""

    went_on = hasten(tmp_path, *words, faults=[bad, killed, asked])
    assert went_on.returncode == 0 and "going on from step-000009" in went_on.stdout, went_on.stderr
    assert outcome(tmp_path / "run") == outcome(tmp_path / "quiet")
    (line,) = (json.loads(text) for text in (tmp_path / "run/quarantine.jsonl").read_text().splitlines())
    assert line["step"] == 7 and line["loss"] is None and len(line["documents"]) >= 2
    assert json.loads((tmp_path / "run/training.json").read_text())["skipped"] == 1


@pytest.mark.slow
def test_of_two_failures_the_first_is_told_with_its_rank_and_one_traceback(tmp_path):
    write_recipe(tmp_path)
    failed = hasten(
        tmp_path,
        *("train", "recipe.yaml", "parallel.data=2", "restarts=0"),
        faults=[{"rank": 1, "step": 3, "act": "raise"}],
    )
    assert failed.returncode == 1
    assert failed.stderr.count("Traceback") == 1
    sentence = failed.stderr.splitlines()[-1]
    assert sentence.startswith("hasten: the processes ended at once: rank 1 on ")
    assert sentence.endswith("ArithmeticError: two and two")


@pytest.mark.slow
def test_a_mistake_that_one_process_finds_is_told_once_and_nothing_is_tried_again(tmp_path):
    write_recipe(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    refused = hasten(tmp_path, "train", "recipe.yaml", "parallel.data=2")
    assert refused.returncode == 2
    assert refused.stderr.startswith("hasten: rank 0 on ") and refused.stderr.count("\n") == 1
    assert "run holds checkpoints without a recipe.yaml" in refused.stderr
    assert "start again" not in refused.stdout
