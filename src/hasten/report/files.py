"""The files of a run's folder, read and checked.  Only `metrics.jsonl` or `compression.json` has to be there.

metrics.jsonl     what training measured, a line at a time
recipe.yaml       the resolved recipe
environment.json  versions and machine
training.json     what training came to
data.json         how much data there was, and what cleaning dropped
checks.json       what was found of rows that a model is fine-tuned on, and some as the model reads them
evaluation.json   scores on documents that were not trained on
samples.json      what the model wrote
compression.json  what smaller models came of it, and what they are worth
quarantine.jsonl  batches whose step was not finite
checkpoints/      the newest one tells the number of parameters, and what was trained beside a frozen model
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from hasten.core import config
from hasten.core.errors import ConfigError, DataError
from hasten.model.config import ModelConfig
from hasten.report.adapter import Adapter, read_adapter
from hasten.report.checks import Checks
from hasten.report.compression_records import Compression
from hasten.report.records import (
    Baseline,
    BeforeAndAfter,
    Classification,
    CodeScore,
    MaskedScore,
    Record,
    Score,
    Translation,
)
from hasten.report.tasks import FoundAnswers, Preferences, Supervised, Written
from hasten.train.metrics import read_lines

T = TypeVar("T")
Line = dict[str, Any]


class Evaluation(Record):
    """evaluation.json."""

    test: Score | None = None
    validation: Score | None = None
    sources: dict[str, Score] = Field(default_factory=dict)
    continued: dict[str, BeforeAndAfter] = Field(default_factory=dict)
    baselines: dict[str, Baseline] = Field(default_factory=dict)
    code: CodeScore | None = None
    masked: MaskedScore | None = None
    translation: Translation | None = None
    classification: Classification | None = None
    answers: FoundAnswers | None = None
    supervised: Supervised | None = None
    written: Written | None = None
    preferences: Preferences | None = None
    checkpoint: str | None = None
    documents_available: int | None = None

    @property
    def score(self) -> Score | None:
        """The score on the split that was evaluated."""
        return self.test or self.validation


class Sample(Record):
    """One text that the model wrote."""

    prompt: str
    text: str
    stopped_by: str | None = None
    seed: int | None = None
    from_source: bool = False


class Training(Record):
    """What training came to."""

    steps: int
    tokens: int
    seconds: float
    skipped: int = 0
    rollbacks: int = 0
    times: dict[str, float] = Field(default_factory=dict)  # seconds, by the names in train/times.py
    peak_memory: int | None = None
    completed: bool = True


class Counts(Record):
    """How much there is of something."""

    documents: int
    tokens: int
    bytes: int


class Example(Record):
    """A document that a rule dropped."""

    id: str
    text: str
    note: str = ""


class Dropped(Record):
    """What one cleaning rule dropped."""

    documents: int
    bytes: int
    examples: tuple[Example, ...] = ()


class Cleaning(Record):
    """What cleaning read and dropped."""

    documents: int
    bytes: int
    kept: int
    dropped: dict[str, Dropped] = Field(default_factory=dict)
    bad_rows: int = 0


class Data(Record):
    """data.json: {split: {source: counts}} and the cleaning report."""

    splits: dict[str, dict[str, Counts]] = Field(default_factory=dict)
    clean: Cleaning | None = None


@dataclass(frozen=True)
class RunFiles:
    """All that a run's folder tells; what it does not hold is None or empty."""

    name: str
    folder: Path
    metrics: list[Line]
    recipe_text: str | None
    recipe: dict[str, Any]
    environment: dict[str, str | int | float | bool | None]
    training: Training | None
    data: Data | None
    evaluation: Evaluation | None
    samples: list[Sample]
    quarantined: int
    parameters: int | None
    adapter: Adapter | None = None
    checks: Checks | None = None
    compression: Compression | None = None

    @property
    def base(self) -> str | None:
        """The model that training began with, as its recipe names it."""
        base = self.recipe.get("base")
        return base if isinstance(base, str) else None

    @property
    def loss_unit(self) -> str:
        """The key of the words for what the training loss is of: a token, or an example with one answer."""
        data = self.recipe.get("data")
        task = data.get("task") if isinstance(data, dict) else None
        kind = task.get("kind") if isinstance(task, dict) else None
        return "nats_each" if kind in ("labelled", "spans", "preferences") else "nats"


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """Read several runs; those whose folders have the same name are told apart by their paths."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder; DataError or ConfigError name a file that is missing or malformed."""
    metrics, compressed = folder / "metrics.jsonl", folder / "compression.json"
    if not metrics.is_file() and not compressed.is_file():
        raise DataError(f"{folder}: holds no metrics.jsonl; give the folder of a run that has begun to train")
    recipe = folder / "recipe.yaml"
    settings = config.read(recipe) if recipe.is_file() else {}
    newest = newest_checkpoint(folder / "checkpoints")
    environment = TypeAdapter(dict[str, str | int | float | bool | None])
    return RunFiles(
        name=folder.resolve().name,
        folder=folder,
        metrics=read_lines(metrics) if metrics.is_file() else [],
        recipe_text=recipe.read_text(encoding="utf-8") if settings else None,
        recipe=settings,
        environment=read_json(folder / "environment.json", environment.validate_json, {}),
        training=read_json(folder / "training.json", Training.model_validate_json, None),
        data=read_json(folder / "data.json", Data.model_validate_json, None),
        evaluation=read_json(folder / "evaluation.json", Evaluation.model_validate_json, None),
        samples=read_json(folder / "samples.json", TypeAdapter(list[Sample]).validate_json, []),
        quarantined=count_lines(folder / "quarantine.jsonl"),
        parameters=count_parameters(newest) if newest else None,
        adapter=read_adapter(newest) if newest else None,
        checks=read_json(folder / "checks.json", Checks.model_validate_json, None),
        compression=read_json(compressed, Compression.model_validate_json, None),
    )


def read_json(path: Path, parse: Callable[[bytes], T], missing: T) -> T:
    """A JSON file through `parse`, or `missing` where there is none."""
    if not path.is_file():
        return missing
    try:
        return parse(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"{path}: {f'{place}: ' if place else ''}{problem['msg']}; remove the file or write it anew"
        ) from None


def count_lines(path: Path) -> int:
    """Whole lines of a file that may be absent."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """The folder of the newest checkpoint, None where there is none."""
    files = sorted(checkpoints.glob("step-*/model.yaml"))
    return files[-1].parent if files else None


def count_parameters(checkpoint: Path) -> int:
    """The number of parameters by a checkpoint's model.yaml."""
    try:
        return config.load(ModelConfig, checkpoint / "model.yaml").num_parameters
    except ConfigError as error:
        raise DataError(str(error)) from None
