"""The recipe that a name means: a YAML file, a run's folder, a model's folder, or one that ships."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from hasten.core import config
from hasten.core.errors import ConfigError, did_you_mean
from hasten.defaults import filled
from hasten.recipe import Recipe


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
    return load(find(name), overrides)


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with overrides on top and what follows from it filled in."""
    return config.parse(Recipe, filled(config.override(config.read(path), overrides)), str(path))


def is_model(folder: Path) -> bool:
    """Whether a folder is a checkpoint of ours, in the Hugging Face layout, or an adapter of PEFT's."""
    return any((folder / name).is_file() for name in ("model.yaml", "config.json", "adapter_config.json"))
