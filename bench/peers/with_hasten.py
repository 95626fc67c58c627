"""hasten: the parts of `hasten train`, put together as `train/run.py` does."""

import torch
from peers.shapes import Shape
from peers.turns import TABLE_ROWS, Turns, Voice, random_rows
from torch import Tensor

from hasten.core.batch import Batch
from hasten.core.runtime import start
from hasten.data.prefetch import Prefetch
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train.engine import Whole, choose_precision
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer, Rates
from hasten.train.step import train_step

OPTIMIZERS = {"adamw": AdamWConfig, "muon": MuonConfig}


def decoder(shape: Shape) -> ModelConfig:
    """The default architecture in the size of `shape`."""
    return ModelConfig.model_validate(
        {
            "preset": "hasten-small",
            "vocab_size": shape.vocab_size,
            "dim": shape.dim,
            "num_layers": shape.num_layers,
            "num_heads": shape.num_heads,
            "max_positions": shape.context,
        }
    )


def batch_of(table: Tensor, shape: Shape, step: int) -> Batch:
    """The batch of a step, [rows, context]."""
    first = step * shape.rows % TABLE_ROWS
    rows = table[first : first + shape.rows]
    return Batch(tokens=rows[:, :-1].contiguous(), targets=rows[:, 1:].contiguous())


def train(shape: Shape, voice: Voice, *, optimizer: str, compiled: bool) -> None:
    """Prefetched batches, one `train_step` each, and a look at whether it was finite."""
    runtime, table = start("cpu"), random_rows(shape)
    model = build(decoder(shape), seed=0, device=runtime.device)
    voice.tell(parameters=sum(p.numel() for p in model.parameters()))
    precision = choose_precision("auto", runtime.device)
    engine = Whole(model, CrossEntropy(), runtime, precision=precision, compiled=compiled)
    config = OPTIMIZERS[optimizer]()
    updater = Optimizer(model, config, Rates.at(config, model.config, shape.batch_tokens))
    turns, step = Turns(voice), 0
    with Prefetch(lambda step: batch_of(table, shape, step)) as batches:
        while True:
            turns.wait()
            torch.manual_seed(step)
            outcome = train_step(engine, updater, [next(batches)], max_norm=1.0, turn=step)
            if not outcome.finite:
                raise SystemExit(f"step {step} is not finite")
            turns.note_update()
            step += 1
