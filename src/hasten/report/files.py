"""The files of a run's folder, read and checked.  Only `metrics.jsonl` has to be there.

metrics.jsonl     what training measured, a line at a time
recipe.yaml       the resolved recipe
environment.json  versions and machine
training.json     what training came to
data.json         how much data there was, and what cleaning dropped
evaluation.json   scores on documents that were not trained on
samples.json      what the model wrote
quarantine.jsonl  batches whose step was not finite
checkpoints/      the newest one's model.yaml tells the number of parameters
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hasten.core import config
from hasten.core.errors import ConfigError, DataError
from hasten.model.config import ModelConfig
from hasten.train.metrics import read_lines

T = TypeVar("T")
Line = dict[str, Any]


class Record(BaseModel):
    """Base of what is read: extra keys are left alone, so that newer files open in older reports."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Score(Record):
    """How well text was predicted (`evaluate/language.py`)."""

    bits_per_byte: float
    stderr: float | None = None
    loss: float
    perplexity: float
    accuracy: float
    tokens: int
    bytes: int
    documents: int | None = None


class Baseline(Record):
    """What a compressor made of the same text."""

    bits_per_byte: float
    bytes: int


class ParseRate(Record):
    """Share of snippets that parse."""

    rate: float
    stderr: float | None = None
    parsed: int
    snippets: int


class CodeScore(ParseRate):
    """The model's parse rate beside that of the documents' authors."""

    authors: ParseRate | None = None


class MaskedScore(Record):
    """How well an encoder found hidden tokens, beside guesses from counts (`evaluate/masked.py`)."""

    split: str
    accuracy: float
    stderr: float | None = None
    loss: float
    perplexity: float
    tokens: int
    share: float
    baselines: dict[str, float] = {}


class Overlap(Record):
    """A sacreBLEU score with half of its 95% interval."""

    score: float
    interval: float | None = None
    signature: str


class Translated(Record):
    """A source, the model's text and a person's."""

    source: str
    text: str
    reference: str


class Translation(Record):
    """How a model's translations compare with references (`evaluate/translation.py`)."""

    split: str
    beams: int
    bleu: Overlap
    chrf: Overlap
    pairs: int
    tokens_per_second: float | None = None
    unfinished: int = 0
    examples: list[Translated] = []


class ClassScore(Record):
    """One class: how many of its texts were found, and of those taken for it, how many are right."""

    name: str
    precision: float
    recall: float
    f1: float
    examples: int


class Bin(Record):
    """Texts of which a classifier was about equally sure."""

    low: float
    high: float
    examples: int
    confidence: float | None = None
    accuracy: float | None = None


class Calibration(Record):
    """Whether a classifier is as often right as it is sure (`evaluate/calibration.py`)."""

    ece: float
    ece_mass: float
    brier: float
    nll: float
    bins: list[Bin] = []


class Tempered(Record):
    """The same after logits are divided by a temperature."""

    temperature: float
    fitted_on: int
    calibration: Calibration


class Mistake(Record):
    """A text that was taken for another class."""

    text: str
    pair: str | None = None
    label: str
    predicted: str
    confidence: float


class Classification(Record):
    """How well classes of texts were told apart (`evaluate/classify.py`)."""

    split: str
    examples: int
    left_out: int = 0
    accuracy: float
    interval: tuple[float, float]
    macro_f1: float
    majority: float
    majority_macro_f1: float
    classes: list[ClassScore]
    confusion: list[list[int]]
    calibration: Calibration
    tempered: Tempered | None = None
    mistakes: list[Mistake] = []


class Evaluation(Record):
    """evaluation.json."""

    test: Score | None = None
    validation: Score | None = None
    sources: dict[str, Score] = {}
    baselines: dict[str, Baseline] = {}
    code: CodeScore | None = None
    masked: MaskedScore | None = None
    translation: Translation | None = None
    classification: Classification | None = None
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
    times: dict[str, float] = {}  # seconds of each part, by the names in train/times.py
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
    examples: list[Example] = []


class Cleaning(Record):
    """What cleaning read and dropped."""

    documents: int
    bytes: int
    kept: int
    dropped: dict[str, Dropped] = {}
    bad_rows: int = 0


class Data(Record):
    """data.json: {split: {source: counts}} and the cleaning report."""

    splits: dict[str, dict[str, Counts]] = {}
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


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """Read several runs; those whose folders have the same name are told apart by their paths."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder; DataError or ConfigError name a file that is missing or malformed."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise DataError(f"{folder}: holds no metrics.jsonl; give the folder of a run that has begun to train")
    recipe = folder / "recipe.yaml"
    settings = config.read(recipe) if recipe.is_file() else {}
    environment = TypeAdapter(dict[str, str | int | float | bool | None])
    return RunFiles(
        name=folder.resolve().name,
        folder=folder,
        metrics=read_lines(metrics),
        recipe_text=recipe.read_text(encoding="utf-8") if settings else None,
        recipe=settings,
        environment=read_json(folder / "environment.json", environment.validate_json, {}),
        training=read_json(folder / "training.json", Training.model_validate_json, None),
        data=read_json(folder / "data.json", Data.model_validate_json, None),
        evaluation=read_json(folder / "evaluation.json", Evaluation.model_validate_json, None),
        samples=read_json(folder / "samples.json", TypeAdapter(list[Sample]).validate_json, []),
        quarantined=count_lines(folder / "quarantine.jsonl"),
        parameters=count_parameters(folder / "checkpoints"),
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


def count_parameters(checkpoints: Path) -> int | None:
    """The number of parameters by the newest checkpoint's model.yaml, None where there is no checkpoint."""
    files = sorted(checkpoints.glob("step-*/model.yaml"))
    if not files:
        return None
    try:
        return config.load(ModelConfig, files[-1]).num_parameters
    except ConfigError as error:
        raise DataError(str(error)) from None
