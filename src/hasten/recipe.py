"""A recipe: everything about a run, and the parts that it puts together.  `lookup` finds the one named."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hasten.adapt.config import LoraConfig, choose_rank
from hasten.compression.config import CompressConfig
from hasten.core.config import Config
from hasten.core.errors import ConfigError
from hasten.core.worker import is_started_by_hasten
from hasten.data.config import DataConfig, Examples
from hasten.data.corpora import open_corpus
from hasten.data.corpus import Corpus
from hasten.data.prepare import Prepared, input_fingerprint, prepare
from hasten.data.split import Split
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.protocol import Encoding, Setting
from hasten.defaults import CROSS_ENTROPY, DISTILLATION, OBJECTIVES
from hasten.evaluate.run import EvaluateConfig
from hasten.generate.config import GenerateConfig
from hasten.ledger.config import BenchConfig
from hasten.model.config import ModelConfig
from hasten.model.fewer import with_layers
from hasten.model.heads import with_classes, with_spans
from hasten.model.hub import fetch, is_hub_name
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.distillation import Distillation
from hasten.objective.preference import Preference
from hasten.objective.spans import Spans
from hasten.parallel.config import ParallelConfig
from hasten.report.page import ReportConfig
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig
from hasten.train.config import TrainConfig
from hasten.train.layers import COUNTS, Layers, sides
from hasten.train.load import load_config
from hasten.train.restore import checkpoint_in

Stage = Literal["prepare", "train", "evaluate", "generate", "compress", "report"]
Objective = Annotated[CrossEntropy | Preference | Spans | Distillation, Field(discriminator="kind")]
OWN_WITH_BASE = {"dropout", "attention_dropout"}
"""What a recipe may say of a model that it begins with; all else is the model's own."""
NEEDED: dict[str, Examples] = {"decoder": "language_model", "encoder": "masked", "seq2seq": "pairs"}
KIND_OF = {examples: kind for kind, examples in NEEDED.items()}
IDENTITY = ("base", "layers", "data", "model", "adapt", "objective", "train")
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
    base: str | None = Field(
        None,
        description="the model to begin from: a run, a checkpoint, a Hugging Face folder, an adapter, or"
        " owner/name of the hub; its tokenizer is used, too",
    )
    layers: Layers | None = Field(
        None,
        description="begin with some layers of the base: spread, first or last, model.num_layers of them, or"
        " a list such as [0, 3, 7, 11]",
    )
    data: DataConfig | None = None
    model: ModelConfig = ModelConfig()
    adapt: LoraConfig | None = Field(None, description="train thin pairs beside the base's frozen matrices")
    objective: Objective = CrossEntropy()
    train: TrainConfig = TrainConfig(epochs=1)
    parallel: ParallelConfig = ParallelConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    generate: GenerateConfig = GenerateConfig()
    compress: CompressConfig = CompressConfig()
    report: ReportConfig = ReportConfig()
    bench: BenchConfig = BenchConfig()
    journey: tuple[Stage, ...] = ("prepare", "train", "evaluate", "generate", "report")

    @model_validator(mode="after")
    def check_base(self) -> "Recipe":
        if self.adapt is not None and self.base is None:
            raise ValueError("adapt needs a model to stand beside; write base: path/to/model")
        if self.adapt is not None and self.train.optimizer.kind == "muon":
            raise ValueError(
                "adapt trains thin pairs, which muon is not made for; write train.optimizer.kind: adamw"
            )
        if self.train.keep_zeros and (self.base is None or self.adapt is not None):
            raise ValueError(
                "train.keep_zeros keeps those of a pruned base; write base: path/to/it, no adapt"
            )
        if self.train.metric == "score" and not self.evaluate.during_training:
            raise ValueError("train.metric is score; write evaluate.during_training: 64, or another metric")
        plain = ModelConfig()
        own = {
            name for name in self.model.model_fields_set if getattr(self.model, name) != getattr(plain, name)
        }
        if self.layers is not None and (self.base is None or self.adapt is not None):
            what = "adapt stands beside a whole model" if self.base else "layers are those of a base"
            raise ValueError(
                f"{what}; write {'no adapt' if self.base else 'base: path/to/teacher'}, or no layers"
            )
        may = OWN_WITH_BASE | ({*COUNTS} if isinstance(self.layers, str) else set())
        if self.base is not None and (beyond := own - may):
            raise ValueError(
                f"model.{min(beyond)} is for a new model, and base: {self.base} has its own; leave out one of"
                " them"
            )
        return self

    @cached_property
    def base_folder(self) -> Path | None:
        """Where the model lies that training begins with, fetched where it is a name of the hub."""
        return None if self.base is None else folder_of(self.base)

    @cached_property
    def base_shape(self) -> ModelConfig | None:
        """The configuration of the model that training begins with, read once."""
        return None if self.base_folder is None else load_config(self.base_folder)

    @cached_property
    def teacher_folder(self) -> Path | None:
        """Where the model lies that a student learns from."""
        return folder_of(self.objective.teacher) if isinstance(self.objective, Distillation) else None

    @property
    def shape(self) -> ModelConfig:
        """The model as it is before its task is known: the base's, or that of the recipe."""
        base, stay = self.base_shape, self.staying
        if base is None:
            return self.model
        own = {name: getattr(self.model, name) for name in OWN_WITH_BASE & self.model.model_fields_set}
        return (base if stay is None else with_layers(base, stay)).model_copy(update=own)

    @property
    def staying(self) -> dict[str, list[int]] | None:
        """The layers of the base that a student begins with, on each side; None is all."""
        if self.layers is None or self.base_shape is None:
            return None
        return sides(self.layers, self.base_shape, self.model)

    @property
    def source(self) -> Path:
        """The folder that evaluate, generate and chat take their model from."""
        return self.checkpoint or self.output

    @property
    def text(self) -> DataConfig:
        """The `data` section, which a recipe for a finished checkpoint may lack."""
        if self.data is None:
            raise ConfigError("the recipe has no `data:`; add data.sources=[path/to/texts]")
        # Not by which fields were given: the recipe that a run keeps has them all.
        theirs = self.base_folder or self.teacher_folder
        if theirs is None or self.data.tokenizer != TokenizerConfig():
            return self.data
        return self.data.model_copy(update={"tokenizer": theirs})

    def prepared(self) -> Prepared:
        """The recipe's data as token shards, made now or found as made before."""
        progress = not is_started_by_hasten()  # the launcher has said it all
        return prepare(self.text, progress, self.shape.kind, self.base_folder)

    def input_fingerprint(self) -> str:
        """The name of the folder with the recipe's data, prepared: equal for equal inputs."""
        return input_fingerprint(self.text, self.shape.kind, self.base_folder)

    def architecture(self, tokenizer: Tokenizer, learnt: Mapping[str, Any] | None = None) -> ModelConfig:
        """The model's configuration with its vocabulary known and its context long enough for a row.

        With what a task has `learnt` of its data, it reads out what the task asks.
        """
        shape = self.shape
        vocab_size = shape.vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            what = "model.vocab_size" if self.base is None else f"the vocabulary of {self.base}"
            raise ConfigError(
                f"{what} ({vocab_size:,}) is less than the tokenizer's {tokenizer.vocab_size:,};"
                " leave it out, or write at least that"
            )
        for name in ("row_tokens", "source_row_tokens"):
            if (getattr(self.text, name) or 0) > shape.max_positions:
                raise ConfigError(
                    f"data.{name} ({getattr(self.text, name):,}) is more than model.max_positions"
                    f" ({shape.max_positions:,}); raise model.max_positions or write shorter rows"
                )
        started = {"start_id": self.start_id(tokenizer)} if shape.kind == "seq2seq" else {}
        return self.reading_out(shape.model_copy(update={"vocab_size": vocab_size, **started}), learnt or {})

    def reading_out(self, shape: ModelConfig, learnt: Mapping[str, Any]) -> ModelConfig:
        """The same with the head that the recipe's task asks for."""
        task = self.text.task
        if task is None or task.kind not in ("labelled", "spans"):
            return shape
        if task.kind == "spans":
            return with_spans(shape)
        return with_classes(shape, learnt["labels"])

    def start_id(self, tokenizer: Tokenizer) -> int:
        """The token that a target begins with: the model's, or that which begins a text."""
        return tokenizer.bos_id if self.shape.start_id is None else self.shape.start_id

    def examples(self) -> Examples:
        """What a row of the data asks, as `data.examples` says or the model's kind needs."""
        if self.text.task is not None:
            self.check_objective(self.text.task.kind)
            self.check_unlabelled()
            return "task"
        kind, head = self.shape.kind, self.shape.head
        needed = NEEDED[kind]
        self.check_objective(None)
        if self.text.examples not in (None, needed):
            raise ConfigError(
                f"data.examples is {self.text.examples} and model.kind {kind}, which learns from"
                f" {needed}; write model.kind={KIND_OF[self.text.examples]}, or leave data.examples out"
            )
        if needed == "pairs" and not self.text.is_pairs:
            raise ConfigError(
                "model.kind is seq2seq, which learns from pairs; data.sources are texts; name two columns:"
                " data.sources=[{paths: [...], source_field: en, target_field: de}]"
            )
        if needed != "pairs" and self.text.is_pairs:
            raise ConfigError(
                f"data.sources are pairs and model.kind is {kind}, which learns from texts; write"
                " model.kind=seq2seq, or text_field in place of source_field and target_field"
            )
        if head != "vocabulary":
            where = "model.head" if self.base is None else f"the head of {self.base}"
            raise ConfigError(f"{where} is {head}, and here tokens are to be predicted; take one that does")
        return needed

    def check_objective(self, task: str | None) -> None:
        """Refuse an objective that does not go with the task."""
        wanted = OBJECTIVES.get(task or "", CROSS_ENTROPY)
        teaches = self.objective.kind == DISTILLATION and wanted == CROSS_ENTROPY
        if self.objective.kind != wanted and not teaches:
            raise ConfigError(
                f"objective.kind is {self.objective.kind}, and {task or 'text'} is learnt by {wanted}; leave"
                " it out"
            )

    def check_unlabelled(self) -> None:
        """Refuse texts without labels where nobody says what they are."""
        task, objective = self.text.task, self.objective
        taught = isinstance(task, LabelledConfig) and task.unlabelled == "taught"
        if taught and not (isinstance(objective, Distillation) and objective.asks_logits):
            raise ConfigError(
                "data.task.unlabelled is taught, and no teacher says what texts without a label are; write"
                " objective: {kind: distillation, teacher: path/to/a/classifier}"
            )

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

    def encoding(self, tokenizer: Tokenizer, learnt: Mapping[str, Any]) -> Encoding | None:
        """The recipe's task with the tokenizer and what was learnt of its data; None without a task."""
        task, rows = self.text.task, self.text.row_tokens
        setting = Setting(tokenizer, self.shape.kind, rows, self.base_folder, learnt)
        return None if task is None else task.open(setting)

    def rank_for(self, corpus: Corpus) -> int | None:
        """How thick the pairs are that `adapt` trains: as it says, or by how much there is to learn."""
        if self.adapt is None:
            return None
        return (
            choose_rank(corpus.num_supervised, self.shape) if self.adapt.rank == "auto" else self.adapt.rank
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


def folder_of(name: str) -> Path:
    """The folder with the model that a recipe names, fetched where it is a name of the hub."""
    path = Path(name).expanduser()
    return checkpoint_in(fetch(name) if not path.exists() and is_hub_name(name) else path)
