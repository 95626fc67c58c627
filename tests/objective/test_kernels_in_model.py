"""A whole training step's loss and gradients with kernels and without: one mathematics, one precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from hasten.core.batch import IGNORE, Batch
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.ops.kernels.library import library, why_not
from hasten.train.engine import Whole

pytestmark = pytest.mark.skipif(library() is None, reason=f"no kernels here: {why_not() or 'not compiled'}")
SHAPE = {"vocab_size": 203, "dim": 48, "num_layers": 2, "num_heads": 3, "max_positions": 64}
KINDS = {
    "gpt2": {
        "norm": "layer",
        "activation": "gelu_tanh",
        "position": "learned",
        "tied": True,
        "ffn_bias": True,
    },
    "llama": {"norm": "rms", "activation": "swiglu", "num_kv_heads": 1, "logit_soft_cap": 15.0},
    "hasten": {"activation": "relu_squared", "qk_norm": True, "embedding_norm": True},
}


@contextmanager
def kernels(on: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not on:
            patch.setattr("hasten.ops.kernels.library.library", lambda: None)
        yield


def gradients(model: Decoder, batch: Batch, precision: str, *, on: bool, chunk: int | None) -> list[Tensor]:
    """The loss and the gradient of every parameter."""
    model.zero_grad()
    objective = CrossEntropy(chunk_tokens=chunk, z_loss=1e-3)
    engine = Whole(model, objective, Runtime(torch.device("cpu")), precision=precision, compiled=False)
    with kernels(on):
        loss = engine.run([batch], torch.tensor(1 / int(objective.count(batch))))
    return [loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def case(kind: str) -> tuple[Decoder, Batch]:
    """A model with weights of some size everywhere, and packed rows of which some targets don't count."""
    model = build(ModelConfig.model_validate({**SHAPE, **KINDS[kind]}), seed=0)
    random = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=random)
    tokens = torch.randint(203, (4, 33), generator=random)
    targets = tokens[:, 1:].masked_fill(torch.rand(4, 32, generator=random) < 0.2, IGNORE)
    segments = (torch.arange(32) >= 20).long().expand(4, 32)
    return model, Batch(tokens[:, :-1], targets, segments=segments, positions=torch.arange(32).expand(4, 32))


@pytest.mark.parametrize("chunk", [None, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_they_are_equal(kind: str, chunk: int | None) -> None:
    model, batch = case(kind)
    mine = gradients(model, batch, "fp32", on=True, chunk=chunk)
    plain = gradients(model, batch, "fp32", on=False, chunk=chunk)
    for found, expected in zip(mine, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_they_are_as_near_to_float32(kind: str) -> None:
    """Errors of all gradients together, relative to their size: no more than 1.1 of plain bfloat16's."""
    model, batch = case(kind)
    exact = gradients(model, batch, "fp32", on=False, chunk=None)

    def error(on: bool) -> float:
        found = gradients(model, batch, "bf16", on=on, chunk=None)
        assert (found[0] - exact[0]).abs() < 0.02 * exact[0]
        off = sum((a - b).square().sum() for a, b in zip(found[1:], exact[1:], strict=True))
        return float(off / sum(b.square().sum() for b in exact[1:])) ** 0.5

    assert error(True) <= 1.1 * error(False)
    assert error(True) < 0.05
