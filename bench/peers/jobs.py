"""What is learnt beside whom: the jobs, the peers that do the same, and the settings they have of their own.

An arm without rates has what its own example says; one with rates is tuned beforehand (`peers/tuned.py`).
"""

from dataclasses import dataclass
from typing import Any

from tasks import MINILM, SMOLLM

GLUE = {"epochs": 3, "batch_rows": 32, "learning_rate": 2e-5, "by_length": False}
"""transformers, examples/pytorch/text-classification, README: `run_glue.py`.  The script pads rows to 128
tokens; here they are padded to the longest of their batch, which is less."""
GLUE_LORA = {**GLUE, "learning_rate": 3e-4, "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1}}
"""peft, examples/sequence_classification/LoRA.ipynb, with as many epochs as here."""
SFT = {"learning_rate": 2e-4, "batch_rows": 2, "accumulate": 8, "max_length": 1024, "checkpointing": True}
"""trl, trl/scripts/sft.py, its command for LoRA, with SFTConfig's own length and checkpointing."""
ALL_LINEAR = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Arm:
    """A peer with its settings; `family` is peers/tune_FAMILY.py."""

    name: str
    family: str
    options: dict[str, Any]
    rates: tuple[float, ...] = ()  # to be tried, with the first of `batches`
    batches: tuple[int, ...] = ()  # rows of a step, to be tried with the best rate


@dataclass(frozen=True)
class Job:
    """A recipe's training, and who does the same."""

    task: str  # of bench/tasks.py
    base: str
    score: tuple[str, str]  # where evaluation.json has it
    higher: bool  # is better
    arms: tuple[Arm, ...]
    by_the_clock: bool = False  # a budget of time ends it, not epochs
    tuning_seconds: float = 0.0  # of a training by the clock that tries a rate
    looks: int = 12  # in a training, the last one at its end
    probe_steps: int = 12  # in which precisions are compared

    @property
    def unit(self) -> str:
        """What the score is."""
        return self.score[1]


TRAINER_FAST = {**GLUE, "by_length": True}
SFT_FAST = {**SFT, "max_length": 512, "batch_rows": 1, "accumulate": 4, "checkpointing": False}

JOBS = {
    "sst2": Job(
        "sst2",
        MINILM,
        ("classification", "accuracy"),
        True,
        (
            Arm("trainer", "trainer", GLUE),
            Arm("trainer tuned", "trainer", TRAINER_FAST, (2e-5, 5e-5, 1e-4, 2e-4), (32, 16)),
        ),
    ),
    "sst2-lora": Job(
        "sst2-lora",
        MINILM,
        ("classification", "accuracy"),
        True,
        (
            Arm("peft", "trainer", GLUE_LORA),
            Arm(
                "peft tuned",
                "trainer",
                {**TRAINER_FAST, "lora": ALL_LINEAR},
                (3e-4, 1e-3, 2e-3, 4e-3),
                (32, 16),
            ),
        ),
    ),
    "alpaca-lora": Job(
        "alpaca",
        SMOLLM,
        ("supervised", "loss"),
        False,
        (
            Arm("trl", "trl", {**SFT, "lora": {"r": 32, "lora_alpha": 16, "lora_dropout": 0.05}}),
            Arm("trl tuned", "trl", {**SFT_FAST, "lora": ALL_LINEAR}, (2e-4, 5e-4, 1e-3, 2e-3)),
        ),
        by_the_clock=True,
        tuning_seconds=240.0,
        looks=5,
        probe_steps=3,
    ),
}
