"""What a teacher is worth to students of a text: parts of bench/distil.py.

A decoder of 12 layers (8M parameters) learns the source of Python's standard library; students have fewer.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from training import Results, demo_text
from welch import paired_p_value

from hasten import stages
from hasten.compression.chain import take
from hasten.compression.original import Original
from hasten.core.config import parse
from hasten.core.files import fingerprint
from hasten.defaults import filled
from hasten.lookup import read
from hasten.recipe import Recipe
from hasten.train.load import load_model
from hasten.train.run import Summary

TEACHER_LAYERS, STUDENT_LAYERS, DIM, HEAD_DIM = 12, 4, 192, 48
ROW_TOKENS, BATCH_TOKENS, VALIDATION_TOKENS = 256, 4096, 65_536
ARMS: dict[str, dict[str, Any]] = {
    "labels": {},
    "distilled": {"objective": {}},
    "layers": {"layers": "spread", "objective": {}},
    "sampled": {"layers": "spread", "objective": {"cache": {"samples": 12}}},
}
CUT, REGAIN_SHARE, REGAIN_BATCH_TOKENS, UNSEEN_BYTES = 0.25, 0.05, 512, 300_000
"""The share of the layers that go; of the teacher's tokens that bring quality back; tokens of such a step; of
the text that it is measured on."""


def shape(num_layers: int, dim: int) -> dict[str, Any]:
    """A decoder of so many layers; 12 of width 192 are 8M parameters with a vocabulary of 4,096."""
    sizes = {"dim": dim, "num_heads": dim // HEAD_DIM, "ffn_dim": 5 * dim, "max_positions": 512}
    return {"preset": "hasten-tiny", "num_layers": num_layers, **sizes}


def text_recipe(folder: Path, cache: Path, tokens: int, seed: int, given: Mapping[str, Any]) -> Recipe:
    """A training on the demo's text that validates and saves once, at its end."""
    demo = read("demo", [f"data.cache={cache}", f"data.row_tokens={ROW_TOKENS}"]).model_dump(mode="json")
    train = {
        "tokens": tokens, "batch_tokens": BATCH_TOKENS, "seed": seed, "validate_every": None,
        "checkpoint_every": None, "validation_tokens": VALIDATION_TOKENS, "compile": "off",
    }  # fmt: skip
    own = {**given, "train": train | given.get("train", {})}
    whole = {"output": str(folder), "data": demo["data"], **own}
    return parse(Recipe, filled(whole), folder.name)


def whole(recipe: Recipe) -> Summary:
    """A training to its end."""
    summary = stages.train(recipe)
    if not summary.completed:
        raise SystemExit("stopped and saved; give the same command to go on")
    return summary


def trained(folder: Path, cache: Path, tokens: int, seed: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one training."""
    summary = whole(text_recipe(folder, cache, tokens, seed, given))
    return {**summary.validation, "tokens": summary.tokens, "seconds": round(summary.seconds, 1)}


def student(arm: str, teacher: Path, dim: int) -> dict[str, Any]:
    """The sections of a student's recipe."""
    given = dict(ARMS[arm])
    if "layers" in given:
        given |= {"base": str(teacher), "model": {"num_layers": STUDENT_LAYERS}}
    else:
        given["model"] = shape(STUDENT_LAYERS, dim)
    if "objective" in given:
        given["objective"] = {"kind": "distillation", "teacher": str(teacher), **given["objective"]}
    return given


@dataclass(frozen=True)
class Lesson:
    """The teacher of one setting, learnt once, and where what comes of it lies."""

    name: str
    runs: Path
    cache: Path
    tokens: int
    teacher_tokens: int
    dim: int
    results: Results

    @classmethod
    def begin(cls, results: Results, given: argparse.Namespace) -> "Lesson":
        """Prepare the text."""
        asked = (given.tokens, given.teacher_tokens, given.dim)
        name = fingerprint([TEACHER_LAYERS, STUDENT_LAYERS, given.dim, asked[1], asked[0], BATCH_TOKENS])
        demo_text(given.cache)
        return cls(name, given.runs.parent / f"distil-{name}", given.cache, *asked, results)

    @property
    def teacher(self) -> Path:
        """The teacher's run."""
        return self.runs / "teacher"

    def taught(self) -> dict[str, Any]:
        """The teacher's figures."""
        model = {"model": shape(TEACHER_LAYERS, self.dim)}
        return self.results.get(
            f"{self.name} / teacher",
            lambda: trained(self.teacher, self.cache, self.teacher_tokens, 0, model),
        )


def text(results: Results, arguments: argparse.Namespace) -> dict[str, Any]:
    """Teacher and students on text."""
    lesson = Lesson.begin(results, arguments)
    own = lesson.taught()
    losses: dict[str, list[float]] = {arm: [] for arm in arguments.arms}
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            place, given = lesson.runs / f"{arm}-{seed}", student(arm, lesson.teacher, lesson.dim)
            found = results.get(
                f"{lesson.name} / {arm} / {seed}",
                lambda p=place, g=given, s=seed: trained(p, lesson.cache, lesson.tokens, s, g),
            )
            losses[arm].append(found["validation_loss"])
    return {
        "parameters": {
            "teacher": parameters(lesson.teacher),
            "student": parameters(lesson.runs / f"{arguments.arms[0]}-0"),
        },
        "teacher": own,
        "students": {arm: arm_figures(losses, arm, own["validation_loss"]) for arm in arguments.arms},
    }


def regained(results: Results, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a quarter of the layers are worth, and what a twentieth of the teacher's tokens bring back."""
    lesson = Lesson.begin(results, arguments)
    lesson.taught()
    seeds = range(arguments.seeds)
    each = [
        results.get(f"{lesson.name} / regained / {seed}", lambda s=seed: regained_once(lesson, s))
        for seed in seeds
    ]
    taught, scratch = ([one[name] for one in each] for name in ("taught", "scratch"))
    whole, cut = each[0]["whole"], each[0]["cut"]
    back = [(cut - loss) / (cut - whole) for loss in taught]
    return {
        "layers": [TEACHER_LAYERS, kept_layers()],
        "tokens": each[0]["tokens"],
        "losses": {"whole": whole, "cut": cut, "taught": taught, "scratch": scratch},
        "regained": round(fmean(back), 3),
        "by_seed": [round(x, 3) for x in back],
    }


def kept_layers() -> int:
    """Layers of the teacher that stay."""
    return round(TEACHER_LAYERS * (1 - CUT))


def regained_once(lesson: Lesson, seed: int) -> dict[str, Any]:
    """Losses on unseen documents of the whole teacher, without layers, taught again, and from nothing."""
    tokens = round(lesson.teacher_tokens * REGAIN_SHARE)
    steps = [
        {"kind": "depth", "share": CUT},
        {"kind": "distil", "tokens": tokens, "batch_tokens": REGAIN_BATCH_TOKENS},
    ]
    folder, scratch = lesson.runs / f"regained-{seed}", lesson.runs / f"scratch-{seed}"
    chain = {"checkpoint": str(lesson.teacher), "compress": {"steps": steps}}
    recipe = text_recipe(folder, lesson.cache, tokens, seed, chain)
    cut, taught = take(Original.of(recipe), recipe.compress.steps, folder, stages.train)
    small = {"model": shape(kept_layers(), lesson.dim), "train": {"batch_tokens": REGAIN_BATCH_TOKENS}}
    trained(scratch, lesson.cache, tokens, seed, small)
    folders = {"whole": lesson.teacher, "cut": cut.folder, "taught": taught.folder, "scratch": scratch}
    losses = {name: unseen_loss(at, lesson.cache, folder / name) for name, at in folders.items()}
    return {**losses, "tokens": tokens}


def unseen_loss(model: Path, cache: Path, folder: Path) -> float:
    """Cross-entropy per token of a model on documents of the test split."""
    given = {"checkpoint": str(model), "evaluate": {"max_bytes": UNSEEN_BYTES, "baselines": False}}
    return float(stages.evaluate(text_recipe(folder, cache, 1, 0, given))["test"]["loss"])


def parameters(run: Path) -> int:
    """Of the model in a run."""
    return load_model(run)[0].config.num_parameters


def arm_figures(losses: Mapping[str, Sequence[float]], arm: str, teacher: float) -> dict[str, Any]:
    """Mean loss of an arm, and what of the distance from `labels` to the teacher it closes, seed by seed."""
    own, labels = losses[arm], losses["labels"]
    closed = [(label - loss) / (label - teacher) for loss, label in zip(own, labels, strict=True)]
    figures = {"validation_loss": round(fmean(own), 4), "losses": own}
    if arm == "labels":
        return figures
    gains = [label - loss for loss, label in zip(own, labels, strict=True)]
    p = paired_p_value(gains) if len(gains) > 1 else None
    return {
        **figures,
        "closed": round(fmean(closed), 3),
        "by_seed": [round(x, 3) for x in closed],
        "p_paired": p,
    }
