"""What verbs are given."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hasten.core.errors import ConfigError

if TYPE_CHECKING:
    from hasten.recipe import Recipe

Words = Sequence[str]


def recipe_of(words: Words, verb: str) -> "Recipe":
    """The recipe named by the first word, with the rest as overrides."""
    if not words or "=" in words[0]:
        raise ConfigError(f"hasten {verb} needs a recipe first: hasten {verb} demo, or hasten {verb} my.yaml")
    from hasten import lookup

    return lookup.read(words[0], list(words[1:]))
