"""A training as it lies on a mesh, arranged by hand, in which every number follows from its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import torch
from torch import Tensor, nn

from hasten.core.config import override, parse
from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, assemble
from hasten.parallel.arrangement import Arrangement, Split
from hasten.parallel.config import ParallelConfig
from hasten.parallel.fsdp import shard
from hasten.parallel.grid import Grid
from hasten.train.checkpoint import Checkpoints, restore
from hasten.train.held import Held, held_here
from hasten.train.optim import MuonConfig, Optimizer

# 13 rows are dealt out unevenly; 2 numbers of a norm leave some of four processes without any.
CONFIG = ModelConfig(
    vocab_size=13, dim=16, num_layers=4, num_heads=2, ffn_dim=24, head_dim=2, tied=True, qk_norm=True
)
COLUMNS = ("query", "key", "value", "up", "gate")
"""Matrices whose rows, one an output, tensor parallelism deals out; of others it deals the columns."""


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    """What the whole tensor `name` is in every test."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))


@dataclass
class Training:
    """A model and its optimizer on one process of a mesh."""

    model: Decoder
    optimizer: Optimizer
    arrangement: Arrangement | None

    @classmethod
    def make(cls, runtime: Runtime | None = None, mesh: str = "", config: ModelConfig = CONFIG) -> "Training":
        """All numbers zero; `mesh` such as "shard=2 tensor=2", or nothing for one process."""
        with torch.device("meta"):
            model = cast(Decoder, assemble(config))
        if runtime is None:
            model.to_empty(device="cpu")
            return cls(model, Optimizer(model, MuonConfig()), None)
        grid = Grid.make(runtime, parse(ParallelConfig, override({}, mesh.split()), "a test"))
        arrangement = Arrangement(grid)
        keep_stage(model, arrangement)
        split(model, arrangement)
        if grid.degrees["shard"] > 1:
            shard(model, grid)
        model.to_empty(device="cpu")
        arrangement.note(model)
        return cls(model, Optimizer(model, MuonConfig(), arrangement=arrangement), arrangement)

    @torch.no_grad()
    def fill(self, times: float = 1.0) -> "Training":
        """Make every number what its name says, or so many times that."""
        for name, (piece, tensor) in self.held().items():
            tensor.copy_(times * value(name, piece.whole)[piece.slices])
        return self

    def held(self) -> dict[str, Held]:
        """All tensors that are here."""
        groups = held_here(self.model, self.optimizer, self.arrangement)
        return {name: it for group in groups.values() for name, it in group.items()}

    def check(self, times: float = 1.0) -> "Training":
        """Every number is the one that its name says, to the bit."""
        for name, (piece, tensor) in self.held().items():
            assert torch.equal(tensor, times * value(name, piece.whole)[piece.slices]), name
        return self

    def save(self, checkpoints: Checkpoints, step: int = 1, **options: Any) -> None:
        checkpoints.save(
            step,
            model=self.model,
            optimizer=self.optimizer,
            state={"step": step},
            **{"wait": True, **options},
        )

    def restore(self, folder: Path) -> "Training":
        assert restore(folder, self.model, self.optimizer, self.arrangement) is not None
        return self


def keep_stage(model: Decoder, arrangement: Arrangement) -> None:
    """Leave the layers of this stage of a pipeline, and the table where it is read and where it scores."""
    stage, stages = arrangement.grid.place["pipeline"], arrangement.grid.degrees["pipeline"]
    each = len(model.layers) // stages
    for number in list(model.layers):
        if int(number) // each != stage:
            del model.layers[number]
    if stage < stages - 1:
        model.norm = nn.Identity()
    if 0 < stage < stages - 1:
        del model.embedding
    arrangement.counted["embedding.weight"] = stage == 0


def split(model: Decoder, arrangement: Arrangement) -> None:
    """Leave this process's part of each matrix and of the table, by tensor parallelism."""
    place, degree = arrangement.grid.place["tensor"], arrangement.grid.degrees["tensor"]
    for name, module in model.named_modules():
        if degree == 1 or not isinstance(module, nn.Linear | nn.Embedding):
            continue
        dim = 0 if isinstance(module, nn.Embedding) or name.endswith(COLUMNS) else 1
        whole = module.weight.shape[dim]
        bounds = [whole * i // degree for i in (place, place + 1)]
        own = [slice(None), slice(None)]
        own[dim] = slice(*bounds)
        module.weight = nn.Parameter(module.weight[tuple(own)].detach().contiguous())
        arrangement.splits[f"{name}.weight"] = Split(dim, bounds[0], bounds[1] - bounds[0], whole)
