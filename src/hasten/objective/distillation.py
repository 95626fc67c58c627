"""Learning from a teacher: what a recipe says about it.  `distilled.py` is the objective that comes of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.divergence import Kind, Mix

MOST_SAMPLES = 255
"""So that how often a token was drawn fits a byte."""
DIVIDED = ("context", "tensor", "pipeline")
Pairs = tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
"""(layer of the student, layer of the teacher), counted from 0."""
Projection = Literal["query", "key", "value"]


class HiddenConfig(Config):
    """What leaves a student's layer is to be what leaves a teacher's (Jiao et al. 2020, "TinyBERT", eq. 8).

    ‖h W - h'‖² / ‖h'‖², of a text the mean over its places; W is learnt where the widths differ, and no part
    of the model that is saved.
    """

    weight: PositiveFloat = 1.0
    layers: Literal["spread", "last"] | Pairs = Field(
        "spread",
        description="spread: each of the student's, to one of the teacher's evenly from its first to its"
        " last; last: the last of both; or pairs [student, teacher], from 0",
    )


class RelationsConfig(Config):
    """How places look at each other in a student's layer is to be as in a teacher's (Wang et al. 2021,
    "MiniLMv2", eqs. 6 and 7): KL between softmax(A Aᵀ / √width) of both, A the queries, keys or values.

    The number of `heads` that A is cut into is free, so widths and heads of the two may differ.
    """

    weight: PositiveFloat = 1.0
    heads: PositiveInt | None = Field(None, description="null: as many as the teacher has for attention")
    of: tuple[Projection, ...] = Field(("query", "key", "value"), min_length=1)
    layers: Literal["spread", "last"] | Pairs = Field("last", description="as those of `hidden`")


class CacheConfig(Config):
    """What the teacher says of the training data is asked once, kept beside it, and read by all students.

    `samples`: tokens drawn at each place from the teacher's distribution at the temperature.  The mean over
    all draws is that distribution, so the gradient is right in the mean (Anshumann et al. 2025,
    arXiv:2503.16870).  `all` keeps every logit, which is exact and large.
    """

    samples: int | Literal["all"] = Field(12, description=f"1 to {MOST_SAMPLES}, or all")
    top: PositiveInt | None = Field(
        None,
        description="keep the likeliest tokens in place of samples: biased, for what is left out counts as"
        " never said",
    )
    seed: NonNegativeInt = Field(0, description="of the draws")
    folder: Path | None = Field(None, description="null: beside the prepared data")

    @model_validator(mode="after")
    def check_samples(self) -> "CacheConfig":
        if isinstance(self.samples, int) and not 1 <= self.samples <= MOST_SAMPLES:
            raise ValueError(f"samples is {self.samples}; write a number from 1 to {MOST_SAMPLES}, or all")
        return self

    @property
    def sparse(self) -> bool:
        """Whether some tokens of each place are kept, not all logits."""
        return self.top is not None or self.samples != "all"


class Distillation(Config):
    """A student learns what a teacher would say, summed over places that have a target, in nats:

    λ CE(label) + (1 - λ) τ² D(P, Q), P and Q softmax(logits / τ) of teacher and student (Hinton et al. 2015),
    and what `hidden` and `relations` ask of the layers between.  A measured loss is the plain cross-entropy
    against the labels, so validations of students, teachers and others can be compared.
    """

    kind: Literal["distillation"] = "distillation"
    teacher: str = Field(description="a run, a checkpoint, a Hugging Face folder, or owner/name of the hub")
    divergence: Kind = Field(
        "forward_kl",
        description="forward_kl: KL(P ‖ Q); reverse_kl: KL(Q ‖ P); jsd: the generalised Jensen-Shannon",
    )
    beta: float = Field(0.5, gt=0, lt=1, description="of jsd: near 0 like forward_kl, near 1 like reverse_kl")
    temperature: PositiveFloat = Field(1.0, description="τ, of both sides; losses are multiplied by τ²")
    labels: float = Field(0.0, ge=0, le=1, description="λ, the share of the labels; 1: no logits are asked")
    hidden: HiddenConfig | None = None
    relations: RelationsConfig | None = None
    cache: CacheConfig | None = Field(None, description="null: the teacher reads along at every step")
    chunk_tokens: PositiveInt | Literal["auto"] | None = Field(
        default="auto",
        description="logits of both are made for so many tokens at a time; auto: all, unless above 1 GiB, on"
        " GPUs 4",
    )

    @model_validator(mode="after")
    def check_parts(self) -> "Distillation":
        inner = self.hidden is not None or self.relations is not None
        if self.labels == 1 and not inner:
            raise ValueError(
                "labels: 1 leaves nothing to learn from the teacher; write less, or add hidden or relations"
            )
        if self.cache is None:
            return self
        if inner:
            raise ValueError(
                "cache keeps what a teacher says, not how it comes to say it; leave out cache, or hidden and"
                " relations"
            )
        if self.cache.sparse and self.divergence != "forward_kl":
            raise ValueError(
                f"cache holds some tokens of each place, from which {self.divergence} cannot be told; write"
                " divergence: forward_kl, or cache: {samples: all}"
            )
        return self

    @property
    def asks_logits(self) -> bool:
        """Whether the teacher's distribution counts."""
        return self.labels < 1

    def mix(self, known: int) -> Mix:
        """The loss at a place, over a tokenizer that knows so many tokens."""
        return Mix(self.divergence, known, self.temperature, self.beta, self.labels)

    def labels_alone(self) -> CrossEntropy:
        """The loss of the labels, of which logits are made in the same portions."""
        return CrossEntropy(chunk_tokens=self.chunk_tokens)

    def check_degrees(self, degrees: Mapping[Any, int]) -> None:
        """Refuse a mesh on which a place, its text or its logits would lie on several processes."""
        for axis in DIVIDED:
            if degrees.get(axis, 1) > 1 and (axis != "context" or self.hidden or self.relations):
                raise ConfigError(
                    f"parallel: {axis} {degrees[axis]} divides the student, and a teacher is whole on every"
                    f" process; write parallel.{axis}=1 and divide by data or shard"
                )
