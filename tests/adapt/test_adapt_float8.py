"""Blocks that train in eight bits, computed here by the same operations on a CPU."""

import pytest
import torch
from torch import Tensor, nn

from hasten.adapt.float8 import Float8Linear, use_float8
from hasten.core.batch import Batch
from hasten.core.errors import ConfigError
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train.engine import Whole
from hasten.train.optim import AdamWConfig, Optimizer
from hasten.train.step import train_step

CPU = Runtime(torch.device("cpu"))
SHAPE = {"vocab_size": 64, "dim": 32, "num_layers": 4, "num_heads": 2, "activation": "swiglu", "ffn_dim": 72}


def make_model(**changes: object) -> Decoder:
    return build(ModelConfig.model_validate({**SHAPE, **changes}), seed=0)


def counting(step: int, rows: int = 4, length: int = 32) -> Batch:
    """Sequences that count upwards, each by its own stride: something to learn in a few steps."""
    random = torch.Generator().manual_seed(step)
    start, stride = torch.randint(1, 4, (2, rows, 1), generator=random)
    numbers = (start + stride * torch.arange(length + 1)) % 64
    return Batch(numbers[:, :-1].contiguous(), numbers[:, 1:].contiguous())


def losses(precision: str, steps: int = 30) -> tuple[list[float], Decoder]:
    model = make_model(ffn_dim=64)
    whole = Whole(model, CrossEntropy(), CPU, precision=precision, compiled=False)
    optimizer = Optimizer(model, AdamWConfig(learning_rate=3e-3))
    return [
        float(train_step(whole, optimizer, [counting(i)], max_norm=1.0).loss) for i in range(steps)
    ], model


def test_the_inner_blocks_are_taken_and_all_parameters_stay() -> None:
    model = make_model()
    before = dict(model.named_parameters())
    use_float8(model)
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    taken = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    # A feed-forward width of 72 is no multiple of 16.
    inner = ("query", "key", "value", "out")
    assert taken == {f"layers.{i}.attention.{name}" for i in (1, 2) for name in inner}


def test_a_model_without_such_matrices_is_refused() -> None:
    for model in (make_model(num_layers=2), make_model(dim=24, num_heads=3, head_dim=8)):
        with pytest.raises(ConfigError, match=r"train.precision: fp8 finds no matrix .*; write bf16"):
            use_float8(model)


def test_only_training_rounds_to_eight_bits() -> None:
    plain = nn.Linear(32, 48)
    twin = Float8Linear(32, 48)
    twin.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 32)
    assert torch.equal(twin.eval()(x), plain(x))
    rounded = twin.train()(x)
    assert rounded.dtype == torch.bfloat16 and not torch.equal(rounded, plain(x).bfloat16())
    # The largest error of a product of numbers with 3 bits of mantissa, far from the mean one.
    assert (rounded - plain(x)).norm() < 0.06 * plain(x).norm()
    assert torch.equal(twin(x[:, :5]), plain(x[:, :5])), "ten tokens are no multiple of 16"


def test_thirty_steps_in_eight_bits_end_near_those_in_sixteen() -> None:
    (sixteen, _), (eight, model) = losses("bf16"), losses("fp8")
    assert sixteen != eight, "eight bits must really be used"
    assert sum(sixteen[-5:]) < 0.7 * sum(sixteen[:5]), "something must have been learned"
    end: Tensor = torch.tensor([sixteen[-5:], eight[-5:]]).mean(dim=1)
    torch.testing.assert_close(end[1], end[0], rtol=0.03, atol=0)
    assert all(p.dtype == torch.float32 for p in model.parameters())
