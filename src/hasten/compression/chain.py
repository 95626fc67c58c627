"""The steps of a chain, each from one folder to the next, whole or not at all.

A step's folder carries in its manifest a key of all that it depends on: a chain that is taken again, after a
crash or with other last steps, goes on behind what is done.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hasten.compress.quantize import Quantize
from hasten.compress.sparsify import Sparsify
from hasten.compression.config import ORIGINAL, Distil, Step
from hasten.compression.original import Original
from hasten.core.config import parse
from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.core.files import damage, fingerprint, read_manifest, sweep
from hasten.defaults import filled
from hasten.exchange.compressed import save_compressed
from hasten.exchange.parcel import Parcel, opened
from hasten.journey import code_version
from hasten.model.compressed import CompressionNote
from hasten.model.factored import factored_layers
from hasten.model.interop import narrowed
from hasten.model.plain import quantization_of
from hasten.model.transformer import Transformer
from hasten.recipe import Recipe
from hasten.train.config import HORIZONS
from hasten.train.load import load_config, load_model
from hasten.train.optim import AdamWConfig
from hasten.train.restore import checkpoint_in
from hasten.train.run import Summary

Train = Callable[[Recipe], Summary]
"""The stage of training: begins or goes on, and says whether it came to its end."""
METHODS = ("core", "ops", "model", "compress")
TRAINING = ("core", "ops", "tokenizer", "model", "data", "adapt", "objective", "parallel", "train")
"""Folders of code that a step's result depends on."""
REGAINING = 3
"""Times the rate of fine-tuning: a model that has lost parts has farther to go (bench/distil.py)."""
NAMED = 3
"""Names of a list that are told one by one."""


@dataclass(frozen=True)
class Link:
    """A model of the chain."""

    name: str  # "1-depth"
    folder: Path
    key: str
    steps: tuple[Step, ...]  # all from the original to here


class StoppedError(Exception):
    """Someone asked to stop a training; it is saved."""

    def __init__(self, summary: Summary) -> None:
        super().__init__("stopped and saved")
        self.summary = summary


def take(original: Original, steps: Sequence[Step], folder: Path, train: Train) -> list[Link]:
    """The models of a chain below `folder`, one for each step; what is there already is kept.

    Raises StoppedError where a training in it was stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    links: list[Link] = []
    for number, step in enumerate(steps, start=1):
        before = links[-1] if links else None
        link = Link(
            f"{number}-{step.kind}",
            folder / f"{number}-{step.kind}",
            key_of(original, step, before),
            (*(before.steps if before else ()), step),
        )
        if is_done(link):
            say(f"compress: {link.name} is unchanged, kept")
        else:
            say(f"compress: {link.name}")
            do(original, step, before, link, train)
        links.append(link)
    return links


def key_of(original: Original, step: Step, before: Link | None) -> str:
    """A name for all that the result of a step depends on."""
    values, parent = step.model_dump(mode="json"), before.key if before else original.key
    if not isinstance(step, Distil):
        reads = original.text_key if looks_at_text(step) else None
        return fingerprint([values, parent, reads, code_version(METHODS)])
    recipe = original.recipe
    training = recipe.model_dump(mode="json", include={"train", "device"})
    texts = recipe.input_fingerprint() if original.has_text else None
    return fingerprint([values, parent, original.key, training, texts, code_version(TRAINING)])


def looks_at_text(step: Step) -> bool:
    """Whether a method asks what a model reads."""
    if isinstance(step, Quantize):
        return step.reads
    return not (isinstance(step, Sparsify) and step.method == "magnitude")


def is_done(link: Link) -> bool:
    """Whether the folder of a link is whole and holds just this."""
    manifest = read_manifest(link.folder) if link.folder.is_dir() else None
    return manifest is not None and manifest["note"].get("key") == link.key and damage(link.folder) is None


def do(original: Original, step: Step, before: Link | None, link: Link, train: Train) -> None:
    """Take one step, and lay its model down."""
    parcel = opened(before.folder if before else original.folder)
    if isinstance(step, Distil):
        model = distilled(original, step, before, link, train)
    else:
        if looks_at_text(step) and not original.has_text:
            raise ConfigError(
                f"compress: {link.name} looks at texts of the kind that the model will read, and there are"
                " none; write data.sources=[path/to/texts], or for quantize method: rtn"
            )
        model = step.apply(parcel.model.to(original.device), original.batches if looks_at_text(step) else [])
    lay_down(original, replace(parcel, model=model.cpu(), types=types_of(original, model)), link)
    if isinstance(step, Distil):  # its figures stay, what it would go on with need not
        shutil.rmtree(training_folder(link) / "checkpoints")


def types_of(original: Original, model: Transformer) -> dict[str, torch.dtype]:
    """The type in which each number of a smaller model is kept: that of the original's numbers."""
    kinds = list(original.parcel.types.values())
    usual = max(set(kinds), key=kinds.count)
    return {name: original.parcel.types.get(name, usual) for name in model.state_dict()}


@torch.no_grad()
def lay_down(original: Original, parcel: Parcel, link: Link) -> None:
    """Write a link's model with a note of where it comes from."""
    for name, parameter in parcel.model.named_parameters():
        kind = parcel.types.get(name)
        if kind is not None and kind.itemsize < parameter.dtype.itemsize:
            parameter.copy_(narrowed(parameter, kind, name).to(parameter.dtype))
    note = CompressionNote(
        ranks={name: layer.rank for name, layer in factored_layers(parcel.model).items()},
        quantization=quantization_of(parcel.model),
        parent=str(original.folder),
        digest=original.key,
        steps=tuple(words_of(step) for step in link.steps),
    )
    about = {"step": 0, "metric": None, "parent": str(original.folder), "key": link.key}
    save_compressed(link.folder, parcel, note, about)


def words_of(step: Step) -> str:
    """A step in words: its kind, and what of it is not as by default."""
    values = step.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    return f"{step.kind}({', '.join(f'{name}={brief(value)}' for name, value in values.items())})"


def brief(value: Any) -> Any:
    """A value as it is told: of a long list how many there are."""
    return f"{len(value)} layers" if isinstance(value, list) and len(value) > NAMED else value


def distilled(original: Original, step: Distil, before: Link | None, link: Link, train: Train) -> Transformer:
    """The student that a training leaves, which has a folder beside the link's."""
    recipe = training_of(original, step, before, link)
    if (recipe.output / "key").is_file() and (recipe.output / "key").read_text(encoding="utf-8") != link.key:
        shutil.rmtree(recipe.output)  # of another chain
    recipe.output.mkdir(parents=True, exist_ok=True)
    (recipe.output / "key").write_text(link.key, encoding="utf-8")
    summary = train(recipe)
    if not summary.completed:
        raise StoppedError(summary)
    return load_model(checkpoint_in(recipe.output))[0]


def training_of(original: Original, step: Distil, before: Link | None, link: Link) -> Recipe:
    """The recipe of a distilling step: the original's texts, the model before as a base."""
    if not original.has_text:
        raise ConfigError(
            f"compress: {link.name} trains on texts, and there are none; write data.sources=[...]"
        )
    recipe, named = original.recipe, step.objective.teacher
    zeros = {"keep_zeros": True} if any(isinstance(each, Sparsify) for each in link.steps) else {}
    given = recipe.train.model_dump(mode="json", exclude={"optimizer", "schedule", *HORIZONS})
    return derived(
        recipe,
        base=str(before.folder if before else original.folder),
        objective={
            **step.objective.model_dump(mode="json"),
            "teacher": str(original.folder) if named == ORIGINAL else named,
        },
        train={**given, **step.horizon, **regaining(original, step), **zeros},
        output=str(training_folder(link)),
    )


def regaining(original: Original, step: Distil) -> dict[str, Any]:
    """What a step says of its training, with an optimizer where it names none."""
    if step.optimizer is not None:
        return step.training
    usual = AdamWConfig(learning_rate="auto").settled(load_config(original.folder))
    rate = REGAINING * usual.rate("matrix")
    return {**step.training, "optimizer": {"kind": "adamw", "learning_rate": float(f"{rate:.2g}")}}


def training_folder(link: Link) -> Path:
    """Where the training of a distilling step lies."""
    return link.folder.with_name(f"{link.name}-training")


def derived(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe with the same texts, and what follows from `changes` filled in."""
    own = {"about", "base", "layers", "model", "adapt", "objective", "train", "checkpoint", "compress"}
    own |= {"parallel"}  # it is trained here, by one process
    return parse(Recipe, filled({**recipe.model_dump(mode="json", exclude=own), **changes}), "compress")
