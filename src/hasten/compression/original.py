"""The model that a chain begins with, the recipe for its texts, and what methods look at."""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from hasten.adapt.peft import is_adapter
from hasten.compression.config import ORIGINAL, CompressConfig
from hasten.core.batch import Batch
from hasten.core.errors import ConfigError
from hasten.core.files import contents, digest, fingerprint
from hasten.core.runtime import choose_device
from hasten.data.prepare import Prepared
from hasten.exchange.parcel import Parcel, opened
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer
from hasten.recipe import Recipe, folder_of
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.load import load_model
from hasten.train.restore import checkpoint_in
from hasten.train.snapshot import ADAPTER

WEIGHTS_ENDING = ".safetensors"
STATE_FOLDER = "state"
"""Of a checkpoint: what only a training needs."""


@dataclass(frozen=True)
class Original:
    """The model in `folder`; `recipe` has its texts, if there are any."""

    folder: Path
    recipe: Recipe

    @classmethod
    def of(cls, recipe: Recipe) -> "Original":
        """What a recipe compresses: the model that it names, or its run's own.

        A model from elsewhere brings its tokenizer and its kind, and of the recipe only texts count.
        """
        named = recipe.compress.model
        folder = folder_of(named) if named else checkpoint_in(recipe.source)
        if (folder / ADAPTER).is_file() or is_adapter(folder):
            raise ConfigError(
                f"{folder}: is an adapter beside its base; fold it in first (hasten merge"
                f" {named or recipe.source} output=models/mine), and compress what comes out"
            )
        if named is None and recipe.checkpoint is None:
            return cls(folder, recipe)
        foreign = {"base": str(folder), "model": ModelConfig(), "adapt": None, "layers": None}
        # Not a copy: that would keep what the recipe has found out of the base it had.
        fields = {name: getattr(recipe, name) for name in Recipe.model_fields}
        return cls(folder, Recipe(**{**fields, **foreign}))

    @property
    def config(self) -> CompressConfig:
        """What is asked."""
        return self.recipe.compress

    @property
    def device(self) -> torch.device:
        """Where models are measured."""
        return choose_device(self.recipe.device)

    @property
    def has_text(self) -> bool:
        """Whether there is anything to read."""
        return self.recipe.data is not None

    @cached_property
    def key(self) -> str:
        """A name for its weights: equal weights, equal names."""
        return fingerprint({path.name: digest(path) for path in weight_files(self.folder)})

    @cached_property
    def parcel(self) -> Parcel:
        """The model and what belongs to it; ConfigError where it has no tokenizer."""
        found = opened(self.folder)
        if found.tokenizer is None:
            raise ConfigError(f"{self.folder}: has no tokenizer.json; put the model's own beside its weights")
        return found

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        assert self.parcel.tokenizer is not None
        return self.parcel.tokenizer

    @cached_property
    def prepared(self) -> Prepared:
        """The recipe's texts as token shards."""
        return self.recipe.prepared()

    @cached_property
    def text_key(self) -> str | None:
        """A name for what methods look at; None where there is no text."""
        if not self.has_text:
            return None
        return fingerprint([self.recipe.input_fingerprint(), self.config.calibration.model_dump()])

    @cached_property
    def batches(self) -> list[Batch]:
        """Rows of the training text, drawn evenly, for methods to look at."""
        if not self.has_text:
            return []
        asked = self.config.calibration
        self.recipe.examples()
        corpus = self.recipe.corpus(self.prepared, "train", self.tokenizer)
        return list(
            islice(corpus.sweep(asked.batch_rows, rows=asked.rows), -(-asked.rows // asked.batch_rows))
        )

    def load(self, folder: Path | None = None) -> Transformer:
        """A model of the chain, or the original, where models are measured."""
        return load_model(folder or self.folder, self.device)[0]

    def said(self) -> dict[str, Any]:
        """What the record says of it."""
        return {"name": ORIGINAL, "folder": str(self.folder), "key": self.key}


def weight_files(folder: Path) -> list[Path]:
    """The files with a model's weights in its folder; what only a training needs is none of them."""
    found = [path for path in contents(folder) if path.suffix == WEIGHTS_ENDING]
    return [path for path in found if STATE_FOLDER not in path.relative_to(folder).parts]


def bytes_of(folder: Path) -> int:
    """Bytes of a model's weights on the disk."""
    return sum(path.stat().st_size for path in weight_files(folder))
