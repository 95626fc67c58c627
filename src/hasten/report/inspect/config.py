"""What to look at and how to show it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hasten.core.config import Config, override, parse
from hasten.core.errors import ConfigError, did_you_mean

TEXTS = ("text", "source", "target")
KEY = re.compile(r"[A-Za-z_][\w.]*")
Layer = Annotated[int, Field(ge=0)]


class InspectConfig(Config):
    """The keys of `hasten inspect`."""

    text: str | None = Field(None, description="what the model reads")
    source: str | None = Field(None, description="encoder-decoders: another name for `text`")
    target: str | None = Field(
        None,
        description="what an encoder-decoder is shown to have written; null: it writes its likeliest text",
    )
    format: Literal["html", "text", "json"] = "html"
    page: Path | None = Field(
        None, description="where the page goes; null: inspect.html in the output folder"
    )
    mask: Literal["given", "each"] = Field(
        "given",
        description="encoders: candidates for each [MASK] in the text, or for every token, masked in turn",
    )
    top: int = Field(5, ge=1, le=20, description="candidates for each token")
    layers: tuple[Layer, ...] | None = Field(None, description="numbers from 0; null: all")


def from_words(words: Sequence[str], recipe_keys: Iterable[str]) -> tuple[InspectConfig, list[str]]:
    """The settings in the words of a command, and those words that are for the recipe.

    A word that is no `key=value` is the text.  Texts are taken as they are, all other values are YAML.
    Raises ConfigError for a key that nobody knows, and where there is no text or more than one.
    """
    texts: dict[str, Any] = {}
    settings, others, known = list[str](), list[str](), [*InspectConfig.model_fields, *recipe_keys]
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not KEY.fullmatch(key):
            key, value = "text", word
        elif key.split(".")[0] not in known:
            near = did_you_mean(key, known)
            raise ConfigError(
                f"hasten inspect has no key '{key}'.{near} If this is the text, write text='{word}'"
            )
        if key in TEXTS:
            if key in texts:
                raise ConfigError(
                    f"there are two texts, {texts[key]!r} and {value!r}; put quotes around one text"
                )
            texts[key] = value
        else:
            (settings if key in InspectConfig.model_fields else others).append(word)
    if "text" not in texts and "source" not in texts:
        raise ConfigError('hasten inspect needs a text: hasten inspect MODEL "Once upon a time"')
    return parse(InspectConfig, {**override({}, settings), **texts}, "hasten inspect"), others
