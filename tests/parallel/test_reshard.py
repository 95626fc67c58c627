"""Checkpoints saved on any mesh and read on any other: the same numbers, to the bit; whole or absent."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from meshes import CONFIG, Training
from processes import together
from safetensors.torch import load_file
from torch import Tensor, distributed

from hasten.core.errors import CheckpointError, LostContactError
from hasten.core.files import damage, read_manifest, write_manifest
from hasten.core.runtime import Runtime
from hasten.exchange.options import ExportConfig
from hasten.exchange.run import send_out
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder
from hasten.parallel.apply import parallelize
from hasten.parallel.config import ParallelConfig
from hasten.parallel.grid import Grid
from hasten.train import checkpoint, snapshot
from hasten.train.boxes import read_index
from hasten.train.checkpoint import Checkpoints, load_model, restore
from hasten.train.optim import AdamWConfig, Optimizer
from hasten.train.restore import latest
from hasten.train.snapshot import Snapshot

FOUR = (
    "shard=2 tensor=2", "pipeline=2 tensor=2", "shard=4", "data=2 shard=2", "pipeline=2 shard=2",
    "tensor=4", "data=2 tensor=2", "pipeline=4", "data=4", "context=2 shard=2",
)  # fmt: skip
TWO = ("pipeline=2", "data=2", "context=2", "tensor=2", "shard=2")


def chain(runtime: Runtime, start: Path, folder: Path, meshes: tuple[str, ...]) -> None:
    """On one mesh after the other: read what the one before saved, compare every number, save again."""
    for mesh in meshes:
        training = Training.make(runtime, mesh).restore(start).check()
        where = folder / mesh.replace(" ", ",")
        assert training.arrangement is not None
        if not training.arrangement.all_here or runtime.rank == 0:
            checkpoints = Checkpoints(where, 2, training.arrangement)
            training.save(checkpoints)
            assert checkpoints.latest() == where / "step-000001"
        distributed.barrier()
        start = where / "step-000001"


def on_two(runtime: Runtime, folder: Path) -> dict[str, Tensor]:
    chain(runtime, folder / "whole/step-000001", folder, TWO)
    return trained_on(runtime, {"shard": 2}, folder.with_name("trained"))


def on_four(runtime: Runtime, folder: Path) -> Tensor:
    chain(runtime, folder / TWO[-1] / "step-000001", folder, FOUR)
    return logits_on(runtime, {"shard": 4}, folder.with_name("trained") / "step-000002")


def on_two_again(runtime: Runtime, folder: Path, back: Path) -> None:
    chain(runtime, folder / FOUR[0].replace(" ", ",") / "step-000001", back / "shard", TWO[-1:])
    chain(runtime, folder / FOUR[-1].replace(" ", ",") / "step-000001", back / "tensor", TWO[-2:-1])
    failures(runtime, back / "failures")


@dataclass
class Saved:
    """What a chain of meshes saved: whole, two processes, four; and a model as it was trained on two."""

    folder: Path
    trained: Path
    two: list[dict[str, Tensor]]
    four: list[Tensor]

    def steps(self) -> dict[str, Path]:
        """The checkpoint of each mesh."""
        return {path.parent.name: path for path in sorted(self.folder.glob("*/step-*"))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Processes are dear to start, so each lot of them does all that there is to do."""
    folder = tmp_path_factory.mktemp("chain") / "saved"
    Training.make().fill().save(Checkpoints(folder / "whole"))
    two = together(2, on_two, folder)
    return Saved(folder, folder.with_name("trained"), two, together(4, on_four, folder))


@pytest.mark.slow
def test_what_any_mesh_saved_one_process_reads_to_the_bit(saved: Saved) -> None:
    assert len(saved.steps()) == 1 + len(FOUR) + len(TWO)
    for mesh, folder in saved.steps().items():
        assert damage(folder) is None, mesh
        Training.make().restore(folder).check()


@pytest.mark.slow
def test_only_a_mesh_that_splits_writes_several_files_and_no_number_twice(saved: Saved) -> None:
    whole = saved.steps()["whole"]
    numbers = {file: num_bytes(load_file(whole / f"{file}.safetensors")) for file in snapshot_files()}
    for mesh, folder in saved.steps().items():
        for file in snapshot_files():
            files = list(folder.glob(f"{file}*.safetensors"))
            assert sum(num_bytes(load_file(path)) for path in files) == numbers[file]
            spread = (folder / f"{file}.index.json").exists()
            assert spread == any(word in mesh for word in ("shard", "tensor", "pipeline"))
            assert spread == ([path.name for path in files] != [f"{Path(file).name}.safetensors"])
    layout = [path.relative_to(whole).as_posix() for path in sorted(whole.rglob("*")) if path.is_file()]
    pure = saved.steps()["data=4"]
    assert layout == [path.relative_to(pure).as_posix() for path in sorted(pure.rglob("*")) if path.is_file()]


def snapshot_files() -> tuple[str, str]:
    return "weights/model", "state/optimizer"


def num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.slow
def test_a_box_lies_where_its_process_was(saved: Saved) -> None:
    """Shard 2 x tensor 2: rows of the table dealt to tensor's ranks, and those of each to shard's."""
    whole = read_index(saved.steps()["shard=2,tensor=2"] / "weights/model.index.json")["embedding.weight"]
    found = {box.file: (box.start, box.shape) for box in whole.boxes}
    name = "model-0000{}-of-00004.safetensors".format
    assert found == {
        name(1): ((0, 0), (3, 16)),
        name(2): ((6, 0), (4, 16)),
        name(3): ((3, 0), (3, 16)),
        name(4): ((10, 0), (3, 16)),
    }


@pytest.mark.slow
def test_a_model_is_taken_out_of_parts_and_exported_whole(saved: Saved, tmp_path: Path) -> None:
    whole, _ = load_model(saved.folder / "whole")
    tokens = torch.arange(12)[None] % CONFIG.vocab_size
    for mesh in ("shard=2,tensor=2", "pipeline=2,tensor=2"):
        model, _ = load_model(saved.folder / mesh)
        assert isinstance(model, Decoder) and isinstance(whole, Decoder)
        assert torch.equal(model(tokens), whole(tokens))


@pytest.mark.slow
def test_a_part_of_another_checkpoint_is_refused(saved: Saved, tmp_path: Path) -> None:
    """The manifest vouches for it, so its reader alone stands in the way."""
    folder = tmp_path / "step-000001"
    shutil.copytree(saved.steps()["shard=4"], folder)
    others = saved.steps()["shard=2,tensor=2"] / "weights/model-00002-of-00004.safetensors"
    shutil.copyfile(others, folder / "weights" / others.name)
    with pytest.raises(CheckpointError, match=r"does not match the digest|bytes instead of"):
        Training.make().restore(folder)
    write_manifest(folder, {})
    for attempt in (Training.make().restore, load_model):
        with pytest.raises(CheckpointError, match=r"model-00002-of-00004.safetensors: holds '.*' otherwise"):
            attempt(folder)


# FSDP as it is applied to real trainings


LLAMA = ModelConfig(
    vocab_size=61, dim=32, num_layers=2, num_heads=4, activation="swiglu", ffn_dim=48, max_positions=32
)
TOKENS = torch.arange(16)[None] * 7 % 61


def trained_on(runtime: Runtime, mesh: dict[str, int], folder: Path) -> dict[str, Tensor]:
    """Two updates on a mesh, then a save right after a forward pass, while weights are still gathered."""
    model, arrangement = parallelize(LLAMA, 5, Grid.make(runtime, ParallelConfig(**mesh)))
    optimizer = Optimizer(model, AdamWConfig(), arrangement=arrangement)
    for _ in range(2):
        model.logits(model(TOKENS)).square().mean().backward()
        optimizer.receive()
        optimizer.step(1.0, torch.tensor(True))
        optimizer.zero_grad()
    with torch.no_grad():
        logits = model.logits(model(TOKENS))
    checkpoints = Checkpoints(folder, 2, arrangement)
    before = random_numbers(runtime)
    checkpoints.save(2, model=model, optimizer=optimizer, state={}, wait=True)
    drawn = torch.rand(3)
    assert not torch.equal(before, drawn)
    again, arranged = parallelize(LLAMA, 6, Grid.make(runtime, ParallelConfig(**mesh)))
    restore(folder / "step-000002", again, Optimizer(again, AdamWConfig(), arrangement=arranged), arranged)
    assert torch.equal(torch.rand(3), drawn), "on the same mesh each process goes on with its own numbers"
    with torch.no_grad():
        assert torch.equal(again.logits(again(TOKENS)), logits)
    return {"logits": logits, "drawn": drawn}


def random_numbers(runtime: Runtime) -> Tensor:
    """Numbers that no two ranks share."""
    torch.manual_seed(100 + runtime.rank)
    return torch.rand(3)


def logits_on(runtime: Runtime, mesh: dict[str, int], folder: Path) -> Tensor:
    model, arrangement = parallelize(LLAMA, 7, Grid.make(runtime, ParallelConfig(**mesh)))
    optimizer = Optimizer(model, AdamWConfig(), arrangement=arrangement)
    restore(folder, model, optimizer, arrangement)
    with torch.no_grad():
        return model.logits(model(TOKENS))


@pytest.mark.slow
def test_a_sharded_training_says_the_same_wherever_it_is_read(saved: Saved, tmp_path: Path) -> None:
    one, other = saved.two
    expected = one["logits"]
    assert torch.equal(expected, other["logits"]) and not torch.equal(one["drawn"], other["drawn"])
    exported = send_out(str(saved.trained), ExportConfig(to="hf", output=tmp_path / "exported"))
    with torch.no_grad():
        for folder in (saved.trained, exported):
            model, _ = load_model(folder)
            torch.testing.assert_close(model.logits(model(TOKENS)), expected, rtol=0, atol=1e-6)
    for logits in saved.four:
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


# What goes wrong


def failures(runtime: Runtime, folder: Path) -> None:
    """All that can fail on one of two processes and must be known to both."""
    training = Training.make(runtime, "shard=2").fill()
    checkpoints = Checkpoints(folder, 2, training.arrangement)
    training.save(checkpoints, 1)
    one_cannot_write(runtime, training, checkpoints)
    the_disk_is_full(runtime, training, checkpoints)
    training_goes_on(runtime, training, checkpoints)
    training.fill()
    training.save(checkpoints, 5)
    damage_is_passed_over(runtime, training, checkpoints)


def one_cannot_write(runtime: Runtime, training: Training, checkpoints: Checkpoints) -> None:
    """Each in turn: its rank is named, the old checkpoint stays and nothing temporary does."""
    for unlucky in range(2):
        with pytest.MonkeyPatch.context() as patch:
            if runtime.rank == unlucky:
                patch.setattr(snapshot, "save_file", disk_full)
            training.save(checkpoints, 2, wait=False)
            with pytest.raises(CheckpointError) as caught:
                training.save(checkpoints, 3)
        for words in (
            f"rank {unlucky}: ",
            "step-000002: could not be written (No space left",
            "step-000001 is",
        ):
            assert words in str(caught.value)
        distributed.barrier()
        assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000001"]


def disk_full(*_: object, **__: object) -> None:
    raise OSError(28, os.strerror(28))


def the_disk_is_full(runtime: Runtime, training: Training, checkpoints: Checkpoints) -> None:
    """What all write together counts, on the first one's disk."""
    needed = 1.2 * sum(it.tensor.nbytes for it in Training.make().held().values())
    usage = shutil.disk_usage(checkpoints.folder)
    for free, fits in ((int(needed) - 1, False), (int(needed) + 1, True)):
        with pytest.MonkeyPatch.context() as patch:
            if runtime.rank == 0:
                patch.setattr(checkpoint.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
            if fits:
                training.save(checkpoints, 2)
                continue
            with pytest.raises(CheckpointError, match=r"rank 0: .*a checkpoint needs .* MB of free space"):
                training.save(checkpoints, 2)


def training_goes_on(runtime: Runtime, training: Training, checkpoints: Checkpoints) -> None:
    """While the threads wait, the processes train and speak with each other; the copy stays as it was."""
    release, write = threading.Event(), Snapshot.write

    def waiting(self: Snapshot, folder: Path) -> None:
        assert release.wait(20)
        write(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "write", waiting)
        training.save(checkpoints, 3, wait=False)
        training.fill(times=2)
        for _ in range(20):
            summed = torch.ones(1000)
            distributed.all_reduce(summed)
        assert summed[0] == 2 and not (checkpoints.folder / "step-000003").exists()
        release.set()
        checkpoints.wait()
    training.check(times=2).restore(checkpoints.folder / "step-000003").check()


def damage_is_passed_over(runtime: Runtime, training: Training, checkpoints: Checkpoints) -> None:
    """Whoever's file it is in, all go back to the same checkpoint."""
    newest = checkpoints.folder / "step-000005"
    for name in ("weights/model-00002-of-00002.safetensors", "state/optimizer.index.json", "model.yaml"):
        whole = (newest / name).read_bytes()
        distributed.barrier()
        if runtime.rank == 0:
            (newest / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        distributed.barrier()
        assert checkpoints.latest() == checkpoints.folder / "step-000003"
        if runtime.rank == 1 or "model-" not in name:  # the other does not read that file
            with pytest.raises(CheckpointError, match=f"{name} does not match the digest"):
                training.restore(newest)
        distributed.barrier()
        if runtime.rank == 0:
            (newest / name).write_bytes(whole)
        distributed.barrier()
    assert checkpoints.latest() == newest


@pytest.mark.slow
def test_what_one_process_cannot_do_all_learn_and_what_four_saved_two_read(
    saved: Saved, tmp_path: Path
) -> None:
    together(2, on_two_again, saved.folder, tmp_path)
    assert latest(tmp_path / "failures") == tmp_path / "failures/step-000005"
    for folder in (tmp_path / "shard/shard=2", tmp_path / "tensor/tensor=2"):
        Training.make().restore(folder / "step-000001").check()


def in_two(folder: Path, work: Callable[[Runtime], None]) -> list[int]:
    """`work` in two forked processes that speak over gloo; how each ended, 3 for lost contact."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                distributed.init_process_group("gloo", f"file://{folder}", rank=rank, world_size=2)
                work(Runtime(torch.device("cpu"), rank, 2))
                code = 0
            except LostContactError:
                code = 3
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.slow
@pytest.mark.parametrize("unlucky", [0, 1])
def test_a_process_killed_at_any_call_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, file_calls: Callable, monkeypatch: pytest.MonkeyPatch, unlucky: int
) -> None:
    """Whichever of two it is; the one that lives on learns of it, or has all it needs."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    steps_found, fatal, ended = set(), 1, [-1, -1]
    while ended[unlucky]:
        folder = tmp_path / str(fatal)

        def work(runtime: Runtime, folder: Path = folder, fatal: int = fatal) -> None:
            training = Training.make(runtime, "tensor=2").fill()
            checkpoints = Checkpoints(folder, 1, training.arrangement)
            training.save(checkpoints, 1)
            training.fill(times=2)
            distributed.barrier()

            def die(number: int) -> None:
                if runtime.rank == unlucky and number == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

            with file_calls(die):
                training.save(checkpoints, 2)

        ended = in_two(tmp_path / f"meet-{fatal}", work)
        assert ended[unlucky] in (-signal.SIGKILL, 0) and ended[1 - unlucky] in (0, 3)
        found = Checkpoints(folder, 1).latest()  # sweeps
        assert found is not None and all(damage(path) is None for path in folder.iterdir())
        step = int(found.name.removeprefix("step-"))
        steps_found.add(step)
        Training.make().restore(found).check(times=step)
        fatal += 3 if unlucky == 0 else 2
    assert steps_found == {1, 2} and fatal > 12


@pytest.mark.slow
def test_the_index_and_the_manifest_are_plain_json(saved: Saved) -> None:
    folder = saved.steps()["shard=2,tensor=2"]
    index = json.loads((folder / "state/optimizer.index.json").read_text())
    assert index["tensors"]["embedding.weight/step"] == {"dtype": "F32", "shape": [], "boxes": [[0, [], []]]}
    manifest = read_manifest(folder)
    assert manifest is not None and manifest["note"] == {"step": 1, "metric": None, "parent": None}
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pkl", ".distcp", ".bin")]
