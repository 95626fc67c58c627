"""Writing checkpoints: beside the training, whole or absent, the newest and the best kept."""

import errno
import math
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from hasten.core.errors import CheckpointError
from hasten.core.files import damage, read_manifest
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.train import checkpoint
from hasten.train.checkpoint import Checkpoints, restore
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer
from hasten.train.snapshot import Snapshot

TINY = ModelConfig(vocab_size=11, dim=8, num_layers=1, num_heads=2, dropout=0.3)


@dataclass
class Training:
    """A tiny real training whose steps draw from torch's global generator."""

    seed: int = 0
    optimizer_config: MuonConfig | AdamWConfig = field(default_factory=MuonConfig)
    config: ModelConfig = TINY

    def __post_init__(self) -> None:
        self.model: Decoder = build(self.config, self.seed)
        self.optimizer = Optimizer(self.model, self.optimizer_config)

    def step(self) -> None:
        tokens = torch.randint(0, 11, (2, 6))
        scores = self.model.logits(self.model(tokens[:, :-1]))
        cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        self.optimizer.step(1.0, torch.tensor(True))
        self.optimizer.zero_grad()

    def save(
        self, checkpoints: Checkpoints, step: int, *, wait: bool = True, metric: float | None = None
    ) -> None:
        checkpoints.save(
            step, model=self.model, optimizer=self.optimizer, state={"step": step}, metric=metric, wait=wait
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        live = {**dict(self.model.named_parameters()), **self.optimizer.state_dict()}
        return {name: tensor.detach().clone() for name, tensor in live.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_in(folder: Path) -> list[int]:
    """The steps whose folders are there, and nothing but such folders."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let writing threads wait until the event is set."""
    release, write = threading.Event(), Snapshot.write

    def waiting(snapshot: Snapshot, folder: Path) -> None:
        assert release.wait(10)
        write(snapshot, folder)

    monkeypatch.setattr(Snapshot, "write", waiting)
    return release


def test_a_checkpoint_holds_the_training_as_it_was_when_save_was_called(tmp_path, monkeypatch):
    training, checkpoints, release = Training(), Checkpoints(tmp_path), held(monkeypatch)
    training.step()
    before = training.tensors()
    training.save(checkpoints, 1, wait=False)
    training.step()
    assert not same(before, training.tensors())
    release.set()
    other = Training(seed=1)
    assert restore(checkpoints.latest(), other.model, other.optimizer) == {"step": 1}
    assert same(before, other.tensors())


def test_a_state_that_changes_after_save_is_not_the_saved_one(tmp_path, monkeypatch):
    training, checkpoints, release = Training(), Checkpoints(tmp_path), held(monkeypatch)
    state = {"step": 1, "losses": [3.0]}
    checkpoints.save(1, model=training.model, optimizer=training.optimizer, state=state)
    state["losses"].append(2.0)
    release.set()
    assert restore(checkpoints.latest(), training.model, training.optimizer) == {"step": 1, "losses": [3.0]}


def test_a_save_waits_for_the_one_before_it(tmp_path, monkeypatch):
    training, checkpoints, release = Training(), Checkpoints(tmp_path, keep_last=9), held(monkeypatch)
    training.save(checkpoints, 1, wait=False)
    first = training.tensors()
    training.step()
    second = threading.Thread(target=lambda: training.save(checkpoints, 2))
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the second save began while the first was pending"
    assert not list(tmp_path.glob("step-000002*"))
    release.set()
    second.join()
    other = Training(seed=1)
    restore(tmp_path / "step-000001", other.model, other.optimizer)
    assert same(first, other.tensors()), "the second save did not touch the first one's copy"
    assert steps_in(tmp_path) == [1, 2]


def test_all_saves_share_one_copy_in_memory(tmp_path):
    training, checkpoints = Training(), Checkpoints(tmp_path)
    places = []
    for step in (1, 2, 3):
        training.save(checkpoints, step)
        places.append({name: tensor.data_ptr() for name, tensor in checkpoints.stage.tensors.items()})
    assert places[0] == places[1] == places[2]
    copied = sum(t.numel() * t.element_size() for t in checkpoints.stage.tensors.values())
    live = sum(t.numel() * t.element_size() for t in training.tensors().values())
    assert copied == live + torch.get_rng_state().numel()


@settings(max_examples=15, deadline=None)
@given(
    metrics=st.lists(st.none() | st.sampled_from([1.0, 2.0, 3.0, float("nan")]), min_size=1, max_size=6),
    keep_last=st.integers(1, 3),
)
def test_the_newest_and_the_best_are_kept(tmp_path_factory, metrics, keep_last):
    folder = tmp_path_factory.mktemp("run")
    training, checkpoints = Training(), Checkpoints(folder, keep_last)
    scored: list[tuple[float, int]] = []
    for step, metric in enumerate(metrics, start=1):
        training.save(checkpoints, step, metric=metric)
        if metric is not None and math.isfinite(metric):
            scored.append((metric, -step))  # of equals, the newest
        best = {-min(scored)[1]} if scored else set()
        newest = set(range(max(1, step - keep_last + 1), step + 1))
        assert set(steps_in(folder)) == newest | best
    assert checkpoints.latest() == folder / f"step-{len(metrics):06}"
    assert checkpoints.best() == (folder / f"step-{-min(scored)[1]:06}" if scored else None)


def test_the_manifest_names_step_metric_and_parent(tmp_path):
    training = Training()
    Checkpoints(tmp_path).save(
        7,
        model=training.model,
        optimizer=training.optimizer,
        state={},
        metric=1.5,
        parent="runs/a",
        wait=True,
    )
    assert read_manifest(tmp_path / "step-000007")["note"] == {"step": 7, "metric": 1.5, "parent": "runs/a"}


@pytest.mark.parametrize("as_folder", [False, True])
def test_the_tokenizer_goes_along(tmp_path, as_folder):
    training = Training()
    (tmp_path / "tokenizer.json").write_text("{}")
    given_path = tmp_path if as_folder else tmp_path / "tokenizer.json"
    Checkpoints(tmp_path / "run").save(
        1, model=training.model, optimizer=training.optimizer, state={}, tokenizer=given_path, wait=True
    )
    assert (tmp_path / "run" / "step-000001" / "tokenizer.json").read_text() == "{}"


def test_saving_a_step_again_replaces_it(tmp_path):
    training, checkpoints = Training(), Checkpoints(tmp_path)
    training.save(checkpoints, 1)
    training.step()
    training.save(checkpoints, 1)
    other = Training(seed=1)
    restore(checkpoints.latest(), other.model, other.optimizer)
    assert same(training.tensors(), other.tensors())
    assert steps_in(tmp_path) == [1]


def one_sentence(caught: pytest.ExceptionInfo[CheckpointError], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.fixture
def saved(tmp_path) -> Path:
    """A run with one checkpoint, to be copied."""
    Training().save(Checkpoints(tmp_path / "saved"), 1)
    return tmp_path / "saved"


def test_a_disk_that_fails_at_any_call_costs_one_save_and_no_checkpoint(tmp_path, saved, file_calls):
    training, failures = Training(), 0
    for faulty in range(1, 40):
        folder = Path(shutil.copytree(saved, tmp_path / str(faulty)))
        checkpoints = Checkpoints(folder)
        code = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)[faulty % 4]

        def fail(n, faulty=faulty, code=code):
            if n == faulty:
                raise OSError(code, os.strerror(code))

        try:
            with file_calls(fail):
                training.save(checkpoints, 2)
        except CheckpointError as error:
            failures += 1
            assert f"({os.strerror(code)})" in str(error)
            assert "is there as before" in str(error)
            assert "\n" not in str(error)
        assert damage(folder / "step-000001") is None
        assert steps_in(folder) in ([1], [1, 2]), "whole or absent, and nothing temporary"
        assert checkpoints.latest() is not None
    assert failures > 15
    training.save(checkpoints, 3)
    assert checkpoints.latest() == folder / "step-000003", "the next save works again"


@pytest.mark.parametrize("limit", [0, 40, 700, 3000, 4500, 6000, 9000])
def test_a_file_that_the_kernel_cuts_short_costs_one_save_and_no_checkpoint(tmp_path, in_child, limit):
    training = Training()
    training.save(Checkpoints(tmp_path), 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        checkpoints = Checkpoints(tmp_path)
        with pytest.raises(CheckpointError) as caught:
            training.save(checkpoints, 2)
        one_sentence(
            caught, "step-000002: could not be written", "File too large", "step-000001 is there as before"
        )

    assert max(path.stat().st_size for path in tmp_path.rglob("*")) > limit, "the limit must bite"
    assert in_child(limited) == 0
    assert damage(tmp_path / "step-000001") is None
    assert steps_in(tmp_path) == [1]


def test_no_old_checkpoint_goes_before_the_new_one_reads_back(tmp_path, monkeypatch):
    training, checkpoints = Training(), Checkpoints(tmp_path, keep_last=1)
    training.save(checkpoints, 1)
    write = Snapshot.write

    def vanishing(snapshot, folder):
        write(snapshot, folder)
        monkeypatch.setattr(
            checkpoint, "damage", lambda final: (final / "model.yaml").unlink() or damage(final)
        )

    monkeypatch.setattr(Snapshot, "write", vanishing)
    with pytest.raises(
        CheckpointError, match=r"step-000002: was written and does not read back \(model\.yaml is miss"
    ):
        training.save(checkpoints, 2)
    assert steps_in(tmp_path) == [1, 2]
    assert checkpoints.latest() == tmp_path / "step-000001"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError) as caught:
        Training().save(Checkpoints(tmp_path / "runs"), 1)
    one_sentence(
        caught, "runs/step-000001: could not be written (File exists)", "there is no earlier checkpoint"
    )


def test_a_failure_in_the_thread_is_raised_by_the_next_call_and_only_once(tmp_path):
    for call in (
        lambda c, t: t.save(c, 2),
        lambda c, t: c.wait(),
        lambda c, t: c.latest(),
        lambda c, t: c.best(),
    ):
        (tmp_path / "runs").write_text("in the way")
        training, checkpoints = Training(), Checkpoints(tmp_path / "runs")
        training.save(checkpoints, 1, wait=False)
        with pytest.raises(CheckpointError, match="step-000001: could not be written"):
            call(checkpoints, training)
        (tmp_path / "runs").unlink()
        training.save(checkpoints, 3)
        assert checkpoints.latest() == tmp_path / "runs" / "step-000003"
        shutil.rmtree(tmp_path / "runs")


def test_a_save_does_not_begin_on_a_disk_without_a_fifth_to_spare(tmp_path, monkeypatch):
    training, checkpoints = Training(), Checkpoints(tmp_path / "runs")
    bytes_saved = sum(t.numel() * t.element_size() for t in training.tensors().values())
    usage = shutil.disk_usage(tmp_path)

    def disk_with(free: int) -> Callable[[Path], object]:
        return lambda path: usage._replace(free=free)

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", disk_with(int(1.2 * bytes_saved) - 1))
    with pytest.raises(CheckpointError) as caught:
        training.save(checkpoints, 1)
    one_sentence(
        caught, "a checkpoint needs 0.0 MB of free space", "there is no earlier checkpoint", "make room"
    )
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", disk_with(int(1.2 * bytes_saved) + 1))
    training.save(checkpoints, 1)


def test_a_process_killed_at_any_call_of_a_save_leaves_a_whole_checkpoint(
    tmp_path, saved, file_calls, in_child
):
    training, last_codes = Training(), []
    for fatal in range(1, 60):
        folder = Path(shutil.copytree(saved, tmp_path / str(fatal)))

        def killed(folder=folder, fatal=fatal):
            checkpoints = Checkpoints(folder, keep_last=1)
            with file_calls(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == fatal else None):
                training.save(checkpoints, 2)

        last_codes.append(in_child(killed))
        checkpoints = Checkpoints(folder, keep_last=1)  # sweeps
        assert checkpoints.latest() is not None
        assert all(damage(path) is None for path in folder.iterdir())
        if last_codes[-1] == 0:
            assert steps_in(folder) == [2]
            break
    assert last_codes[-1] == 0, "the loop reached past the last call"
    assert len(last_codes) > 20


def test_what_a_dead_process_left_is_swept_up(tmp_path):
    (tmp_path / "step-000001.tmp-0123abcd" / "weights").mkdir(parents=True)
    training = Training()
    training.save(Checkpoints(tmp_path), 1)
    assert steps_in(tmp_path) == [1]


def test_a_checkpoint_without_its_manifest_does_not_count_among_the_newest(tmp_path):
    training, checkpoints = Training(), Checkpoints(tmp_path, keep_last=2)
    training.save(checkpoints, 1)
    training.save(checkpoints, 2)
    (tmp_path / "step-000002" / "manifest.json").unlink()
    training.save(checkpoints, 3)
    assert 1 in steps_in(tmp_path), "1 and 3 are the two newest whole ones"
