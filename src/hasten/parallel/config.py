"""How a training is spread over processes, as a recipe's `parallel:` says it."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from hasten.core.config import Config

Axis = Literal["pipeline", "data", "shard", "context", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "shard", "context", "tensor")
"""Outermost first: neighbours in rank, which are nearest to each other, share what is sent most."""
Order = Literal["gpipe", "1f1b", "interleaved"]
Recompute = Literal["none", "selective", "full"]
Stage = Literal[1, 2, 3]


class ParallelConfig(Config):
    """The degree of each axis; their product is the number of processes.

    Rows are divided over `data` x `shard` replicas of the model; `shard` of them share one copy of the
    optimizer (`stage` 1), of the gradients too (2), or of the weights too (3: FSDP).  `tensor` splits
    matrices and vocabulary, `pipeline` the layers, `context` the tokens of a row.
    """

    data: PositiveInt | Literal["auto"] = Field(
        "auto", description="replicas of the whole; auto: as many as there are processes for"
    )
    shard: PositiveInt = Field(
        1, description="replicas that share optimizer, gradients and weights (ZeRO, FSDP)"
    )
    tensor: PositiveInt = Field(1, description="parts of each matrix, best within one machine")
    pipeline: PositiveInt = Field(1, description="groups of layers, one after the other")
    context: PositiveInt = Field(1, description="parts of each row's tokens (ring attention)")
    interleave: PositiveInt = Field(1, description="groups of layers on each process of a pipeline")
    order: Order = Field(
        "1f1b", description="of a pipeline's forwards and backwards; interleaved by interleave"
    )
    sequence_parallel: bool = Field(True, description="between matrices, split tokens over `tensor` as well")
    stage: Stage = Field(3, description="what `shard` shares: 1 optimizer, 2 gradients too, 3 weights too")
    recompute: Recompute | Literal["auto"] = Field(
        "auto", description="activations made again in the backward pass; auto: as few as memory allows"
    )

    timeout: PositiveFloat = Field(
        600.0, description="seconds that a step may take before a process counts as stuck"
    )

    @model_validator(mode="after")
    def check(self) -> "ParallelConfig":
        if self.interleave > 1 and self.pipeline == 1:
            raise ValueError(f"interleave is {self.interleave} without a pipeline; write pipeline: 2 or more")
        return self

    @property
    def model_devices(self) -> int:
        """Processes that one replica group takes: all axes but `data`."""
        return self.shard * self.tensor * self.pipeline * self.context

    @property
    def chunks(self) -> int:
        """Groups of consecutive layers over all stages."""
        return self.pipeline * self.interleave
