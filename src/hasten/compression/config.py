"""A recipe's `compress:` section: the steps from a model to a smaller one, and what is measured."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from hasten.compress.depth import Depth
from hasten.compress.low_rank import LowRank
from hasten.compress.quantize import Quantize
from hasten.compress.sparsify import Sparsify
from hasten.compress.width import Width
from hasten.compression.target import Target
from hasten.core.config import Config
from hasten.objective.distillation import Distillation
from hasten.train.config import HORIZONS
from hasten.train.optim import AdamWConfig, MuonConfig
from hasten.train.schedule import Schedule

ORIGINAL = "original"
"""The word for the model that a chain begins with."""


class Distil(Config):
    """Train what the steps before have left, on what a teacher says: the loop of `hasten train`.

    Give exactly one of steps, tokens, epochs and minutes.
    """

    kind: Literal["distil"] = "distil"
    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    minutes: PositiveFloat | None = None
    batch_tokens: PositiveInt | None = Field(None, description="null: as the recipe's training")
    optimizer: Annotated[MuonConfig | AdamWConfig, Field(discriminator="kind")] | None = Field(
        None, description="null: AdamW at three times the rate of fine-tuning"
    )
    schedule: Schedule | None = Field(None, description="null: as in fine-tuning")
    objective: Distillation = Field(
        Distillation(teacher=ORIGINAL),
        description="as in a recipe; its teacher is the original unless another is named",
    )

    @field_validator("objective", mode="before")
    @classmethod
    def name_teacher(cls, given: Any) -> Any:
        """What is left out of an objective is as by default."""
        return {"kind": "distillation", "teacher": ORIGINAL, **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def check_horizon(self) -> "Distil":
        if len(self.horizon) != 1:
            raise ValueError(f"distil: write exactly one of {', '.join(HORIZONS)}")
        return self

    @property
    def horizon(self) -> dict[str, float]:
        """How long, by the name that it goes by in `train`."""
        return {name: value for name in HORIZONS if (value := getattr(self, name)) is not None}

    @property
    def training(self) -> dict[str, Any]:
        """What else it says of a recipe's `train`."""
        given = self.model_dump(mode="json", include={"batch_tokens", "optimizer", "schedule"})
        return {name: value for name, value in given.items() if value is not None}


Step = Annotated[Quantize | Depth | Width | Sparsify | LowRank | Distil, Field(discriminator="kind")]


class Calibration(Config):
    """Rows of the training text that methods look at; what is measured on is never among them."""

    rows: PositiveInt = Field(128, description="of data.row_tokens each")
    batch_rows: PositiveInt = 8


class MeasureConfig(Config):
    """What is measured of each model beside the original, and how long."""

    split: Literal["test", "validation"] = "test"
    max_bytes: PositiveInt | None = Field(
        200_000, description="of text: a sample of documents that is at least this long; null: all of it"
    )
    rows: PositiveInt = Field(256, description="of tasks, pairs and masked text: at most so many")
    prompt_tokens: PositiveInt = 128
    new_tokens: PositiveInt = 32
    seconds: PositiveFloat = Field(4.0, description="of timing, for each model with the original in turn")
    memory: bool = Field(True, description="load each model in a process of its own and note its peak")
    seed: NonNegativeInt = 0


class CompressConfig(Config):
    """Which model, by which steps; or for which target."""

    model: str | None = Field(
        None, description="a run, a checkpoint or a Hugging Face folder; null: the run's own, or `checkpoint`"
    )
    steps: tuple[Step, ...] = Field((Quantize(),), min_length=1)
    target: Target | None = Field(
        None,
        description="size=20MB, size=25%, speed=2x or quality=99%: finds the steps for it",
    )
    recover: Distil | None = Field(
        None, description="for a target: train so where layers had to go; null: they go without"
    )
    calibration: Calibration = Calibration()
    measure: MeasureConfig = MeasureConfig()

    @model_validator(mode="after")
    def check_order(self) -> "CompressConfig":
        kinds = [step.kind for step in self.steps]
        if "quantize" in kinds[:-1]:
            raise ValueError(
                "steps: quantize has to be the last, for integers are neither trained nor cut; move it there"
            )
        return self
