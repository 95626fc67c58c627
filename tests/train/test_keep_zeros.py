"""A pruned model that is trained on keeps its zeros, and the rest learns as if they were no weights."""

from pathlib import Path

import pytest
import torch
from tiny_run import CPU, MODEL, ROW_TOKENS, PoisonedCrossEntropy, write_corpus

from hasten.compress.sparsify import Sparsify
from hasten.core.errors import ConfigError
from hasten.data.corpus import Corpus
from hasten.model.config import ModelConfig
from hasten.model.layout import role
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train.config import TrainConfig
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer
from hasten.train.run import Run

OPTIMIZERS = {
    "adamw": {"kind": "adamw", "weight_decay": 0.3, "learning_rate": 0.01},
    "muon": {"kind": "muon", "weight_decay": 0.3},
    "muon in turns": {"kind": "muon", "turns": 2},
}


def pruned():
    model = build(ModelConfig.model_validate(MODEL), seed=0)
    return Sparsify(method="magnitude", pattern="2:4").apply(model, [])


def make(folder, prepared, model, optimizer, objective=None, **fields):
    config = {
        "batch_tokens": 4 * ROW_TOKENS, "micro_batch_tokens": 2 * ROW_TOKENS, "optimizer": optimizer,
        "keep_zeros": True, **fields,
    }  # fmt: skip
    corpus = Corpus(prepared, "train", ROW_TOKENS, 0)
    config = TrainConfig.model_validate(config)
    return Run(folder, config, model=model, corpus=corpus, runtime=CPU, objective=objective or CrossEntropy())


def matrices(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if role(name) == "matrix"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_stay_exactly_zero_and_the_rest_moves(optimizer, tmp_path: Path):
    model, before = pruned(), matrices(pruned())
    summary = make(
        tmp_path / "run", write_corpus(tmp_path / "data"), model, OPTIMIZERS[optimizer], steps=6
    ).fit()
    assert summary.completed
    for name, weight in matrices(model).items():
        assert torch.equal(weight == 0, before[name] == 0), name
        assert not torch.equal(weight, before[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_training_keeps_them_and_ends_the_same(optimizer, tmp_path: Path):
    prepared, straight = write_corpus(tmp_path / "data"), pruned()
    options = {"schedule": {"kind": "constant"}, "checkpoint_every": 2}
    make(tmp_path / "straight", prepared, straight, OPTIMIZERS[optimizer], steps=4, **options).fit()
    make(tmp_path / "run", prepared, pruned(), OPTIMIZERS[optimizer], steps=2, **options).fit()
    again = pruned()
    make(tmp_path / "run", prepared, again, OPTIMIZERS[optimizer], steps=4, **options).fit()
    for (name, ours), theirs in zip(again.named_parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_what_is_kept_moves_as_adamw_moves_it_and_no_gradient_of_a_zero_counts():
    config = AdamWConfig(learning_rate=0.01)
    held, free = pruned(), pruned()
    ours, theirs = Optimizer(held, config, keep_zeros=True), Optimizer(free, config)
    draw = torch.Generator().manual_seed(3)
    for parameter, other in zip(held.parameters(), free.parameters(), strict=True):
        parameter.grad = torch.randn(parameter.shape, generator=draw)
        other.grad = parameter.grad.clone()
    ours.receive()
    for name, parameter in held.named_parameters():
        if role(name) == "matrix":
            assert torch.equal(parameter.grad == 0, parameter == 0)
    for one in (ours, theirs):
        one.step(1.0, torch.tensor(True), 0)
    for (name, parameter), other in zip(held.named_parameters(), free.parameters(), strict=True):
        kept = parameter != 0 if role(name) == "matrix" else torch.ones_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter[kept], other[kept])


def test_a_step_that_is_not_finite_changes_no_bit(tmp_path: Path):
    prepared, model = write_corpus(tmp_path / "data", poisoned=60), pruned()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = make(
        tmp_path / "run", prepared, model, OPTIMIZERS["muon"], PoisonedCrossEntropy(), steps=1, max_skips=5
    )
    assert run.fit().skipped > 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()], ids=["adamw", "muon"])
def test_what_has_no_zeros_or_nothing_else_is_refused(config):
    whole = build(ModelConfig.model_validate(MODEL), seed=0)
    with pytest.raises(ConfigError, match="no matrix has a zero; begin with a pruned model"):
        Optimizer(whole, config, keep_zeros=True)
    fresh = build(ModelConfig.model_validate({**MODEL, "zero_init_outputs": True}), seed=0)
    with pytest.raises(ConfigError, match=r"layers\.0\.attention\.out\.weight is zero throughout"):
        Optimizer(fresh, config, keep_zeros=True)
