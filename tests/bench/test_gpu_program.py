"""bench/gpu.py without a GPU: in small on a CPU, and its decisions."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


gpu, worker = load("gpu"), load("gpu_worker")
ANSWER = {"step_seconds": [2.0, 1.0, 4.0], "peak_flops": 1e12, "peak_bytes": 10, "parameters": 7}


@pytest.mark.slow
def test_the_whole_program_runs_in_small_on_a_cpu(tmp_path: Path) -> None:
    words = "--device cpu --tiny --rounds 1 --windows 2 --warm-steps 1 --save".split()
    command = [sys.executable, BENCH / "gpu.py", *words, tmp_path / "gpu.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == json.loads((tmp_path / "gpu.json").read_text())
    arms = {(r["shape"], r["arm"]) for r in report["results"]}
    for shape in ("gpt2", "llama-1b"):
        assert {(shape, "hasten"), (shape, "hasten documents")} <= arms
        assert "eight bits" in report["missing"][f"{shape}: hasten fp8"]
        # Without accelerate there is no Trainer, and the report says so.
        assert (shape, "trainer") in arms or "ccelerate" in report["missing"][f"{shape}: trainer"]
    for result in report["results"]:
        assert len(result["rounds"][0]["step_seconds"]) == 2 and 0 < result["mfu"] < 1
    assert all(ratio["same_parameters"] for ratio in report["ratios_to_trainer"].values())


def options(*words: str) -> Any:
    return gpu.parse(["--device", "cpu", "--tiny", *words])


def test_an_arm_that_does_not_fit_tries_with_half_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(job: dict[str, Any], most: int) -> dict[str, Any]:
        asked.append(job["micro_rows"])
        return {"out_of_memory": True} if job["micro_rows"] > most else ANSWER

    shape = gpu.SHAPES["gpt2"]
    arm = gpu.Arm("hasten", "gpt2", shape, micro_rows=8)
    monkeypatch.setattr(gpu, "ask", lambda job: ask(job, most=2))
    arm.run(options())
    arm.run(options())
    assert asked == [8, 4, 2, 2] and len(arm.answers) == 2, "the second round knows what fits"
    monkeypatch.setattr(gpu, "ask", lambda job: ask(job, most=0))
    arm.run(options())
    assert arm.missing == "one row at a time does not fit into the memory"


def test_figures_follow_from_the_middle_step() -> None:
    arm = gpu.Arm("hasten", "gpt2", gpu.SHAPES["gpt2"], 8, answers=[{**ANSWER, "first_step_seconds": 9.0}])
    result = arm.result()
    assert result["tokens_per_second"] == 128 * 1024 / 2 and result["spread"] == 1.5
    # 6 x 124 M weights but for the positions, and the causal half of 12 layers' attention.
    flops = 6 * (12 * 12 * 768**2 + 50_257 * 768) + 6 * 12 * 1024 * 768
    assert result["mfu"] == pytest.approx(128 * 1024 / 2 * flops / 1e12, abs=1e-4)
    double = {**result, "arm": "trainer", "tokens_per_second": result["tokens_per_second"] / 2}
    assert gpu.ratios([result, double])["gpt2: hasten"]["tokens_per_second"] == 2


def test_documents_are_numbered_and_count_from_zero() -> None:
    job = {"rows": 4, "micro_rows": 2, "row_tokens": 64, "documents": True}
    table = torch.arange(256)[:, None].expand(256, 65)
    batches = worker.make_batches(job, table, 3, gpu=False)
    assert [batch.tokens[:, 0].tolist() for batch in batches] == [[12, 13], [14, 15]]
    for batch in batches:
        steps = batch.segments.diff(dim=1)
        assert set(steps.unique().tolist()) == {0, 1} and (batch.segments[:, 0] == 1).all()
        assert int(batch.segments.max()) <= worker.DOCUMENTS
        assert torch.equal(
            batch.positions[:, 1:][steps == 1], torch.zeros(int(steps.sum()), dtype=torch.int64)
        )
        assert (batch.positions.diff(dim=1)[steps == 0] == 1).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--tiny"], "there is no CUDA GPU here; try"), (["--device", "cpu"], "add --tiny")],
)
def test_what_cannot_run_is_refused_with_what_to_write(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.parse(words)
    assert said in capsys.readouterr().err
