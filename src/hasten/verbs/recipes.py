"""Recipes themselves."""

import json
import shutil
from pathlib import Path

from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.verbs.words import Words, recipe_of


def show(words: Words) -> None:
    """hasten show RECIPE [key=value ...]

    Prints the resolved recipe, the parameters, FLOPs per token and memory, and starts nothing.
    """
    recipe = recipe_of(words, "show")
    from hasten import overview

    say(overview.describe(recipe))


def recipes(words: Words) -> None:
    """hasten recipes

    Lists the recipes that ship: what each is for, on which hardware, how long it takes.
    """
    if words:
        raise ConfigError(f"hasten recipes takes no words, got {' '.join(words)}")
    from hasten import overview

    overview.list_recipes()


def init(words: Words) -> None:
    """hasten init RECIPE [FILE]

    Copies a recipe that ships to FILE (by default RECIPE.yaml here), for you to edit.
    """
    if len(words) not in (1, 2):
        raise ConfigError("hasten init takes a recipe that ships and a file: hasten init demo my.yaml")
    from hasten.lookup import find

    source, target = find(words[0]), Path(words[1] if len(words) == 2 else f"{Path(words[0]).stem}.yaml")
    if target.exists():
        raise ConfigError(f"{target}: is there already; name another file: hasten init {words[0]} my.yaml")
    shutil.copyfile(source, target)
    say(f"{target}: edit it, then hasten journey {target}")


def schema(words: Words) -> None:
    """hasten schema

    Prints the JSON schema of recipes; save it and point your editor's YAML support at it.
    """
    if words:
        raise ConfigError(f"hasten schema takes no words, got {' '.join(words)}")
    from hasten.core.config import schema as schema_of
    from hasten.recipe import Recipe

    say(json.dumps(schema_of(Recipe), indent=2, ensure_ascii=False))
