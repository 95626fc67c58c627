"""The verbs of a recipe in order; a stage whose inputs are as they were is not run again.

A stage's key is a fingerprint of everything its result depends on: its sections of the recipe, the code that
computes it, and the keys of the stages before it.  `journey.json` in the run's folder keeps the keys of what
is done, so an interrupted journey continues and a changed recipe redoes only what the change reaches.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hasten
from hasten.core.console import clock, say
from hasten.core.files import fingerprint, write_json
from hasten.recipe import Recipe
from hasten.train.run import Summary

JOURNAL = "journey.json"
INPUTS: dict[str, tuple[set[str], tuple[str, ...], tuple[str, ...]]] = {
    # stage: sections of the recipe, folders of code, stages before
    "prepare": ({"data"}, ("core", "tokenizer", "data"), ()),
    "train": (
        {"base", "layers", "model", "adapt", "objective", "train", "device"},
        ("core", "ops", "tokenizer", "model", "data", "adapt", "objective", "parallel", "train"),
        ("prepare",),
    ),
    "evaluate": ({"evaluate", "checkpoint"}, ("core", "ops", "model", "generate", "evaluate"), ("train",)),
    "generate": ({"generate", "checkpoint"}, ("core", "ops", "model", "generate"), ("train",)),
    "compress": (
        {"compress", "checkpoint", "evaluate", "device"},
        ("core", "ops", "model", "train", "generate", "compress", "evaluate", "compression"),
        ("train",),
    ),
}
"""Report is not here: it is drawn anew each time, from whatever the others left."""

Action = Callable[[Recipe], object]


def run(recipe: Recipe, actions: dict[str, Action], clear_the_way: Callable[[Recipe, bool], None]) -> bool:
    """Run the stages of `recipe.journey` that are not done; False where someone stopped the training.

    `clear_the_way(recipe, done)` moves an earlier run of other inputs out of the way of training; `done` says
    that it had ended, and that its inputs have changed.
    """
    done = read_journal(recipe.output)
    keys: dict[str, str] = {}
    for number, stage in enumerate(recipe.journey, start=1):
        title = f"[{number}/{len(recipe.journey)}] {stage}"
        key = keys[stage] = stage_key(stage, recipe, keys)
        if stage in INPUTS and done.get(stage, {}).get("key") == key:
            say(f"{title}: unchanged, kept")
            continue
        if stage == "train":
            clear_the_way(recipe, stage in done)
            done = {name: entry for name, entry in done.items() if name == "prepare"}
        say(title)
        started = time.monotonic()
        result = actions[stage](recipe)
        if isinstance(result, Summary) and not result.completed:
            say(f"{title}: stopped and saved; give the same command to go on")
            return False
        seconds = time.monotonic() - started
        recipe.output.mkdir(parents=True, exist_ok=True)
        done[stage] = {"key": key, "seconds": round(seconds, 1)}
        write_json(recipe.output / JOURNAL, done)
        say(f"{title}: done in {clock(seconds)}")
    return True


def stage_key(stage: str, recipe: Recipe, keys: dict[str, str]) -> str:
    """The fingerprint of what a stage's result depends on."""
    sections, folders, before = INPUTS.get(stage, (set(), (), ()))
    parents = {name: keys[name] for name in before if name in keys}
    values = recipe.model_dump(mode="json", include=sections)
    sources = recipe.input_fingerprint() if stage == "prepare" else None
    return fingerprint([stage, values, code_version(folders), parents, sources])


def code_version(folders: tuple[str, ...]) -> str:
    """A digest of our own source in the given folders."""
    digest = hashlib.sha256(hasten.__version__.encode())
    for folder in folders:
        for path in sorted((Path(hasten.__file__).parent / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read_journal(folder: Path) -> dict[str, Any]:
    """What is done in a run's folder; an unreadable journal counts as nothing done."""
    try:
        journal = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return journal if isinstance(journal, dict) else {}
