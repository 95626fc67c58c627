"""A run's folder is one run's own: refused to another, and moved aside where a new one is to begin."""

import json
from typing import Any

from hasten.core import config
from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.core.files import write_json, write_text
from hasten.core.runtime import environment
from hasten.lookup import load
from hasten.recipe import Recipe

RECIPE = "recipe.yaml"


def claim(recipe: Recipe) -> None:
    """Make the output folder this run's own: refuse one that holds another run."""
    folder, path = recipe.output, recipe.output / RECIPE
    if difference := difference_there(recipe):
        raise ConfigError(
            f"{folder} holds another run ({difference}); write another `output`, or move that folder away"
        )
    if not path.exists() and (folder / "checkpoints").exists():
        raise ConfigError(f"{folder} holds checkpoints without a {RECIPE}; write another `output`")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, config.dump(recipe))
        write_json(folder / "environment.json", environment())
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"output: {folder} cannot be written ({reason}); write another `output`") from None


def difference_there(recipe: Recipe) -> str | None:
    """In what the run in the output folder differs from this one; None where it holds none, or this."""
    path = recipe.output / RECIPE
    if not path.exists():
        return None
    return first_difference(load(path).identity(), recipe.identity())


def first_difference(there: Any, here: Any, at: str = "") -> str | None:
    """The first key in which two recipes differ, as `train.seed: 0 there, 1 here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = (
            first_difference(there.get(key), here.get(key), f"{at}.{key}" if at else str(key))
            for key in sorted({*there, *here})
        )
        return next(filter(None, found), None)
    return None if there == here else f"{at} is {json.dumps(there)} there and {json.dumps(here)} here"


def set_aside(recipe: Recipe, done: bool) -> None:
    """Move a run of other inputs to a numbered name beside it, so that a new one can begin.

    One that was interrupted stays if it is this run, to be gone on with.
    """
    folder = recipe.output
    if not folder.exists() or not (done or difference_there(recipe)):
        return
    number = next(n for n in range(1, 10**6) if not (folder.with_name(f"{folder.name}-{n}")).exists())
    kept = folder.with_name(f"{folder.name}-{number}")
    folder.rename(kept)
    say(f"what training depends on has changed: the earlier run is kept as {kept}")
