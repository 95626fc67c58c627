"""One step: how it is cut does not matter, and what is not finite changes nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.batch import IGNORE, Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train.engine import Whole
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer
from hasten.train.step import train_step

CPU = Runtime(torch.device("cpu"))
VOCAB = 19


def tiny() -> Decoder:
    shape = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 2, "max_positions": 16}
    return build(ModelConfig.model_validate(shape), seed=0)


def batch(rows: int, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(VOCAB, (2, rows, 8), generator=random)
    return Batch(tokens, targets.masked_fill(torch.rand(rows, 8, generator=random) < 0.3, IGNORE))


def pieces(whole: Batch, rows: int) -> list[Batch]:
    pairs = zip(whole.tokens.split(rows), whole.targets.split(rows), strict=True)
    return [replace(whole, tokens=tokens, targets=targets) for tokens, targets in pairs]


def engine(model: Decoder, precision: str = "fp32") -> Whole:
    return Whole(model, CrossEntropy(), CPU, precision=precision, compiled=False)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 6), micro_rows=st.integers(1, 6), clip=st.none() | st.floats(0.01, 10))
def test_a_step_in_micro_batches_is_the_step_at_once(rows: int, micro_rows: int, clip: float | None) -> None:
    """Three steps of AdamW with a large eps, which does not blow up the rounding of tiny gradients."""
    config = AdamWConfig(eps=1e-2, learning_rate=1e-2)
    models = [tiny(), tiny()]
    optimizers = [Optimizer(model, config) for model in models]
    for seed in range(3):
        whole = batch(rows, seed)
        cuts = [[whole], pieces(whole, micro_rows)]
        outcomes = [
            train_step(engine(model), optimizer, cut, max_norm=clip)
            for model, optimizer, cut in zip(models, optimizers, cuts, strict=True)
        ]
        torch.testing.assert_close(outcomes[1].loss, outcomes[0].loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outcomes[1].norm, outcomes[0].norm, rtol=1e-4, atol=1e-6)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_reported_loss_is_the_mean_over_targets_and_the_norm_is_that_before_clipping() -> None:
    model, whole = tiny(), batch(4)
    logits = model.logits(model(whole.tokens))
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole.targets.flatten())
    gradients = torch.autograd.grad(mean, list(model.parameters()))
    outcome = train_step(engine(model), Optimizer(model, AdamWConfig()), [whole], max_norm=1e-3)
    torch.testing.assert_close(outcome.loss, mean.detach())
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    torch.testing.assert_close(outcome.norm, norm, rtol=1e-5, atol=0)
    assert bool(outcome.finite)


def test_a_batch_with_nothing_to_learn_is_a_step_of_zero() -> None:
    model = tiny()
    empty = replace(batch(2), targets=torch.full((2, 8), IGNORE))
    outcome = train_step(engine(model), Optimizer(model, AdamWConfig(weight_decay=0)), [empty], max_norm=1.0)
    assert outcome.loss == 0 and outcome.norm == 0 and bool(outcome.finite)


class Poison:
    """An activation or a gradient that is not finite, planted in one module's forward or backward."""

    def __init__(self, model: Decoder, where: str, value: float) -> None:
        block = model.layers["1"]
        if where == "activation":
            block.register_forward_hook(lambda _, __, out: out + value)
        else:
            block.register_full_backward_hook(lambda _, gradients, __: (gradients[0] * value, *gradients[1:]))


@pytest.mark.parametrize("where", ["activation", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("config", [MuonConfig(), AdamWConfig()], ids=["muon", "adamw"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_what_is_not_finite_leaves_weights_and_optimizer_bit_by_bit(
    where: str, value: float, config: MuonConfig | AdamWConfig, clip: float | None
) -> None:
    model = tiny()
    optimizer = Optimizer(model, config)
    train_step(engine(model), optimizer, [batch(2)], max_norm=clip)
    before = {**model.state_dict(), **optimizer.state_dict()}
    before = {name: tensor.clone() for name, tensor in before.items()}
    Poison(model, where, value)
    outcome = train_step(engine(model), optimizer, [batch(2, seed=1)], max_norm=clip)
    assert not bool(outcome.finite)
    for name, tensor in {**model.state_dict(), **optimizer.state_dict()}.items():
        assert tensor.numpy().tobytes() == before[name].numpy().tobytes(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sixty_steps_memorise_a_batch_and_none_is_skipped(precision: str) -> None:
    model, whole = tiny(), batch(2)
    optimizer = Optimizer(model, MuonConfig())
    outcomes = [train_step(engine(model, precision), optimizer, [whole], max_norm=1.0) for _ in range(60)]
    assert all(bool(outcome.finite) for outcome in outcomes)
    assert outcomes[0].loss > 2
    assert outcomes[-1].loss < 0.1
