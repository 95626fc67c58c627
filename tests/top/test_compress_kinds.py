"""`hasten compress` of all kinds of models and by all kinds of methods: what each is judged by."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_compressed import QUICK, compress, record, steps, trained
from tiny_finetune import DECODER, ENCODER, TASKS, save_base

from hasten.cli import main
from hasten.compression.original import Original
from hasten.core.config import load
from hasten.model.compressed import COMPRESSION, CompressionNote
from hasten.model.interop import save_hugging_face
from hasten.model.quantized import quantized_weights
from hasten.model.transformer import build
from hasten.recipe import Recipe
from hasten.tokenizer.train import TokenizerConfig
from hasten.tokenizer.train import train as train_tokenizer
from hasten.train.load import load_model

DISTIL = {"kind": "distil", "steps": 3}
ROUNDED = {"kind": "quantize", "method": "rtn", "group_size": 32}
READER = ENCODER.model_copy(
    update={"head": "vocabulary", "tied": True, "head_transform": True, "head_bias": True}
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text_files):
    return trained(tmp_path_factory.mktemp("kinds"), text_files)


@pytest.fixture
def run(whole, tmp_path):
    """A copy of a trained run."""
    return Path(shutil.copytree(whole, tmp_path / "plain"))


def test_a_model_from_elsewhere_needs_no_text_to_be_rounded(tmp_path, byte_tokenizer, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = save_base(tmp_path / "model", READER, byte_tokenizer)
    assert main(["compress", str(base), steps(ROUNDED), *QUICK]) == 0
    found = record(tmp_path / "runs/model")
    assert found["models"][1]["quality"] is None and found["models"][1]["speed"]["unit"] == "examples"
    assert (tmp_path / "runs/model/report.html").is_file()
    capsys.readouterr()
    assert main(["compress", str(base), steps({"kind": "quantize", "group_size": 32}), *QUICK]) == 2
    said = capsys.readouterr().err
    assert "there are none; write data.sources=[path/to/texts], or for quantize method: rtn" in said


def test_an_encoder_is_judged_on_hidden_tokens(tmp_path, text_files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "model"
    save_hugging_face(build(READER, 0), base)
    spelling = TokenizerConfig(vocab_size=259, special_tokens=("<|mask|>",))
    train_tokenizer(["a"], spelling, progress=False).save(base)
    words = [f"data.sources=[{text_files}]", "data.row_tokens=32", f"data.cache={tmp_path}/data"]
    words += ["data.clean={near_duplicates: null, repetition: false}", "compress.measure.rows=16"]
    assert main(["compress", str(base), steps({"kind": "quantize", "group_size": 32}), *words, *QUICK]) == 0
    last = record(tmp_path / "runs/model")["models"][-1]
    assert last["quality"]["name"] == "accuracy" and last["quality"]["higher_is_better"]
    assert last["agreement"]["kl"]["value"] > 0


def test_a_translator_is_judged_by_its_references(recipe, pairs_file, tmp_path):
    source = f"{{paths: {pairs_file}, source_field: en, target_field: de}}"
    words = [f"data.sources=[{source}]", "data.clean={near_duplicates: null, repetition: false}"]
    words += ["model={kind: seq2seq, dim: 32, num_layers: 2, num_heads: 2, max_positions: 64}"]
    assert main(["train", str(recipe), *words]) == 0
    run = tmp_path / "run"
    depth = {"kind": "depth", "layers": 1, "encoder_layers": 1}
    assert compress(run, steps(depth, DISTIL, ROUNDED), "compress.measure.rows=16") == 0
    last = record(run)["models"][-1]
    assert last["quality"]["name"] == "loss" and last["speed"]["unit"] == "tokens"
    config = load_model(run / "compress/3-quantize")[0].config
    assert (config.encoder_layers, config.decoder_layers) == (1, 1)


@pytest.mark.parametrize(
    "task, name", [("labelled", "accuracy"), ("spans", "f1"), ("preferences", "preference_accuracy")]
)
def test_a_tasks_model_is_judged_by_its_score(task, name, tmp_path, byte_tokenizer):
    shape = DECODER if task == "preferences" else ENCODER
    settings = {
        "output": str(tmp_path / "run"),
        "base": str(save_base(tmp_path / "base", shape, byte_tokenizer)),
        "data": {**TASKS[task](tmp_path), "row_tokens": 64, "cache": str(tmp_path / "cache")},
        "train": {"steps": 2, "batch_tokens": 128, "log_every": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    split = "validation" if task == "labelled" else "test"
    assert compress(tmp_path / "run", steps(ROUNDED), f"compress.measure.split={split}") == 0
    last = record(tmp_path / "run")["models"][-1]
    assert last["quality"]["name"] == name and last["quality"]["higher_is_better"]
    assert (last["agreement"] is None) == (task == "spans")


def test_an_adapter_is_to_be_folded_in_first(recipe, run, tmp_path, capsys):
    settings = json.loads(recipe.read_text())
    del settings["model"]
    thin = {**settings, "base": str(run), "adapt": {"rank": 2}, "output": str(tmp_path / "thin")}
    (tmp_path / "thin.yaml").write_text(json.dumps(thin))
    assert main(["train", str(tmp_path / "thin.yaml")]) == 0
    assert compress(tmp_path / "thin", steps(ROUNDED)) == 2
    assert "is an adapter beside its base; fold it in first (hasten merge" in capsys.readouterr().err


def test_thin_layers_are_trained_and_rounded_too(run):
    thin = {"kind": "low_rank", "share": 0.3}
    assert compress(run, steps(thin, DISTIL, {**ROUNDED, "group_size": None})) == 0
    folder = run / "compress/3-quantize"
    assert load(CompressionNote, folder / COMPRESSION).ranks and len(record(run)["models"]) == 4
    model = load_model(folder)[0]
    assert {"up", "down"} <= {name.rpartition(".")[-1] for name, _ in quantized_weights(model)}


def test_zeros_stay_zeros_while_a_model_learns(run):
    assert compress(run, steps({"kind": "sparsify", "pattern": "2:4"}, DISTIL)) == 0
    zeros = [model["zeros"] for model in record(run)["models"]]
    assert zeros[1] == zeros[2] > 0.2 > zeros[0]


def test_the_model_that_is_named_takes_the_place_of_a_base_that_was_looked_at(tmp_path, byte_tokenizer):
    folders = [save_base(tmp_path / name, DECODER, byte_tokenizer) for name in ("base", "named")]
    recipe = Recipe.model_validate({"base": str(folders[0]), "compress": {"model": str(folders[1])}})
    assert recipe.shape.dim == DECODER.dim and recipe.base_folder == folders[0]
    found = Original.of(recipe)
    assert found.folder == found.recipe.base_folder == folders[1]
