"""How much sooner a score was reached follows from the looks; peers' settings from what was found of them."""

import json
import os
import sys
from pathlib import Path

import pytest
import task_peers
from page_words import TASKS_COMMAND, WORDS
from peers.hasten_job import Clock, HastenJob, labelled
from peers.jobs import JOBS, Arm, Job
from peers.peer_job import BY_EPOCHS, Kept, PeerJob
from peers.process import MissingError
from peers.reaching import beside, best, reached, spread, verdict
from task_pages import task_peers as peers_section
from task_pages import task_scores
from tasks import TASKS

ENVIRONMENT = {"processor": "A Chip", "threads": 2, "torch": "2.13.0", "commit": "abc1234"}


def run(*scores: float, startup: float = 10.0, peak: int = 100, every: float = 20.0) -> dict:
    """A training with a look every so many seconds of its loop."""
    looks = [{"step": k, "seconds": every * k, "score": score} for k, score in enumerate(scores, 1)]
    return {
        "startup_seconds": startup,
        "looks": looks,
        "loop_seconds": every * len(scores),
        "peak_bytes": peak,
    }


def machine(environment: dict, words: dict) -> str:
    """As benchmarks.py has it."""
    return words["machine"].format(**environment, s="s")


@pytest.mark.parametrize("higher", [True, False])
def test_a_score_is_reached_before_the_first_look_that_finds_it(higher):
    sign = 1 if higher else -1
    training = run(*(sign * score for score in (1.0, 3.0, 2.0, 4.0)))
    assert best(training, higher=higher) == sign * 4.0
    assert reached(training, sign * 2.0, higher=higher) == {"loop": 30.0, "process": 40.0}
    assert reached(training, sign * 3.0, higher=higher) == {"loop": 40.0, "process": 50.0}
    assert reached(training, sign * 5.0, higher=higher) is None
    assert reached(training, sign * 0.5, higher=higher) == {"loop": 20.0, "process": 30.0}
    begun = {**training, "base_score": 0.0}
    assert reached(begun, sign * 0.5, higher=higher) == {"loop": 10.0, "process": 20.0}


def test_what_counts_is_the_best_score_that_both_reach():
    ours, theirs = run(0.80, 0.90, 0.92), run(0.70, 0.85, 0.89, 0.91, startup=5.0)
    found = beside(ours, theirs, higher=True)
    assert (found["target"], found["hasten_best"], found["peer_best"]) == (0.91, 0.92, 0.91)
    assert (found["hasten_seconds"], found["peer_seconds"]) == pytest.approx((60.0, 85.0))
    assert found["ratio"] == pytest.approx(60 / 85)
    assert found["loop_ratio"] == pytest.approx(50 / 80)
    back = beside(theirs, ours, higher=True)
    assert (back["target"], back["ratio"]) == (0.91, pytest.approx(85 / 60))


def test_losses_are_better_lower():
    found = beside(run(2.0, 1.8, 1.7), run(1.9, 1.8, startup=50.0), higher=False)
    assert (found["target"], found["hasten_seconds"], found["peer_seconds"]) == (1.8, 50.0, 90.0)


def test_the_verdict_is_the_median_over_the_rounds():
    rounds = [
        {"hasten": run(0.9, peak=50), "slow": run(0.9, startup=startup, peak=200), "same": run(0.9)}
        for startup in (10.0, 40.0, 100.0)
    ]
    found = verdict(rounds, higher=True)
    assert [one["ratio"] for one in found["slow"]["by_round"]] == [1.0, 0.5, 0.25]
    assert (found["slow"]["ratio"], found["slow"]["within_two_thirds"]) == (0.5, True)
    assert found["slow"]["memory_ratio"] == 0.25
    assert (found["same"]["ratio"], found["same"]["within_two_thirds"]) == (1.0, False)


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, [10]), (2, [5, 10]), (3, [4, 7, 10]), (10, [*range(1, 11)]), (99, [*range(1, 11)])],
)
def test_looks_are_spread_evenly_and_the_last_is_among_them(count, chosen):
    assert spread(range(1, 11), count) == chosen


def test_a_step_is_timed_by_the_first_line_that_is_no_earlier():
    lines = [{"step": 0, "seconds": 9.0}, {"step": 10, "seconds": 15.0}, {"step": 20, "seconds": 21.0}]
    clock = Clock(lines, {"seconds": 22.0, "times": {"start": 8.0}})
    assert [clock.at(step) for step in (0, 1, 10, 11, 20)] == [1.0, 7.0, 7.0, 13.0, 13.0]
    assert clock.loop_seconds == 14.0


def test_checkpoints_are_looked_at_in_the_order_of_their_steps(tmp_path):
    for name in ("step-000010", "step-000200", "step-000030", "step-000040.work"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    names = [path.name for path in HastenJob(JOBS["sst2"], *[tmp_path] * 3).kept(tmp_path)]
    assert names == ["step-000010", "step-000030", "step-000200"]


def test_hasten_trains_by_the_tasks_own_settings(tmp_path):
    job = HastenJob(JOBS["sst2-lora"], *[tmp_path] * 3)
    assert job.recipe_name == TASKS["sst2-lora"].recipe
    words = job.words(tmp_path)
    assert "adapt={kind: lora}" in words
    assert not any(word.startswith("train.steps") for word in words)
    assert HastenJob(JOBS["sst2"], *[tmp_path] * 3, steps=3).words(tmp_path)[-1] == "train.steps=3"


def test_labels_become_numbers():
    assert labelled({"text": "good", "label": "positive"}, ["negative", "positive"]) == {
        "text": "good",
        "label": 1,
    }


def peer(tmp_path: Path, job: Job, arm: Arm, found: dict | None = None, **more: int) -> PeerJob:
    """An arm of which `found` is known."""
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found or {}))
    return PeerJob(job, arm, sys.executable, os.environ, tmp_path, tmp_path, Kept(path), **more)


def known(job: Job, what: str, options: dict, **figures: float) -> dict:
    """What a file of found settings says of one training."""
    return {f"{job.task} {what} {json.dumps(options, sort_keys=True)}": figures}


@pytest.mark.parametrize(("seconds", "bf16"), [(0.5, True), (2.0, False)])
def test_a_peer_takes_the_quicker_precision(tmp_path, seconds, bf16):
    job, arm = JOBS["sst2"], JOBS["sst2"].arms[0]
    found = known(job, "probe", {**arm.options, "bf16": True}, step_seconds=seconds)
    found |= known(job, "probe", {**arm.options, "bf16": False}, step_seconds=1.0)
    assert peer(tmp_path, job, arm, found).settings() == {**arm.options, "bf16": bf16}


@pytest.mark.parametrize(("higher", "rate"), [(True, 3e-4), (False, 1e-4)])
def test_a_tuned_peer_takes_the_best_rate_and_then_the_best_rows(tmp_path, higher, rate):
    arm = Arm("tuned", "trainer", {"batch_rows": 4}, (1e-4, 3e-4), (4, 2))
    job = Job("sst2", "a model", ("classification", "accuracy"), higher, (arm,))
    found = known(job, "probe", {"batch_rows": 4, "bf16": True}, step_seconds=1.0)
    found |= known(job, "probe", {"batch_rows": 4, "bf16": False}, step_seconds=2.0)
    scores = {(1e-4, 4): 0.5, (3e-4, 4): 0.7, (3e-4, 2): 0.8, (1e-4, 2): 0.4}
    for (tried, rows), score in scores.items():
        options = {"batch_rows": rows, "bf16": True, "learning_rate": tried, "max_steps": BY_EPOCHS}
        found |= known(job, "rate", options, looks=[{"score": score}])
    chosen = peer(tmp_path, job, arm, found).settings()
    assert chosen == {"batch_rows": 2, "bf16": True, "learning_rate": rate}


def test_a_budget_of_time_becomes_steps(tmp_path):
    job, arm = JOBS["alpaca-lora"], JOBS["alpaca-lora"].arms[0]
    found = known(job, "probe", {**arm.options, "bf16": True}, step_seconds=4.0)
    found |= known(job, "probe", {**arm.options, "bf16": False}, step_seconds=5.0)
    assert peer(tmp_path, job, arm, found).steps_within(10.0) == 3
    assert peer(tmp_path, job, arm, found, steps=7).steps_within(10.0) == 7


def test_what_was_found_once_is_kept(tmp_path):
    path = tmp_path / "below" / "found.json"
    assert Kept(path).get("a", lambda: {"step_seconds": 1.0}) == {"step_seconds": 1.0}
    assert Kept(path).get("a", lambda: pytest.fail("looked for again")) == {"step_seconds": 1.0}


def test_a_peer_that_is_not_there_is_said_to_be_missing(tmp_path):
    arm = Arm("nobody", "nobody", {})
    with pytest.raises(MissingError, match=r"peers\.tune_nobody"):
        peer(tmp_path, JOBS["sst2"], arm).train({"bf16": False})


def test_a_job_is_put_beside_those_that_are_there(tmp_path):
    path = tmp_path / "task-peers.json"
    path.write_text(json.dumps(task_peers.merged(path, "sst2", {"steps": 1})))
    path.write_text(json.dumps(task_peers.merged(path, "sst2-lora", {"steps": 2})))
    assert task_peers.merged(path, "sst2", {"steps": 3}) == {
        "program": "task_peers",
        "jobs": {"sst2": {"steps": 3}, "sst2-lora": {"steps": 2}},
    }


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["mnli"], "there is no job mnli"), (["--steps", "3", "--save", "x.json"], "leave --save out")],
)
def test_words_that_make_no_sense_are_refused(words, complaint, capsys):
    with pytest.raises(SystemExit):
        task_peers.main(words)
    assert complaint in capsys.readouterr().err


SCORED = {
    "sst2": {"accuracy": 0.91, "interval": [0.89, 0.93], "baseline": 0.51},
    "squad": {"f1": 65.12, "exact": 53.0},
    "alpaca": {"fall": 0.123, "loss": 1.5, "base_loss": 1.71},
    "tatoeba": {
        "score": 21.0,
        "bleu": {"score": 21.0, "interval": 1.5},
        "chrf": {"score": 18.0},
    },
    "dialogsum": {"metric": "rouge", "score": 33.3, "baseline": {"score": 28.1}},
    "mbpp": {"metric": "programs", "score": 5.0, "baseline": None},
    "dpo": {"accuracy": 0.61, "margin": 0.2, "pairs": 1500},
}
SAID = {
    "sst2": ["91.0%", "89.0%–93.0%", "51.0%"],
    "squad": ["F1 65.1", "53.0"],
    "alpaca": ["1.710 → 1.500", "12.3%"],
    "tatoeba": ["BLEU 21.0 ± 1.5", "chrF 18.0"],
    "dialogsum": ["rouge 33.3", "28.1"],
    "mbpp": ["programs 5.0"],
    "dpo": ["61.0%", "1,500"],
}


@pytest.mark.parametrize("name", WORDS)
def test_each_tasks_score_stands_in_the_page(name, tmp_path):
    common = {"seconds": 200, "training_seconds": 150, "peak_memory": 2**30, "environment": ENVIRONMENT}
    assert TASKS_COMMAND in task_scores(tmp_path, WORDS[name])
    for task, score in SCORED.items():
        record = {
            "task": task,
            "recipe": TASKS[task].recipe,
            "asked_for": TASKS[task].asked,
            **score,
            **common,
        }
        (tmp_path / f"{task}.json").write_text(json.dumps(record))
    text = task_scores(tmp_path, WORDS[name])
    for task, pieces in SAID.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {task} |")]
        assert all(piece in line for piece in pieces)
        assert line.endswith("| 2 | 150 | 200 | 1,024 |")
    assert "| 0.9 |" in text


@pytest.mark.parametrize("name", WORDS)
def test_peers_stand_in_the_page_with_their_settings(name):
    rounds = [{"hasten": run(0.9, peak=2**30), "trainer": run(0.9, startup=30.0, peak=2**31)}]
    job = {
        "unit": "accuracy",
        "settings": {"trainer": {"learning_rate": 2e-5, "batch_rows": 32, "bf16": True}},
        "failed": {"trainer tuned": "No module named 'peft'"},
        "verdict": verdict(rounds, higher=True),
        "rounds": rounds,
        "peers": {"python": "3.11.7", "transformers": "5.24.0"},
        "environment": ENVIRONMENT,
    }
    text = peers_section({"jobs": {"sst2": job}}, WORDS[name], machine)
    line = "| sst2 | trainer | 2e-05, 32 × 1, bf16 | accuracy 0.900 | 30 | 50 | 0.60 (0.60) | 0.900 / 0.900 |"
    assert f"{line} 1,024 / 2,048 |" in text
    assert "No module named 'peft'" in text
    assert "transformers 5.24.0" in text
    assert "3.11.7" not in text
