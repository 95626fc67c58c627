"""What a recipe's `adapt:` says: how a model is changed before it is trained on, and by how much."""

from collections.abc import Mapping
from math import sqrt
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig

ALL_LINEAR = "all-linear"
"""The word for every linear layer of every block."""
FEWEST, MOST = 8, 256
"""Ranks that `choose_rank` answers with: below 8 nothing is saved that would show, and 256 is what the
largest sets of instructions were found to need (Schulman et al. 2025, LoRA Without Regret)."""


class LowRank(NamedTuple):
    """The pair of thin matrices beside one linear layer."""

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """What their product is multiplied with."""
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank)


def listed(patterns: object) -> object:
    """One pattern as a list of one; a list of a recipe as what the field is."""
    if isinstance(patterns, str):
        return (patterns,)
    if patterns in ([], ()):
        raise ValueError(f"is empty, and then nothing would be trained; write a pattern, or {ALL_LINEAR}")
    return tuple(patterns) if isinstance(patterns, list) else patterns


class LoraConfig(Config):
    """Low-rank adaptation (Hu et al. 2022): the model is frozen, thin pairs beside its matrices are trained.

    Heads of classes, with the pooler and the transform before them, are trained whole: they are new.
    Embeddings never are.
    """

    kind: Literal["lora"] = "lora"
    rank: PositiveInt | Literal["auto"] = Field(
        "auto", description="of each pair; auto: by the number of supervised tokens in the training data"
    )
    alpha: PositiveFloat = Field(
        32.0,
        description="pairs are multiplied by alpha / rank: the learning rate need not follow the rank",
    )
    rslora: bool = Field(
        False, description="multiply by alpha / sqrt(rank) instead (Kalajdzievski 2023), for high ranks"
    )
    dora: bool = Field(
        False, description="train the length of each row of a matrix beside its direction (Liu et al. 2024)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of what the pairs read")
    targets: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(
        (ALL_LINEAR,),
        description="patterns of names of linear layers in blocks, such as ['*.query', '*.value']",
    )
    base: Literal["model", "nf4"] = Field(
        "model", description="the frozen matrices as they are, or in four bits (Dettmers et al. 2023, QLoRA)"
    )
    double_quantization: bool = Field(True, description="nf4: keep the scales in eight bits too")

    def low_rank(self, rank: int) -> LowRank:
        """The pair beside each matrix once the rank is known."""
        return LowRank(rank, self.alpha, self.rslora, self.dora, self.dropout)

    def check_mesh(self, degrees: Mapping[Any, int], precision: str) -> None:
        """Refuse a mesh that cannot share such a model, with the reason; `precision` is that of products."""
        trouble = self.tensor_trouble() if degrees.get("tensor", 1) > 1 else None
        if trouble is None and degrees.get("shard", 1) > 1:
            trouble = self.shard_trouble(precision)
        if trouble is not None:
            raise ConfigError(trouble)

    def tensor_trouble(self) -> str | None:
        """What cannot go with matrices that are split."""
        if self.base == "nf4":
            return (
                "adapt.base is nf4, whose blocks of 64 numbers run on over the rows that parallel.tensor"
                " splits; write parallel.tensor: 1 and more data, or adapt.base: model"
            )
        if self.dora:
            return (
                "adapt.dora needs the lengths of whole rows, which parallel.tensor splits; write"
                " parallel.tensor: 1 and more shard, or adapt.dora: false"
            )
        if self.dropout:
            return (
                f"adapt.dropout is {self.dropout:g}, and the processes of parallel.tensor would all drop the"
                " same places of the different parts that they hold; write adapt.dropout: 0, or"
                " parallel.tensor: 1"
            )
        return None

    def shard_trouble(self, precision: str) -> str | None:
        """What cannot go with weights that are shared."""
        if self.base == "nf4":
            return (
                "adapt.base is nf4, and parallel.shard would gather its packed bytes as if they were numbers;"
                " write parallel.shard: 1 and more data, or adapt.base: model"
            )
        if self.dora and precision != "fp32":
            return (
                "adapt.dora needs exact rows, and parallel.shard gathers them in bf16 where train.precision"
                f" is {precision}; write train.precision: fp32, parallel.shard: 1, or adapt.dora: false"
            )
        return None


def choose_rank(tokens: int, model: ModelConfig) -> int:
    """The rank for so many supervised tokens of training data: a power of two from 8 to 256.

    The smallest whose pairs, beside all matrices of the blocks, have as many parameters as there are tokens.
    A parameter holds about two bits (Allen-Zhu and Li 2024, arXiv:2404.05405) and a token of fine-tuning
    teaches about one: that is room for twice of what there is to learn (LoRA falls behind full training where
    it runs out of room: Schulman et al. 2025).  No more than half of the model's width, where a pair would
    be as large as its matrix.
    """
    each = sum(inputs + outputs for inputs, outputs in model.matrix_shapes)
    rank = FEWEST
    while 2 * rank <= min(MOST, model.dim // 2) and rank * each < tokens:
        rank *= 2
    return rank
