"""Two processes that train as one: the same weights, the same decisions."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, Act, make_run, write_corpus
from torch import distributed, multiprocessing

from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime
from hasten.train.agree import Agreement
from hasten.train.metrics import read_lines
from hasten.train.restore import read_tensors

FIELDS = {"steps": 8, "log_every": 2, "validate_every": 4, "checkpoint_every": 3, "precision": "fp32"}
ADAMW = {"kind": "adamw", "learning_rate": 1e-2, "eps": 1e-2}


def test_a_single_process_agrees_with_itself() -> None:
    agreement = Agreement(CPU)
    assert agreement.leads and agreement.any(True) and not agreement.any(False)
    assert agreement.led("value") == "value"
    assert agreement.gathered(("a", "b")) == ("a", "b")


def work(rank: int, folder: Path, prepared: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    runtime = Runtime(torch.device("cpu"), rank, 2)
    check_agreement(runtime)
    stop = Act(1, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None)
    options = {**FIELDS, "runtime": runtime, "dropout": 0.0, "optimizer": ADAMW}
    summary = make_run(
        folder / "run", prepared, **options, probes=[stop]
    ).fit()  # rank 0 alone has the probe look
    assert not summary.completed and summary.steps == 5
    assert make_run(folder / "run", prepared, **options).fit().completed
    distributed.destroy_process_group()


def check_agreement(runtime: Runtime) -> None:
    agreement = Agreement(runtime)
    assert agreement.any(runtime.rank == 1) and not agreement.any(False)
    assert agreement.led(f"from {runtime.rank}" if agreement.leads else None) == "from 0"
    assert agreement.gathered((f"from {runtime.rank}",)) == ("from 0", "from 1")
    agreement.same("alike", "the recipe")
    with pytest.raises(ConfigError, match="the recipe of rank 1 is not that of rank 0"):
        agreement.same(f"from {runtime.rank}", "the recipe")


@pytest.mark.slow
def test_two_processes_stop_together_resume_and_end_as_one_would(tmp_path: Path) -> None:
    """Only one of them is asked to stop; the end is that of a single process but for rounding."""
    prepared = write_corpus(tmp_path / "data")
    multiprocessing.start_processes(work, args=(tmp_path, prepared), nprocs=2, start_method="spawn")
    written = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in written if line["kind"] == "train"] == [2, 4, 6, 8]
    make_run(tmp_path / "one", prepared, **FIELDS, dropout=0.0, optimizer=ADAMW).fit()
    for file in ("weights/model", "state/optimizer"):
        one, two = (read_tensors(tmp_path / run / "checkpoints/step-000008", file) for run in ("one", "run"))
        for name, expected in one.items():
            torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-5)
