"""A recipe: one YAML file that holds everything about a run, and the parts that it puts together."""

import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hasten.core import config
from hasten.core.config import Config
from hasten.core.errors import ConfigError, did_you_mean
from hasten.core.worker import is_started_by_hasten
from hasten.data.config import DataConfig, Examples
from hasten.data.corpora import open_corpus
from hasten.data.corpus import Corpus
from hasten.data.prepare import Prepared, prepare
from hasten.data.split import Split
from hasten.evaluate.run import EvaluateConfig
from hasten.generate.config import GenerateConfig
from hasten.ledger.config import BenchConfig
from hasten.model.config import ModelConfig
from hasten.objective.cross_entropy import CrossEntropy
from hasten.parallel.config import ParallelConfig
from hasten.report.page import ReportConfig
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.config import TrainConfig

Stage = Literal["prepare", "train", "evaluate", "generate", "report"]
NEEDED: dict[str, Examples] = {"decoder": "language_model", "encoder": "masked", "seq2seq": "pairs"}
KIND_OF = {examples: kind for kind, examples in NEEDED.items()}
IDENTITY = ("data", "model", "objective", "train")
"""The sections that decide which weights come out."""


class About(Config):
    """What `hasten recipes` says of a recipe."""

    purpose: str = ""
    hardware: str = ""
    time: str = ""


class Recipe(Config):
    """Everything about a run.  Only what differs from the defaults needs to be written."""

    about: About = About()
    output: Path = Field(Path("runs/model"), description="the run's folder")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    checkpoint: Path | None = Field(
        None,
        description="what evaluate, generate and chat use: a checkpoint, a run or a Hugging Face folder;"
        " by default the run's best",
    )
    data: DataConfig | None = None
    model: ModelConfig = ModelConfig()
    objective: CrossEntropy = CrossEntropy()
    train: TrainConfig = TrainConfig(epochs=1)
    parallel: ParallelConfig = ParallelConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    generate: GenerateConfig = GenerateConfig()
    report: ReportConfig = ReportConfig()
    bench: BenchConfig = BenchConfig()
    journey: tuple[Stage, ...] = ("prepare", "train", "evaluate", "generate", "report")

    @property
    def source(self) -> Path:
        """The folder that evaluate, generate and chat take their model from."""
        return self.checkpoint or self.output

    @property
    def text(self) -> DataConfig:
        """The `data` section, which a recipe for a finished checkpoint may lack."""
        if self.data is None:
            raise ConfigError("the recipe has no `data:`; add data.sources=[path/to/texts]")
        return self.data

    def prepared(self) -> Prepared:
        """The recipe's data as token shards, made now or found as made before."""
        return prepare(self.text, progress=not is_started_by_hasten())  # the launcher has said it all

    def architecture(self, tokenizer: Tokenizer) -> ModelConfig:
        """The model's configuration with its vocabulary known and its context long enough for a row."""
        vocab_size = self.model.vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            raise ConfigError(
                f"model.vocab_size ({vocab_size:,}) is less than the tokenizer's {tokenizer.vocab_size:,};"
                " leave it out, or write at least that"
            )
        for name in ("row_tokens", "source_row_tokens"):
            if (getattr(self.text, name) or 0) > self.model.max_positions:
                raise ConfigError(
                    f"data.{name} ({getattr(self.text, name):,}) is more than model.max_positions"
                    f" ({self.model.max_positions:,}); raise model.max_positions or write shorter rows"
                )
        started = {"start_id": self.start_id(tokenizer)} if self.model.kind == "seq2seq" else {}
        return self.model.model_copy(update={"vocab_size": vocab_size, **started})

    def start_id(self, tokenizer: Tokenizer) -> int:
        """The token that a target begins with: the model's, or that which begins a text."""
        return tokenizer.bos_id if self.model.start_id is None else self.model.start_id

    def examples(self) -> Examples:
        """What a row of the data asks, as `data.examples` says or the model's kind needs."""
        needed = NEEDED[self.model.kind]
        if self.text.examples not in (None, needed):
            raise ConfigError(
                f"data.examples is {self.text.examples} and model.kind {self.model.kind}, which learns from"
                f" {needed}; write model.kind={KIND_OF[self.text.examples]}, or leave data.examples out"
            )
        if needed == "pairs" and not self.text.is_pairs:
            raise ConfigError(
                "model.kind is seq2seq, which learns from pairs; data.sources are texts; name two columns:"
                " data.sources=[{paths: [...], source_field: en, target_field: de}]"
            )
        if needed != "pairs" and self.text.is_pairs:
            raise ConfigError(
                f"data.sources are pairs and model.kind is {self.model.kind}, which learns from texts; write"
                " model.kind=seq2seq, or text_field in place of source_field and target_field"
            )
        if self.model.head != "vocabulary":
            raise ConfigError(
                f"model.head is {self.model.head}, and here tokens are to be predicted; leave it out"
            )
        return needed

    def corpus(self, prepared: Prepared, split: Split, tokenizer: Tokenizer) -> Corpus:
        """One split of the prepared data in rows for the model; training mixes sources by weight."""
        return open_corpus(
            self.text,
            self.examples(),
            prepared.folder,
            split,
            seed=self.train.seed,
            tokenizer=tokenizer,
            start_id=self.start_id(tokenizer),
            weights=self.weights() if split == "train" else None,
        )

    def check_batch(self, replicas: int) -> None:
        """Refuse batches that are not whole rows, equally many for each replica of the model."""
        self.train.batch_rows(self.text.row_tokens, replicas)
        self.train.micro_rows(self.text.row_tokens)

    def weights(self) -> dict[str, float] | None:
        """Each source's share in the mixture, None where sizes decide."""
        given = {source.title: source.weight for source in self.text.sources if source.weight is not None}
        return given or None

    def identity(self) -> dict[str, Any]:
        """What two recipes must share to be the same run."""
        return self.model_dump(mode="json", include=set(IDENTITY))


def shipped() -> dict[str, Path]:
    """The recipes that come with hasten, by name."""
    folder = Path(str(resources.files("hasten") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The YAML file that `name` means: a file, a run's folder, or a recipe that ships."""
    path = Path(name).expanduser()
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    known = shipped()
    if name in known:
        return known[name]
    raise ConfigError(
        f"'{name}' is no recipe file, no run's folder and no recipe that ships.{did_you_mean(name, known)}"
        f" These ship: {', '.join(known)}"
    )


def read(name: str, overrides: list[str]) -> Recipe:
    """The recipe that `name` means, with overrides on top; a model's folder is a recipe that uses it."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "recipe.yaml").is_file() and is_model(folder):
        data = {"checkpoint": str(folder), "output": f"runs/{folder.resolve().name}"}
        return config.parse(Recipe, config.override(data, overrides), name)
    if folder.is_dir():  # a run may have been moved, or be named from elsewhere than where it began
        overrides = [f"output={json.dumps(name)}", *overrides]
    return config.load(Recipe, find(name), overrides)


def is_model(folder: Path) -> bool:
    """Whether a folder is a checkpoint of ours or in the Hugging Face layout."""
    return (folder / "model.yaml").is_file() or (folder / "config.json").is_file()
