"""`hasten compress`: from a trained model to a smaller one, step by step, and again."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tiny_compressed import QUICK, compress, record, steps, trained

from hasten.cli import main
from hasten.compression import chain
from hasten.compression.config import CompressConfig, Distil
from hasten.core.config import parse
from hasten.core.errors import ConfigError
from hasten.core.files import damage
from hasten.model.quantized import quantized_weights
from hasten.train.load import load_model
from hasten.train.restore import checkpoint_in
from hasten.train.run import Run

DEPTH, DISTIL = {"kind": "depth", "layers": 1}, {"kind": "distil", "steps": 3}
ROUNDED = {"kind": "quantize", "method": "rtn", "group_size": 32}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text_files):
    return trained(tmp_path_factory.mktemp("chain"), text_files)


@pytest.fixture
def run(whole, tmp_path):
    """A copy of a trained run."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_chain_leaves_a_whole_model_after_each_step(run, capsys):
    assert compress(run, steps(DEPTH, DISTIL, ROUNDED)) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"report: {run / 'report.html'}\n") and "bytes on the disk" in out
    folders = [run / "compress" / name for name in ("1-depth", "2-distil", "3-quantize")]
    assert [damage(folder) for folder in folders] == [None] * 3
    first, second, third = (load_model(folder)[0] for folder in folders)
    assert (first.config.num_layers, second.config.num_layers, third.config.num_layers) == (2, 2, 2)
    moved = (first.embedding.weight - second.embedding.weight).abs().max()
    assert moved > 0, "the student has learnt"
    assert next(quantized_weights(second), None) is None and next(quantized_weights(third), None)
    assert not (run / "compress/2-distil-training/checkpoints").exists(), "to go on with"
    assert (run / "compress/2-distil-training/metrics.jsonl").exists()


def test_the_record_says_what_each_model_is(run):
    compress(run, steps(DEPTH, ROUNDED))
    found = record(run)
    models = {model["name"]: model for model in found["models"]}
    assert list(models) == ["original", "1-depth", "2-quantize"] and found["final"] == "2-quantize"
    for name, model in models.items():
        folder = checkpoint_in(run) if name == "original" else run / "compress" / name
        loaded, _ = load_model(folder)
        assert model["bytes"] == (folder / "weights/model.safetensors").stat().st_size
        assert model["parameters"] == loaded.config.num_parameters
        assert model["speed"]["per_second"] > 0
    assert models["original"]["speedup"] is None and models["original"]["agreement"] is None
    last = models["2-quantize"]
    first = models["original"]["quality"]["score"]["value"]
    assert last["quality"]["name"] == "bits_per_byte"
    assert last["quality"]["score"]["value"] - last["quality"]["change"]["value"] == pytest.approx(first)
    assert 0 < last["agreement"]["same"]["value"] <= 1 and last["agreement"]["kl"]["interval"] > 0
    assert found["machine"]["torch"] == torch.__version__ or "torch" in found["machine"]


def test_the_original_scores_as_evaluation_says(run):
    compress(run, steps(ROUNDED), "evaluate.max_bytes=1500")
    main(["evaluate", str(run), "evaluate.max_bytes=1500", "evaluate.code=null"])
    evaluation = json.loads((run / "evaluation.json").read_text())
    original = record(run)["models"][0]["quality"]["score"]["value"]
    assert original == pytest.approx(evaluation["test"]["bits_per_byte"], rel=1e-4)


def test_run_again_it_keeps_what_is_done_and_goes_on_from_there(run, capsys):
    compress(run, steps(DEPTH, ROUNDED))
    before = (run / "compress/1-depth/manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    compress(run, steps(DEPTH, {**ROUNDED, "bits": 8}))
    out = capsys.readouterr().out
    assert "1-depth is unchanged, kept" in out and "compress: 2-quantize\n" in out
    assert (run / "compress/1-depth/manifest.json").stat().st_mtime_ns == before
    bits = {layer.bits for _, layer in quantized_weights(load_model(run / "compress/2-quantize")[0])}
    assert bits == {8}


def test_a_damaged_step_is_taken_again(run):
    compress(run, steps(DEPTH, ROUNDED))
    weights = run / "compress/1-depth/weights/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    compress(run, steps(DEPTH, ROUNDED))
    assert weights.read_bytes() == whole


def test_a_chain_killed_while_it_writes_goes_on_behind_what_is_whole(run, monkeypatch, capsys):
    laid = []

    def die(original, parcel, link):
        if laid:
            raise KeyboardInterrupt
        laid.append(link.name)
        lay_down(original, parcel, link)

    lay_down = chain.lay_down
    with monkeypatch.context() as patch:
        patch.setattr(chain, "lay_down", die)
        assert compress(run, steps(DEPTH, ROUNDED)) == 1
    assert [path.name for path in (run / "compress").iterdir()] == ["1-depth"]
    capsys.readouterr()
    assert compress(run, steps(DEPTH, ROUNDED)) == 0
    assert "1-depth is unchanged, kept" in capsys.readouterr().out


def test_a_stopped_training_goes_on_and_ends_as_if_undisturbed(run, monkeypatch, capsys):
    advance = Run.advance

    def advance_and_stop(self, moment):
        advance(self, moment)
        if self.state.step == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", advance_and_stop)
        assert compress(run, steps(DEPTH, DISTIL)) == 1
    assert "stopped and saved; give the same command to go on" in capsys.readouterr().out
    assert not (run / "compress/2-distil").exists()
    assert compress(run, steps(DEPTH, DISTIL)) == 0
    resumed = load_model(run / "compress/2-distil")[0].state_dict()
    assert compress(run, steps(DEPTH, DISTIL), f"output={run}") == 0
    assert compress(run, steps({**DEPTH, "contiguous": True}, DISTIL)) == 0  # the same layer, taken anew
    whole = load_model(run / "compress/2-distil")[0].state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_as_a_stage_of_a_journey_it_is_kept_while_its_inputs_are(recipe, tmp_path, capsys):
    words = [str(recipe), "journey=[prepare, train, compress, report]", steps(ROUNDED), *QUICK]
    assert main(["journey", *words]) == 0
    capsys.readouterr()
    assert main(["journey", *words]) == 0
    assert "[3/4] compress: unchanged, kept" in capsys.readouterr().out
    page = (tmp_path / "run/report.html").read_text()
    share = record(tmp_path / "run")["models"][1]["bytes"] / record(tmp_path / "run")["models"][0]["bytes"]
    assert f"{100 * share:.1f}%" in page and "1-quantize" in page


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(run):
    compress(run, steps(ROUNDED), "compress.measure.memory=true")
    memory = record(run)["models"][0]["memory"]
    assert memory["peak"] > memory["before"] > 0


@pytest.mark.parametrize(
    "section, message",
    [
        ({"steps": [ROUNDED, DEPTH]}, "quantize has to be the last"),
        ({"steps": [{"kind": "distil"}]}, "write exactly one of steps, tokens, epochs, minutes"),
        ({"steps": [{"kind": "distil", "steps": 3, "tokens": 4}]}, "write exactly one of"),
        ({"target": "size=20"}, "target is 'size=20'; write size=20MB, size=25%, speed=2x or quality=99%"),
        ({"target": "speed=50%"}, "write size=20MB"),
        ({"target": "quality=0%"}, "write size=20MB"),
        ({"steps": []}, "steps"),
    ],
    ids=["order", "endless", "twice", "unit", "share-of-speed", "nothing", "no-step"],
)
def test_what_makes_no_sense_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        parse(CompressConfig, section, "compress")


def test_a_distilling_step_says_only_what_is_not_as_usual():
    step = parse(Distil, {"steps": 5, "objective": {"temperature": 2.0}}, "distil")
    assert step.objective.teacher == "original" and step.objective.temperature == 2
    assert step.horizon == {"steps": 5} and step.training == {}
