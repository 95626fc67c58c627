"""Reading checkpoints: a training goes on bit for bit, and nothing damaged or foreign gets in."""

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoint import TINY, Training, same, steps_in
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel

from hasten.core import files
from hasten.core.config import dump
from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import build
from hasten.train import held, snapshot
from hasten.train.checkpoint import Checkpoints, best, latest, load_model, restore
from hasten.train.optim import AdamWConfig, MuonConfig


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's `checkpoints` folder with steps 1 and 2, of which 1 has the better metric."""
    folder, training = tmp_path / "checkpoints", Training()
    checkpoints = Checkpoints(folder)
    for step, metric in ((1, 1.0), (2, 2.0)):
        training.step()
        training.save(checkpoints, step, metric=metric)
    return folder


@pytest.mark.parametrize("optimizer_config", [MuonConfig(), AdamWConfig()], ids=["muon", "adamw"])
def test_a_training_cut_at_any_step_ends_with_the_same_bytes(tmp_path, optimizer_config):
    torch.manual_seed(1)
    whole, checkpoints = Training(optimizer_config=optimizer_config), Checkpoints(tmp_path, keep_last=9)
    for step in range(1, 7):
        whole.step()
        whole.save(checkpoints, step)
    for step in range(1, 7):
        torch.manual_seed(99)
        resumed = Training(seed=5, optimizer_config=optimizer_config)
        restore(tmp_path / f"step-{step:06}", resumed.model, resumed.optimizer)
        for _ in range(step, 6):
            resumed.step()  # draws data and dropout from torch's generator
        assert same(whole.tensors(), resumed.tensors())


def draws() -> tuple[float, float, float, float, float]:
    """One draw from each generator, a half-used pair of normal ones included."""
    normal = np.random.standard_normal()
    return random.random(), random.gauss(0, 1), float(normal), float(np.random.rand()), torch.rand(()).item()


def test_python_numpy_and_torch_draw_the_same_numbers_after_a_resume(tmp_path):
    training = Training()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    random.gauss(0, 1), np.random.standard_normal()  # each keeps the second of a pair
    training.save(Checkpoints(tmp_path), 1)
    expected = [draws() for _ in range(3)]
    draws()
    restore(tmp_path / "step-000001", training.model, training.optimizer)
    assert [draws() for _ in range(3)] == expected


def test_a_generator_of_a_missing_gpu_is_spoken_of(capsys):
    tensors, numbers = snapshot.random_state()
    snapshot.set_random_state({**tensors, "cuda:7": tensors["cpu"]}, numbers)
    assert "random state of cuda:7, which is not here: dropout will differ" in capsys.readouterr().out


def test_whoever_holds_the_models_tensors_sees_the_restored_values(run):
    training = Training(seed=9)
    held = training.model.embedding.weight
    restore(run / "step-000002", training.model, training.optimizer)
    assert held is training.model.embedding.weight
    assert held is next(p for p in training.optimizer.parameters.values() if p.shape == held.shape)


@pytest.mark.parametrize(
    "other, message",
    [
        (
            {"config": TINY.model_copy(update={"vocab_size": 12})},
            "weight 'embedding.weight' is [11, 8] torch.float32 in the checkpoint and [12, 8] torch",
        ),
        (
            {"config": TINY.model_copy(update={"num_layers": 2})},
            "weight 'layers.1.attention.key.weight' is missing in the checkpoint and [8, 8] torch",
        ),
        (
            {"config": TINY.model_copy(update={"num_heads": 4, "num_kv_heads": 4, "head_dim": 2})},
            "model.num_heads is 2 in the checkpoint and 4 here",
        ),
        (
            {"optimizer_config": AdamWConfig()},
            "optimizer state 'layers.0.attention.key.weight/exp_avg' is missing in the checkpoint and [8, 8]",
        ),
    ],
    ids=["width", "depth", "heads", "optimizer"],
)
def test_another_model_or_optimizer_is_refused_by_name_and_left_alone(run, other, message):
    training = Training(seed=3, **other)
    before = training.tensors()
    with pytest.raises(CheckpointError) as caught:
        restore(run / "step-000002", training.model, training.optimizer)
    assert message in str(caught.value)
    assert "resume with the model" in str(caught.value)
    assert same(before, training.tensors())


def test_weights_of_another_type_are_refused(run):
    training = Training()
    training.model.bfloat16()
    with pytest.raises(
        CheckpointError, match=r"is \[11, 8\] torch.float32 in .* and \[11, 8\] torch.bfloat16 here"
    ):
        restore(run / "step-000002", training.model, training.optimizer)


# Which checkpoint


def test_latest_passes_over_a_damaged_checkpoint_and_names_it(run, capsys):
    assert latest(run) == run / "step-000002"
    assert capsys.readouterr().out == ""
    (run / "step-000002" / "model.yaml").write_text("kind: decoder")
    assert latest(run) == run / "step-000001"
    assert (
        "step-000002 is damaged and passed over: model.yaml has 13 bytes instead of"
        in capsys.readouterr().out
    )


def test_best_has_the_lowest_metric_and_passes_over_damage_too(run, capsys):
    assert best(run) == run / "step-000001"
    (run / "step-000001" / "model.yaml").unlink()
    assert best(run) == run / "step-000002"
    assert "step-000001 is damaged and passed over: model.yaml is missing" in capsys.readouterr().out


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(run, tmp_path):
    assert latest(tmp_path / "nothing") is None
    assert best(tmp_path / "nothing") is None
    for folder in run.iterdir():
        (folder / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match="all 2 checkpoints are damaged; bring one back from a copy, or move"
    ):
        latest(run)


def test_steps_are_compared_as_numbers(tmp_path):
    training, checkpoints = Training(), Checkpoints(tmp_path)
    for step in (999_999, 1_000_000):
        training.save(checkpoints, step)
    assert checkpoints.latest() == tmp_path / "step-1000000"


# Damage


def attempts(folder: Path) -> list[Callable[[], object]]:
    """The two ways to read a checkpoint."""
    training = Training()
    return [lambda: restore(folder, training.model, training.optimizer), lambda: load_model(folder)]


def assert_refused(folder: Path, name: str) -> None:
    for attempt in attempts(folder):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert str(folder) in str(caught.value) and name in str(caught.value)


def everything_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_no_flipped_bit_loads(run):
    dice, folder = random.Random(0), run / "step-000002"
    for _ in range(60):
        path = dice.choice(everything_in(folder))
        whole = path.read_bytes()
        at, bit = dice.randrange(len(whole)), 1 << dice.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        assert_refused(folder, path.name)
        path.write_bytes(whole)
    assert latest(run) == folder


def test_no_truncated_file_loads(run):
    dice, folder = random.Random(0), run / "step-000002"
    for _ in range(30):
        path = dice.choice(everything_in(folder))
        whole = path.read_bytes()
        path.write_bytes(whole[: dice.randrange(len(whole))])
        assert_refused(folder, path.name)
        path.write_bytes(whole)


def test_no_missing_or_additional_file_loads(run):
    folder = run / "step-000002"
    for path in everything_in(folder):
        path.rename(run / "elsewhere")
        assert_refused(folder, path.name)
        (run / "elsewhere").rename(path)
    (folder / "tokenizer.json").write_text("{}")
    assert_refused(folder, "tokenizer.json is not in the manifest")


def test_no_file_of_another_checkpoint_loads(run):
    for path in everything_in(run / "step-000001"):
        there = run / "step-000002" / path.relative_to(run / "step-000001")
        whole = there.read_bytes()
        if path.read_bytes() != whole and path.name != "manifest.json":
            shutil.copyfile(path, there)
            assert_refused(run / "step-000002", path.name)
            there.write_bytes(whole)


# Files that attack: the manifest vouches for them, so only their readers stand in the way.


def forge(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    files.write_manifest(folder, {"step": 2, "metric": None, "parent": None})


class Canary:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["weights/model.safetensors", "state/optimizer.safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_under_a_safetensors_name_is_not_executed(run, tmp_path, name, save):
    save(Canary(tmp_path / "canary"), tmp_path / "evil")
    forge(run / "step-000002", name, (tmp_path / "evil").read_bytes())
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read .*; use another checkpoint"):
        attempts(run / "step-000002")[0]()
    assert not (tmp_path / "canary").exists()


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        safetensors({}, length=2**63),
        safetensors({}, length=101_000_000),
        safetensors(b"\xff" * 16),
        safetensors(b"[" * 5000),
        safetensors({"a": FLOAT}),
        safetensors({"a": {**FLOAT, "shape": [2**62, 8]}}, b"\0" * 8),
        safetensors({"a": {**FLOAT, "data_offsets": [8, 0]}}, b"\0" * 8),
        safetensors({"a": FLOAT, "b": FLOAT}, b"\0" * 8),
        safetensors({"a": FLOAT}, b"\0" * 16),
        safetensors({"a": {**FLOAT, "dtype": "PY"}}, b"\0" * 8),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_a_hostile_safetensors_header_is_refused(run, content):
    forge(run / "step-000002", "weights/model.safetensors", content)
    for attempt in attempts(run / "step-000002"):
        with pytest.raises(CheckpointError, match=r"weights/model\.safetensors: cannot be read"):
            attempt()


@pytest.mark.parametrize("name", ["state/state.json", "state/random.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_json_file_that_is_none_is_refused(run, name, content):
    forge(run / "step-000002", name, content)
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read"):
        attempts(run / "step-000002")[0]()


@pytest.mark.parametrize("value", [{}, {"python": [3, [1], None]}, {"python": 1, "numpy": 1}])
def test_a_random_state_of_another_shape_is_refused(run, value):
    forge(run / "step-000002", "state/random.json", json.dumps(value).encode())
    with pytest.raises(CheckpointError, match=r"state/random\.json: is no random state"):
        attempts(run / "step-000002")[0]()


@pytest.mark.parametrize("name", ["state/state.json", "state/random.json"])
@pytest.mark.parametrize("value", [[], 3, None])
def test_a_state_that_is_no_mapping_is_refused(run, name, value):
    forge(run / "step-000002", name, json.dumps(value).encode())
    with pytest.raises(CheckpointError, match=rf"{name}: holds no mapping; use another checkpoint"):
        attempts(run / "step-000002")[0]()


# Just the model


def test_a_run_gives_its_best_model_and_a_checkpoint_its_own(run):
    weights = {step: Training(seed=7) for step in (1, 2)}
    for step, training in weights.items():
        restore(run / f"step-{step:06}", training.model, training.optimizer)
    for folder, step in ((run.parent, 1), (run, 1), (run / "step-000001", 1), (run / "step-000002", 2)):
        model, tokenizer = load_model(folder)
        assert tokenizer is None
        assert not model.training
        assert model.config == TINY
        assert same(dict(model.named_parameters()), dict(weights[step].model.named_parameters()))


def test_a_run_without_metrics_gives_its_latest_model(tmp_path):
    training, checkpoints = Training(), Checkpoints(tmp_path)
    training.save(checkpoints, 1)
    training.step()
    training.save(checkpoints, 2)
    model, _ = load_model(tmp_path)
    assert same(dict(model.named_parameters()), dict(training.model.named_parameters()))


def test_the_loaded_model_says_what_the_trained_one_said(run):
    training = Training(seed=4)
    restore(run / "step-000002", training.model, training.optimizer)
    tokens = torch.arange(10)[None]
    loaded, _ = load_model(run / "step-000002")
    with torch.no_grad():
        assert torch.equal(loaded(tokens), training.model.eval()(tokens))


def test_a_checkpoint_gives_its_tokenizer(tmp_path):
    words = {"<|endoftext|>": 0, "a": 1, "b": 2}
    raw = RawTokenizer(WordLevel(words, unk_token="<|endoftext|>"))
    raw.add_special_tokens(["<|endoftext|>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    training = Training()
    Checkpoints(tmp_path / "run").save(
        1, model=training.model, optimizer=training.optimizer, state={}, tokenizer=tmp_path, wait=True
    )
    _, tokenizer = load_model(tmp_path / "run")
    assert tokenizer is not None
    assert tokenizer.vocab_size == 3


def test_a_hugging_face_folder_gives_its_model(tmp_path):
    llama = ModelConfig(vocab_size=11, dim=8, num_layers=1, num_heads=2, activation="swiglu", ffn_dim=16)
    model = build(llama, seed=3).eval()
    save_hugging_face(model, tmp_path)
    loaded, tokenizer = load_model(tmp_path)
    assert tokenizer is None
    assert not loaded.training
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), model(tokens))


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_matrix_is_saved_once_and_shared_again(tmp_path, tied):
    training = Training(config=TINY.model_copy(update={"tied": tied}))
    training.save(Checkpoints(tmp_path), 1)
    names = held.weights_of(training.model).keys()
    assert ("head.weight" in names) is not tied
    model, _ = load_model(tmp_path)
    assert model.config.num_parameters == sum(p.numel() for p in model.parameters())


def test_a_tensor_under_two_names_is_copied_once():
    class Twins(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.two = torch.nn.Linear(2, 2, bias=False)

    assert list(held.weights_of(Twins())) == ["one.weight"]


@pytest.mark.parametrize("content", ["", "a checkpoint?"])
def test_a_folder_without_a_model_is_refused_with_what_to_give(tmp_path, content):
    if content:
        (tmp_path / "f").mkdir()
    what = "holds no model" if content else "there is no such folder"
    with pytest.raises(
        CheckpointError, match=rf"f: {what}; give a run \(with checkpoints/\), a checkpoint \(step-"
    ):
        load_model(tmp_path / "f")


def test_the_model_file_is_a_readable_recipe_of_the_model(run):
    assert (run / "step-000002" / "model.yaml").read_text() == dump(TINY)
    assert ModelConfig.model_validate(TINY.model_dump()) == TINY
    assert steps_in(run) == [1, 2]
