"""Encoders and encoder-decoders go through the same loop: begun, validated, stopped, resumed, compiled."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CPU, Act

from hasten.data.config import MaskingConfig
from hasten.data.corpus import Corpus
from hasten.data.masked import MaskedCorpus
from hasten.data.pair_corpus import PairCorpus
from hasten.data.shards import ShardWriter
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.config import TrainConfig
from hasten.train.load import load_model
from hasten.train.restore import read_tensors
from hasten.train.run import Run
from hasten.train.transfer import Base, factors

ROW, STEPS, EOT = 16, 8, 256
ENCODER = {
    "kind": "encoder",
    "position": "learned",
    "norm": "layer",
    "norm_place": "after",
    "embedding_norm": "learned",
    "head_transform": True,
    "head_bias": True,
    "tied": True,
}
SEQ2SEQ = {"kind": "seq2seq", "position": "relative", "num_encoder_layers": 1, "start_id": EOT}
MODELS: dict[str, dict[str, Any]] = {"encoder": ENCODER, "seq2seq": SEQ2SEQ}


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer: Callable[..., Tokenizer]) -> Tokenizer:
    return byte_tokenizer("<|endoftext|>", "<|mask|>")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers that count upwards, as texts and as pairs of a run and the run after it."""
    folder = tmp_path_factory.mktemp("kinds")
    draw = torch.Generator().manual_seed(0)
    for kind in MODELS:
        for split, number in (("train", 60), ("validation", 12)):
            writer = ShardWriter("numbers", 258, EOT, EOT)
            for i in range(number):
                start, length = torch.randint(2, 14, (2,), generator=draw).tolist()
                for part in range(1 + (kind == "seq2seq")):
                    first = start + part * length
                    writer.add(f"{split}/{i}", list(range(first, first + length)), length)
            (folder / kind / split).mkdir(parents=True)
            writer.write(folder / kind / split / "numbers-0.safetensors")
    return folder


def corpus(kind: str, folder: Path, split: str, seed: int, tokenizer: Tokenizer) -> Corpus:
    if kind == "seq2seq":
        place = folder / kind, split, ROW, seed
        return PairCorpus(*place, source_tokens=20, start_id=EOT, pad_id=EOT)
    masking = MaskingConfig(share=0.25)
    return MaskedCorpus(folder / kind, split, ROW, seed, tokenizer=tokenizer, masking=masking)


def make_run(
    folder: Path, kind: str, data: Path, tokenizer: Tokenizer, probes: tuple[Act, ...] = (), **fields: Any
) -> Run:
    given = {"steps": STEPS, "batch_tokens": 4 * ROW, "micro_batch_tokens": 2 * ROW, **fields}
    shape = {"vocab_size": 258, "dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.1, **MODELS[kind]}
    return Run(
        folder,
        TrainConfig.model_validate({"log_every": 3, "validate_every": 3, "checkpoint_every": 3, **given}),
        model=build(ModelConfig.model_validate(shape), 0),
        corpus=corpus(kind, data, "train", 0, tokenizer),
        validation=corpus(kind, data, "validation", 0, tokenizer),
        runtime=CPU,
        objective=CrossEntropy(label_smoothing=0.1),
        probes=probes,
    )


def end_of(folder: Path) -> dict[str, list[Any]]:
    last = folder / "checkpoints" / f"step-{STEPS:06}"
    files = {name: read_tensors(last, name) for name in ("weights/model", "state/optimizer")}
    return {
        f"{file}/{key}": tensor.tolist() for file, tensors in files.items() for key, tensor in tensors.items()
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    """Every line of metrics, without what depends on the clock."""
    timed = {"seconds", "tokens_per_second", "mfu"}
    text = (folder / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in text.splitlines()]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_and_resumed_run_ends_as_a_straight_one_bit_for_bit(
    kind: str, optimizer: str, prepared: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def stop(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    fields = {"optimizer": {"kind": optimizer}}
    make_run(tmp_path / "straight", kind, prepared, tokenizer, **fields).fit()
    first = make_run(tmp_path / "cut", kind, prepared, tokenizer, (Act(1, stop),), **fields).fit()
    assert first.steps == 5
    second = make_run(tmp_path / "cut", kind, prepared, tokenizer, **fields).fit()
    assert second.completed
    assert end_of(tmp_path / "cut") == end_of(tmp_path / "straight")
    assert lines(tmp_path / "cut") == lines(tmp_path / "straight")


@pytest.mark.parametrize("kind", MODELS)
def test_validation_says_what_its_kind_is_judged_by_and_training_learns(
    kind: str, prepared: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    fields = {"steps": 60, "validate_every": 30, "schedule": {"kind": "constant"}}
    if kind == "seq2seq":
        fields["optimizer"] = {"kind": "adamw", "learning_rate": 0.01}
    run = make_run(tmp_path, kind, prepared, tokenizer, **fields)
    assert run.plan.flops_per_token == run.model.config.flops_per_token(
        ROW, source_tokens=20, head_share=0.25 if kind == "encoder" else 1.0
    )
    run.fit()
    seen = [line for line in lines(tmp_path) if line["kind"] == "validation"]
    assert seen[0]["validation_loss"] == pytest.approx(math.log(258), rel=0.03)
    assert seen[-1]["validation_loss"] < 0.8 * seen[0]["validation_loss"]
    assert seen[-1]["validation_perplexity"] == pytest.approx(math.exp(seen[-1]["validation_loss"]))
    assert ("validation_accuracy" in seen[-1]) == (kind == "encoder")
    if kind == "encoder":
        assert seen[-1]["validation_accuracy"] > seen[0]["validation_accuracy"]


@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_loads_as_the_assembly_that_it_is(
    kind: str, prepared: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run = make_run(tmp_path, kind, prepared, tokenizer)
    run.fit()
    model, _ = load_model(tmp_path / "checkpoints" / f"step-{STEPS:06}")
    assert type(model) is type(run.model)
    batch = next(run.corpus.sweep(2))
    with torch.no_grad():
        ours, theirs = (m(**run.objective.inputs(batch)) for m in (run.model.eval(), model))
    assert torch.equal(ours, theirs)


def test_the_deeper_side_sets_the_pace_of_output_matrices() -> None:
    shape = {"vocab_size": 64, "dim": 64, "num_layers": 2}
    base = Base(dim=64, num_layers=2, batch_tokens=64)

    def output(**fields: Any) -> float:
        model = ModelConfig.model_validate({**shape, **fields})
        return factors(base, model, 64, optimizer="muon")["output"]

    assert output() == output(kind="encoder") == output(kind="seq2seq") == 1
    assert output(kind="seq2seq", num_encoder_layers=4) == 0.5
    assert output(kind="seq2seq", num_layers=8) == 0.25
