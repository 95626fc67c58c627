"""Pruned and factored models as folders: zeros come back, and low rank is trained on as it is."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_run import base_in

from hasten.adapt.config import LoraConfig
from hasten.compress.low_rank import LowRank
from hasten.compress.sparsify import Sparsify
from hasten.compress.statistics import linear_layers
from hasten.core.batch import Batch
from hasten.core.config import parse, read_yaml
from hasten.core.errors import CheckpointError
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.data.shards import ShardWriter
from hasten.exchange.compressed import save_compressed
from hasten.exchange.parcel import opened
from hasten.model.compressed import COMPRESSION, CompressionNote
from hasten.model.factored import factored_layers
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel.apply import parallelize
from hasten.parallel.config import ParallelConfig
from hasten.parallel.grid import Grid
from hasten.train.begin import beginning
from hasten.train.config import TrainConfig
from hasten.train.load import load_model
from hasten.train.restore import checkpoint_in
from hasten.train.run import Run

CPU = Runtime(torch.device("cpu"))
ROW_TOKENS = 16


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama of low rank, as a checkpoint."""
    parcel = opened(base_in(tmp_path / "plain"))
    text = torch.randint(61, (8, 32), generator=torch.Generator().manual_seed(0))
    LowRank(share=0.3).apply(parcel.model, [Batch(text, text)])
    ranks = {name: layer.rank for name, layer in factored_layers(parcel.model).items()}
    save_compressed(
        tmp_path / "base", parcel, CompressionNote(ranks=ranks, parent="plain", steps=("low_rank",))
    )
    return tmp_path / "base"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_pattern_of_zeros_comes_back_exactly(tmp_path: Path, dtype: torch.dtype):
    parcel = opened(base_in(tmp_path / "plain"))
    Sparsify(method="magnitude", pattern="2:4").apply(parcel.model, [])
    with torch.no_grad():
        for parameter in parcel.model.parameters():
            parameter.copy_(parameter.to(dtype))
    parcel = replace(parcel, types=dict.fromkeys(parcel.types, dtype))
    save_compressed(tmp_path / "sparse", parcel, CompressionNote(parent="plain", steps=("sparsify",)))
    layers = linear_layers(load_model(tmp_path / "sparse")[0])
    assert len(layers) == 14
    for layer in layers.values():
        assert ((layer.weight != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()


def corpus_in(folder: Path) -> Corpus:
    """Documents that count upwards."""
    writer = ShardWriter("numbers", 61, 0, 0)
    for i in range(40):
        writer.add(f"{i}.txt", [1 + (i + j) % 60 for j in range(16)], 16)
    (folder / "train").mkdir(parents=True)
    writer.write(folder / "train" / "numbers-0.safetensors")
    return Corpus(folder, "train", ROW_TOKENS, 0)


def test_training_begins_with_the_halves_and_its_checkpoint_has_them(base: Path, tmp_path: Path):
    before, _ = load_model(base)
    start, notes = beginning(before.config, base)
    model, arrangement = parallelize(before.config, 0, Grid.make(CPU, ParallelConfig()), "fp32", start)
    tokens = torch.arange(1, 11)[None]
    assert torch.equal(model.eval()(tokens), before(tokens))
    config = TrainConfig.model_validate({"steps": 3, "batch_tokens": 64, "optimizer": {"kind": "muon"}})
    run = partial(Run, tmp_path / "run", config, model=model, arrangement=arrangement, notes=notes)
    run(corpus=corpus_in(tmp_path / "data"), runtime=CPU, objective=CrossEntropy()).fit()
    after, _ = load_model(tmp_path / "run")
    assert torch.equal(after(tokens), model.eval()(tokens))
    assert not torch.equal(after(tokens), before(tokens))
    ranks = {name: layer.rank for name, layer in factored_layers(after).items()}
    assert ranks and ranks == {name: layer.rank for name, layer in factored_layers(before).items()}
    said = (checkpoint_in(tmp_path / "run") / COMPRESSION).read_text()
    assert parse(CompressionNote, read_yaml(said), "it").ranks == ranks


@pytest.mark.parametrize(
    "options", [{"adaptation": LoraConfig(), "rank": 4}, {"stay": {"": [0]}}], ids=["pairs", "layers"]
)
def test_pairs_beside_it_and_some_of_its_layers_are_refused(base: Path, options: dict[str, Any]):
    config = load_model(base)[0].config
    with pytest.raises(CheckpointError, match="has matrices of low rank, which are trained on as they are"):
        beginning(config, base, **options)
