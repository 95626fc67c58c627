"""The engine's decisions, and that what it runs is the model's own loss."""

import shutil

import pytest
import torch
from tiny_run import CPU, VOCAB

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train import engine
from hasten.train.engine import Whole, choose_compile, choose_precision

DEVICE = torch.device("cpu")


def tiny(dropout: float = 0.0) -> Decoder:
    shape = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 2, "dropout": dropout}
    return build(ModelConfig.model_validate(shape), seed=0)


def batch(rows: int, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(VOCAB, (2, rows, 8), generator=random)
    targets[0, :3] = IGNORE
    segments = torch.tensor([[1] * 5 + [2] * 3] * rows)
    positions = torch.tensor([[*range(5), *range(3)]] * rows)
    return Batch(tokens, targets, segments, positions, documents=(f"book {seed}",))


def whole(model: Decoder, precision: str = "fp32", compiled: bool = False) -> Whole:
    return Whole(model, CrossEntropy(), CPU, precision=precision, compiled=compiled)


def test_measuring_neither_trains_nor_drops_out_nor_changes_the_mode() -> None:
    model = tiny(dropout=0.5).train()
    batches = [batch(3, seed) for seed in range(2)]
    (first, count, _), (second, *_) = (whole(model).measure(batches) for _ in range(2))
    assert torch.equal(first, second)
    assert count == sum(int((b.targets != IGNORE).sum()) for b in batches)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_training_in_bf16_keeps_weights_and_gradients_in_fp32_and_loses_little() -> None:
    exact, rounded = tiny(), tiny()
    scale = torch.tensor(1 / 20)
    losses = [
        whole(model, precision).run([batch(3)], scale)
        for model, precision in ((exact, "fp32"), (rounded, "bf16"))
    ]
    assert losses[0] != losses[1], "bf16 must really be used"
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert b.dtype == torch.float32 and a.grad is not None and b.grad is not None
        assert b.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() <= 0.05 * a.grad.norm()


@pytest.mark.slow
@pytest.mark.skipif(engine.missing_toolchain(DEVICE) is not None, reason="no C++ compiler")
def test_compiled_blocks_and_loss_give_the_eager_loss_and_gradient() -> None:
    """Two batches with other documents: their names must not make anything compile anew."""
    eager, compiled = tiny(), tiny()
    scale = torch.tensor(1 / 20)
    torch._dynamo.reset()
    runner = whole(compiled, compiled=True)
    for seed in range(3):
        counter = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for model in (eager, compiled):
            model.zero_grad()
        expected = whole(eager).run([batch(3, seed)], scale)
        torch.testing.assert_close(runner.run([batch(3, seed)], scale), expected, rtol=1e-5, atol=1e-6)
        for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counter
    assert list(compiled.state_dict()) == list(eager.state_dict())


def test_precision_follows_the_machine_only_where_it_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (True, False):
        monkeypatch.setattr(engine, "has_fast_bf16", lambda device, fast=fast: fast)
        assert choose_precision("auto", DEVICE) == ("bf16" if fast else "fp32")
        assert choose_precision("fp32", DEVICE) == "fp32"
        assert choose_precision("bf16", DEVICE) == "bf16"


def test_compiling_is_chosen_where_a_long_run_and_a_compiler_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "missing_toolchain", lambda device: None)
    monkeypatch.setattr(engine, "library", lambda: None)
    assert choose_compile("auto", DEVICE, 10_000) == (True, "a run of about 10,000 s earns it back")
    assert choose_compile("auto", DEVICE, 100)[0] is False
    assert choose_compile("auto", DEVICE, 100, warm=True)[0] is True
    assert choose_compile("auto", DEVICE, 10, warm=True)[0] is False
    assert choose_compile("on", DEVICE, 1)[0] is True
    assert choose_compile("off", DEVICE, 10_000)[0] is False
    monkeypatch.setattr(engine, "missing_toolchain", lambda device: "a C++ compiler")
    assert choose_compile("auto", DEVICE, 10_000) == (False, "a C++ compiler is needed and none was found")
    with pytest.raises(
        ConfigError, match=r"train.compile: 'on' needs a C\+\+ compiler .*; write off or auto"
    ):
        choose_compile("on", DEVICE, 10_000)


def test_auto_stays_eager_on_a_processor_that_has_its_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "missing_toolchain", lambda device: None)
    monkeypatch.setattr(engine, "library", object)
    chosen, why = choose_compile("auto", DEVICE, 10_000)
    assert not chosen and "kernels" in why
    assert choose_compile("on", DEVICE, 10_000)[0] is True
    assert choose_compile("auto", torch.device("cuda"), 10_000)[0] is True


def test_eight_bits_are_refused_where_there_are_none() -> None:
    with pytest.raises(
        ConfigError, match=r"train.precision: fp8 needs a GPU of .* 8.9 .* cpu is none; write bf16"
    ):
        choose_precision("fp8", DEVICE)


def test_the_compiler_that_the_environment_names_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "my-cc" else None)
    assert engine.missing_toolchain(DEVICE) == "a C++ compiler"
    monkeypatch.setenv("CXX", "my-cc")
    assert engine.missing_toolchain(DEVICE) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_a_pinned_batch_is_the_same_batch() -> None:
    moved = engine.pinned(batch(2))
    assert moved.tokens.is_pinned() and moved.segments is not None and moved.segments.is_pinned()
    assert torch.equal(moved.targets, batch(2).targets) and moved.documents == batch(2).documents
