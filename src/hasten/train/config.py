"""What a recipe says about training: how long, on how much at a time, with what, and what is kept."""

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.train.optim import AdamWConfig, MuonConfig
from hasten.train.schedule import WSD, Schedule

HORIZONS = ("steps", "tokens", "epochs", "minutes")
Every = PositiveInt | Literal["auto"] | None


class TrainConfig(Config):
    """One run of training.  Give exactly one of steps, tokens, epochs and minutes."""

    steps: PositiveInt | None = Field(default=None, description="train for so many optimizer steps")
    tokens: PositiveInt | None = Field(
        default=None, description="train on so many tokens, rounded up to whole batches"
    )
    epochs: PositiveFloat | None = Field(
        default=None, description="go through the data so many times, 0.5 is half of it"
    )
    minutes: PositiveFloat | None = Field(
        default=None,
        description="stop after so much time, validation and saving included, with the schedule complete",
    )

    batch_tokens: PositiveInt = Field(
        default=16_384, description="tokens of one optimizer step, over all processes"
    )
    micro_batch_tokens: PositiveInt | Literal["auto"] = Field(
        default="auto", description="tokens of one forward pass; changes memory and speed, not the gradient"
    )
    optimizer: Annotated[MuonConfig | AdamWConfig, Field(discriminator="kind")] = MuonConfig()
    schedule: Schedule = WSD()
    max_grad_norm: PositiveFloat | None = Field(
        default=1.0, description="scale larger gradients down to this L2 norm"
    )
    keep_zeros: bool = Field(
        default=False, description="weights of matrices that are zero in the base stay zero, as after pruning"
    )
    precision: Literal["auto", "fp32", "bf16", "fp8"] = Field(
        default="auto",
        description="of matrix products; weights are fp32; fp8: Hopper and Ada GPUs, the rest in bf16",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="auto: where the run is long enough to gain"
    )

    log_every: PositiveInt = Field(default=10, description="steps from one line in metrics.jsonl to the next")
    validate_every: Every = Field(
        default="auto",
        description="steps; auto: ten times a run, as long as it costs less than 5% of the time",
    )
    validation_tokens: PositiveInt = Field(
        default=32_768, description="at most so many tokens of the validation split"
    )
    metric: Literal["validation_loss", "validation_accuracy", "score"] = Field(
        default="validation_loss",
        description="which figure says which checkpoint is the best; score: the task's own, such as BLEU, on"
        " evaluate.during_training examples",
    )
    patience: PositiveInt | None = Field(
        default=None, description="stop after so many looks in a row without a better figure"
    )
    checkpoint_every: Every = Field(
        default="auto", description="steps; auto: every five minutes and ten times a run"
    )
    keep_last: PositiveInt = Field(default=2, description="checkpoints to keep beside the best one")
    tensorboard: bool = Field(default=False, description="write TensorBoard event files too")

    max_skips: PositiveInt = Field(
        default=3, description="steps in a row without a finite loss before going back"
    )
    max_rollbacks: NonNegativeInt = Field(
        default=3, description="times to go back to a checkpoint before giving up"
    )
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def check_horizon(self) -> "TrainConfig":
        given = [name for name in HORIZONS if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are both there" if given else "nothing says how long to train"
            raise ValueError(f"{what}; write exactly one of {', '.join(HORIZONS)}")
        return self

    @model_validator(mode="after")
    def check_micro_batch(self) -> "TrainConfig":
        if self.micro_batch_tokens != "auto" and self.micro_batch_tokens > self.batch_tokens:
            raise ValueError(
                f"micro_batch_tokens ({self.micro_batch_tokens:,}) is more than batch_tokens"
                f" ({self.batch_tokens:,}); write auto, or at most batch_tokens"
            )
        return self

    def batch_rows(self, row_tokens: int, world_size: int = 1) -> int:
        """Rows of one step over all processes: whole rows, equally many for each."""
        unit = row_tokens * world_size
        rows, rest = divmod(self.batch_tokens, row_tokens)
        if rest or not rows or rows % world_size:
            nearest = max(round(self.batch_tokens / unit), 1) * unit
            processes = f" times {world_size} processes" if world_size > 1 else ""
            raise ConfigError(
                f"train.batch_tokens ({self.batch_tokens:,}) must be a multiple of data.row_tokens"
                f" ({row_tokens:,}){processes}; the nearest is {nearest}"
            )
        return rows

    def micro_rows(self, row_tokens: int) -> int | None:
        """Rows of one forward pass as the recipe has them, None where it leaves that to us."""
        if self.micro_batch_tokens == "auto":
            return None
        rows, rest = divmod(self.micro_batch_tokens, row_tokens)
        if rest or not rows:
            nearest = max(round(self.micro_batch_tokens / row_tokens), 1) * row_tokens
            raise ConfigError(
                f"train.micro_batch_tokens ({self.micro_batch_tokens:,}) must be a multiple of"
                f" data.row_tokens ({row_tokens:,}); the nearest is {nearest}"
            )
        return rows

    def num_steps(self, batch_rows: int, num_rows: int) -> int | None:
        """Steps of the run over data of `num_rows` rows; None where a clock ends it."""
        if self.steps is not None:
            return self.steps
        if self.tokens is not None:
            return ceil(self.tokens / self.batch_tokens)
        return None if self.epochs is None else ceil(self.epochs * num_rows / batch_rows)
