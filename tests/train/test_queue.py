"""A step reads no number back from the device: on a GPU, each such reading would empty its queue.

Fake tensors have a shape and no numbers: whoever asks one for its value gets an error.
"""

from collections.abc import Iterator

import pytest
import torch
from tiny_run import CPU, VOCAB
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention

from hasten.core.batch import Batch
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder
from hasten.objective.cross_entropy import CrossEntropy
from hasten.ops.flex import DocumentAttention
from hasten.ops.kernels import library
from hasten.train import engine
from hasten.train.engine import Whole
from hasten.train.metrics import Meter
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer
from hasten.train.step import train_step

SHAPE = {"vocab_size": VOCAB, "dim": 32, "num_layers": 3, "num_heads": 2, "activation": "swiglu"}


@pytest.fixture(autouse=True)
def _without_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(library, "library", lambda: None)  # kernels want memory to read
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def fake_batch(packed: bool) -> Batch:
    tokens = torch.randint(0, VOCAB, (2, 64))
    positions = torch.arange(64).expand(2, 64).contiguous()
    return Batch(tokens, tokens, torch.ones_like(tokens), positions) if packed else Batch(tokens, tokens)


def test_a_reading_would_be_noticed() -> None:
    with pytest.raises(RuntimeError):
        bool(torch.ones(()) > 0)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("optimizer", [MuonConfig(), AdamWConfig()], ids=["muon", "adamw"])
def test_a_step_reads_nothing_back(precision: str, optimizer: MuonConfig | AdamWConfig) -> None:
    model = Decoder(ModelConfig.model_validate(SHAPE))
    whole = Whole(model, CrossEntropy(), CPU, precision=precision, compiled=False)
    updater, meter = Optimizer(model, optimizer), Meter(CPU.device)
    for packed in (False, True):
        outcome = train_step(whole, updater, [fake_batch(packed)] * 2, max_norm=1.0)
        meter.add(outcome, 256, 1.0)
        assert outcome.finite.dtype == torch.bool


def test_a_validation_with_a_mask_of_tiles_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(engine, "can_skip_tiles", lambda device: True)
    model = Decoder(ModelConfig.model_validate(SHAPE))
    whole = Whole(model, CrossEntropy(), CPU, precision="bf16", compiled=False)
    assert isinstance(whole.documents, DocumentAttention)
    monkeypatch.setattr(whole.documents, "kernel", flex_attention.flex_attention)
    loss, count, _ = whole.measure([fake_batch(True), fake_batch(False)])
    assert loss.shape == count.shape == ()
