"""A tiny training for tests: documents of unequal length, packed and shuffled, and a model with dropout.

As a program it trains until it is told to stop: `python tiny_run.py FOLDER PREPARED [SECONDS_PER_LOOK]`.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.core.batch import Batch
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.data.shards import ShardWriter
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.protocol import Objective
from hasten.train.config import TrainConfig
from hasten.train.look import Probe
from hasten.train.run import Run

CPU = Runtime(torch.device("cpu"))
VOCAB, EOT, POISON, ROW_TOKENS = 32, 0, 31, 16
MODEL = {"vocab_size": VOCAB, "dim": 16, "num_layers": 2, "num_heads": 2}


def write_corpus(folder: Path, poisoned: int = 0) -> Path:
    """Sixty documents that count upwards from a random number; the last `poisoned` hold a POISON."""
    random = torch.Generator().manual_seed(0)
    for split, number in (("train", 60), ("validation", 12)):
        writer = ShardWriter("numbers", VOCAB, EOT, EOT)
        for i in range(number):
            start, length = torch.randint(1, 40, (2,), generator=random).tolist()
            ids = [1 + (start + j) % (POISON - 1) for j in range(length)]
            if i >= number - poisoned:
                ids[0] = POISON
            writer.add(f"{split}/{i}.txt", ids, length)
        (folder / split).mkdir(parents=True)
        writer.write(folder / split / "numbers-0.safetensors")
    return folder


def make_run(
    folder: Path,
    prepared: Path,
    *,
    objective: Objective | None = None,
    probes: Sequence[Probe] = (),
    seed: int = 0,
    dropout: float = 0.2,
    runtime: Runtime = CPU,
    **fields: Any,
) -> Run:
    """A run over `write_corpus`'s folder; `fields` are those of TrainConfig."""
    config = {"batch_tokens": 4 * ROW_TOKENS, "micro_batch_tokens": 2 * ROW_TOKENS, "seed": seed, **fields}
    return Run(
        folder,
        TrainConfig.model_validate(config),
        model=build(ModelConfig.model_validate({**MODEL, "dropout": dropout}), seed),
        corpus=Corpus(prepared, "train", ROW_TOKENS, seed),
        runtime=runtime,
        objective=objective or CrossEntropy(),
        validation=Corpus(prepared, "validation", ROW_TOKENS, seed),
        probes=probes,
    )


class PoisonedCrossEntropy(CrossEntropy):
    """A loss that is not a number whenever POISON is in the batch."""

    def loss(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        bad = (batch.tokens == POISON).any() & torch.tensor(model.training)
        return super().loss(model, hidden, batch) / torch.where(bad, torch.nan, 1.0)


class Act:
    """A probe that does something when it looks."""

    name = "act"

    def __init__(self, every: int, act: Any) -> None:
        self.every, self.act = every, act

    def __call__(self, model: nn.Module, step: int) -> Mapping[str, Any]:
        self.act(step)
        return {}


def main(folder: str, prepared: str, seconds: str = "0") -> None:
    torch.set_num_threads(1)
    sleep = Act(1, lambda step: time.sleep(float(seconds)))
    run = make_run(
        Path(folder), Path(prepared), steps=10**6, log_every=1, checkpoint_every=50, probes=[sleep]
    )
    assert not run.fit().completed


if __name__ == "__main__":
    main(*sys.argv[1:])
