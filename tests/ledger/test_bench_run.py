"""`hasten bench` itself: real trials in processes of their own, on the smallest model."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from hasten.core.errors import HastenError
from hasten.ledger import bench as bench_module
from hasten.ledger import machine
from hasten.ledger.arms import Arm, make_arms
from hasten.ledger.bench import FIRST_LINES, LEAST_LINES, Rounds, Trial, bench
from hasten.ledger.figures import WARM_LINES
from hasten.lookup import read
from hasten.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    """Two layers of width 16 on a few made-up sentences."""
    for number in range(40):
        sentence = f"number {number} follows number {number - 1} and comes before number {number + 1}. "
        (tmp_path / f"{number}.txt").write_text(sentence * 20)
    settings = {
        "output": str(tmp_path / "run"),
        "data": {
            "sources": [str(tmp_path / "*.txt")],
            "clean": {"near_duplicates": None, "repetition": False},
            "split": {"validation": 0.2, "test": 0.1},
            "tokenizer": {"kind": "bpe", "vocab_size": 280},
            "row_tokens": 16,
            "cache": str(tmp_path / "data"),
        },
        "model": {"preset": "hasten-tiny", "dim": 16, "num_layers": 2, "num_heads": 2, "max_positions": 16},
        "train": {"steps": 4, "batch_tokens": 64},
        "bench": {"output": str(tmp_path / "bench"), "minutes": 0.01, "repeats": 1},
    }
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(settings))
    return read(str(path), [])


def rounds(recipe: Recipe, names: tuple[str, ...], minutes: float, repeats: int = 3) -> Rounds:
    """The plan of a bench that is not run."""
    chosen = recipe.bench.model_copy(update={"repeats": repeats})
    deadline = time.monotonic() + 60 * minutes
    arms = make_arms(names, CPU)
    return Rounds(recipe.model_copy(update={"bench": chosen}), arms, Path("unused"), deadline)


@pytest.mark.slow
def test_a_bench_leaves_its_files_and_every_trial(
    small: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One technique that changes learning, one that does not, one that can't be had."""
    monkeypatch.setattr(bench_module, "measure_machine", lambda _: machine.measure_machine(CPU, 0.01))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chosen = small.bench.model_copy(update={"techniques": ("prefetch", "muon", "fp8")})
    page = bench(small.model_copy(update={"bench": chosen}))
    assert page == small.bench.output / "ledger.html" and page.exists()
    ledger = json.loads((small.bench.output / "ledger.json").read_text())
    assert {row["arm"] for row in ledger["rows"]} == {"full", "without prefetch", "without muon", "plain"}
    assert "fp8" in ledger["missing"] and not ledger["failed"]
    made = [(trial["arm"], trial["purpose"]) for trial in ledger["trials"]]
    pacing = [("full", "pace"), ("without prefetch", "pace"), ("plain", "pace")]
    assert made == [*pacing, ("full", "learning"), ("without muon", "learning"), ("plain", "learning")]
    for trial in ledger["trials"]:
        assert trial["result"]["peak_memory"] > 10**7 and trial["result"]["threads"] == 1
        assert len(trial["result"]["validation"]) >= (2 if trial["purpose"] == "learning" else 0)
    assert [p.name for p in sorted(small.bench.output.iterdir())] == ["ledger.html", "ledger.json"]
    assert "none of them" in capsys.readouterr().out


@pytest.mark.slow
def test_an_arm_that_fails_is_left_out_and_the_full_set_is_not(small: Recipe, tmp_path: Path) -> None:
    small.prepared()
    broken = Arm("without it", "without", (), (), "prefetch")
    plan = rounds(small, ("prefetch",), 0.01)
    plan.folder, plan.progress = tmp_path, bench_module.Progress("bench")
    bad = ["train.steps=2", "train.batch_tokens=17"]
    assert plan.trial(broken, "pace", 0, 0, bad) is None
    assert "must be a multiple of data.row_tokens" in plan.failed["without it"]
    with pytest.raises(HastenError, match="the recipe does not train as it is"):
        plan.trial(plan.arms[0], "pace", 1, 0, bad)


def test_what_is_not_in_the_full_set_is_given_up_at_the_end_of_the_time(
    small: Recipe, tmp_path: Path
) -> None:
    """A compiler may take longer than everything else together: it neither starts late nor ends late."""
    plan = rounds(small, ("prefetch", "compile"), minutes=0.001)
    plan.folder, plan.progress = tmp_path, bench_module.Progress("bench")
    (extra,) = plan.extra
    plan.deadline = time.monotonic() + 0.3
    assert plan.trial(extra, "pace", 0, 0, ["train.steps=1000000", "train.minutes=null"]) is None
    assert plan.late.keys() == {"compile"} and not plan.failed
    plan.late.clear()
    plan.measure(extra, "pace", 0)
    assert plan.late.keys() == {"compile"} and not plan.trials


def test_the_time_is_shared_out(small: Recipe) -> None:
    plan = rounds(small, ("bf16", "prefetch", "muon"), minutes=10)
    assert [arm.name for arm in plan.pacing] == ["full", "without bf16", "without prefetch", "plain"]
    assert [arm.name for arm in plan.learning] == ["full", "without muon", "plain"]
    spent = 3 * 4 * plan.pace_seconds + plan.learning_rounds * 3 * plan.learning_seconds
    assert spent == pytest.approx(600, rel=0.01) and plan.learning_rounds == 3
    quick = rounds(small, ("bf16", "prefetch", "muon"), minutes=2)
    assert quick.learning_rounds == 1, "rather one of 20 s than three of 7"
    speed_only = rounds(small, ("bf16", "prefetch"), minutes=10)
    assert speed_only.learning == [] and 3 * 4 * speed_only.pace_seconds == pytest.approx(600, rel=0.01)


def trial(arm: str, rate: float, steps: int, seconds: float) -> Trial:
    paces = [[step, rate] for step in range(1, steps + 1)]
    return Trial(arm, "pace", 0, 0, seconds, 0.0, {"paces": paces, "validation": []})


def test_later_trials_are_as_long_as_their_share_allows(small: Recipe) -> None:
    """64 tokens a step at 128 tokens/s are half a second; the process took 5 s beside its steps."""
    plan = rounds(small, ("bf16",), minutes=3)
    plan.learn_from(trial("full", 128.0, 8, seconds=9.0))
    overrides, expected = plan.plan(plan.arms[0], "pace")
    steps = int((plan.pace_seconds - 5.0) / 0.5)
    assert f"train.steps={WARM_LINES + steps}" in overrides
    assert expected == pytest.approx(plan.pace_seconds, abs=1.6)
    plan.learn_from(trial("plain", 1.0, 8, seconds=1000.0))
    overrides, _ = plan.plan(plan.arms[-1], "pace")
    assert f"train.steps={WARM_LINES + LEAST_LINES}" in overrides, "however slow, some steps are measured"


def test_on_a_gpu_steps_go_from_line_to_line(small: Recipe) -> None:
    """Five steps a line: the device is not waited for at each.  A step of 0.1 s after a start of 2 s."""
    plan = rounds(small, ("bf16", "muon"), minutes=3)
    plan.log_every = 5
    (first,) = (word for word in plan.plan(plan.arms[0], "pace")[0] if word.startswith("train.steps="))
    assert int(first.partition("=")[2]) == 5 * (WARM_LINES + FIRST_LINES)
    paces = [[5 * line, 640.0] for line in range(1, 9)]
    plan.learn_from(Trial("full", "pace", 0, 0, 6.0, 0.0, {"paces": paces}))
    assert plan.step_seconds["full"] == pytest.approx(0.1)
    assert plan.start_seconds["full"] == pytest.approx(2.0)
    words = dict(word.split("=") for word in plan.plan(plan.arms[0], "learning")[0])
    assert words["train.log_every"] == "5" and int(words["train.validate_every"]) % 5 == 0


def test_every_other_round_goes_backwards(small: Recipe) -> None:
    plan = rounds(small, ("bf16", "prefetch"), minutes=3)
    assert plan.in_turn(plan.pacing, 1) == plan.in_turn(plan.pacing, 0)[::-1]


def test_what_others_use_of_the_machine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that spins beside this one uses a core, as far as it gets one."""
    if machine.busy_seconds() is None:
        pytest.skip("the system does not tell")
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        before, began = machine.busy_seconds(), time.monotonic()
        assert (machine.others_now(0.5) or 0) > machine.BUSY_CORES
        after = machine.busy_seconds()
        assert before is not None and after is not None
        assert 0 < after - before <= ((time.monotonic() - began) + 0.2) * (machine.os.cpu_count() or 1)
    finally:
        child.kill()
        child.wait()


def test_ones_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's account faked to hold exactly this process's own time, nothing is left for others."""
    monkeypatch.setattr(machine, "busy_seconds", time.process_time)
    stop = threading.Event()
    worker = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    worker.start()
    found = machine.others_now(0.2)
    stop.set()
    worker.join()
    assert found == pytest.approx(0.0, abs=0.01)


def test_the_machine_is_measured_in_full() -> None:
    found = machine.measure_machine(CPU, 0.01)
    assert found["peak"]["fp32"] > 0 and found["cores"] >= 1 and found["memory"] > 0
    assert set(found["bandwidth"]) == {
        f"{what}_{who}" for what in ("copy", "read") for who in ("one_thread", "all_threads")
    }
    assert min(found["bandwidth"].values()) > 0
    assert torch.get_num_threads() == found["threads"], "the number of threads is as it was"
