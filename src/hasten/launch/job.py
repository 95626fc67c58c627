"""Job files: what Slurm, Kubernetes and SkyPilot need to start a recipe's training on several machines."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from hasten.core.config import Config, override, parse
from hasten.core.errors import ConfigError, did_you_mean
from hasten.core.files import write_text
from hasten.launch.options import LaunchConfig, processes_here
from hasten.recipe import Recipe

System = Literal["slurm", "kubernetes", "skypilot"]
FILES: dict[System, str] = {"slurm": "sbatch", "kubernetes": "yaml", "skypilot": "sky.yaml"}
PLAIN = {"to", "file", "name", "gpu", "partition", "account", "image", "volume", "install"}
"""Keys that are text as it stands: an account may be all digits."""
SHARED = Path("/shared")
"""Where SkyPilot's volume is mounted."""
NAME = r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"
"""What all three systems take; Kubernetes makes host names of it."""


class JobConfig(Config):
    """The keys of `hasten job`."""

    to: System = Field(description="slurm, kubernetes or skypilot")
    file: Path | None = Field(
        None, description="where to; by default NAME.sbatch, NAME.yaml or NAME.sky.yaml"
    )
    name: str | None = Field(None, description="of the job; by default that of the run's folder")
    nodes: PositiveInt = Field(1, description="machines")
    gpus: NonNegativeInt = Field(8, description="of each machine; 0: train on CPUs")
    cpus: PositiveInt | None = Field(None, description="of each machine; by default 8 a GPU, else 8")
    hours: PositiveFloat = Field(
        24.0, description="Slurm: it saves, ends and queues again before they are over"
    )
    grace_minutes: PositiveInt = Field(5, description="for a step and a checkpoint, once it is asked to stop")
    port: Annotated[int, Field(ge=1024, le=64_000)] = Field(29400, description="where machines meet")
    partition: str | None = Field(None, description="Slurm's")
    account: str | None = Field(None, description="Slurm's")
    image: str | None = Field(None, description="Kubernetes: a container image with hasten in it")
    volume: str = Field(
        "hasten", description="Kubernetes' claim, SkyPilot's volume: a file system that all machines share"
    )
    gpu: str = Field("H100", description="SkyPilot's name of the GPU")
    spot: bool = Field(False, description="SkyPilot: machines that may be taken away, for less money")
    install: str = Field(
        "pip install hasten", description="SkyPilot: the command that puts hasten on a machine"
    )
    restarts: NonNegativeInt = Field(3, description="in a row without a new checkpoint, before it gives up")


def split_words(words: Sequence[str], recipe_keys: Iterable[str]) -> tuple[JobConfig, list[str]]:
    """The settings of the job among a command's words, and those of the recipe."""
    known = [*JobConfig.model_fields, *recipe_keys]
    own, others = list[str](), list[str]()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key.split(".")[0] not in known:
            raise ConfigError(
                f"hasten job has no key '{key}'.{did_you_mean(key, known)} Write to=slurm nodes=2"
            )
        if key in JobConfig.model_fields:
            own.append(f"{key}={json.dumps(value)}" if key in PLAIN else word)
        else:
            others.append(word)
    return parse(JobConfig, override({}, own), "hasten job"), others


def write_job(recipe: Recipe, name: str, overrides: Sequence[str], config: JobConfig) -> Path:
    """Write the job file; `name` and `overrides` are what `hasten train` is to be given.

    Raises ConfigError where the recipe's degrees do not fit the machines, or something is missing.
    """
    title = config.name or slug(recipe.output.name)
    check(config, title)
    check_lines([name, *overrides, *(str(getattr(config, key)) for key in PLAIN)])
    processes_here(recipe.parallel, LaunchConfig(nodes=config.nodes, meet="here:1"), config.gpus)
    path = config.file or Path(f"{title}.{FILES[config.to]}")
    if path.exists():
        raise ConfigError(f"{path}: is there already; move it away, or write another file=")
    write_text(path, render(recipe, name, overrides, config, title))
    return path


def check(config: JobConfig, title: str) -> None:
    """Refuse a job that its system would."""
    if not re.fullmatch(NAME, title):
        raise ConfigError(f"name is '{title}'; write lower-case letters, digits and hyphens: name=my-run")
    if config.to == "kubernetes" and config.image is None:
        raise ConfigError(
            "kubernetes starts containers, and image is missing; write image=REGISTRY/NAME:TAG, an image with"
            " hasten in it"
        )
    if config.to == "slurm" and config.hours * 60 <= config.grace_minutes:
        raise ConfigError(
            f"hours is {config.hours}, no more than grace_minutes; write more hours, or less grace"
        )


def check_lines(words: Iterable[str]) -> None:
    """Refuse line breaks, which would end a comment or a command of the job file."""
    for word in words:
        if len(word.splitlines()) > 1:
            raise ConfigError(f"{word.splitlines()[0]}…: holds a line break; put it into the recipe instead")


def render(recipe: Recipe, name: str, overrides: Sequence[str], config: JobConfig, title: str) -> str:
    """The text of the job file."""
    environment = jinja2.Environment(  # what is written is no HTML
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["yaml"] = json.dumps  # JSON is YAML
    template = resources.files("hasten") / "templates" / f"{config.to}.j2"
    words = ["hasten", "train", name, *overrides, *added(recipe, config)]
    values: dict[str, Any] = {
        "title": title,
        "file": config.file or Path(f"{title}.{FILES[config.to]}"),
        "command": shlex.join(words),
        "words": words,
        "limit": clock(config.hours),
        **config.model_dump(exclude={"file", "cpus"}),
        "cpus": config.cpus or 8 * max(config.gpus, 1),
    }
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def added(recipe: Recipe, config: JobConfig) -> list[str]:
    """Overrides that the machines need: the CPU where they have no GPU, a run's folder that all share."""
    words = ["device=cpu"] if config.gpus == 0 and recipe.device == "auto" else []
    if config.to == "skypilot" and not recipe.output.is_absolute():
        words.append(f"output={SHARED / recipe.output}")
    return words


def clock(hours: float) -> str:
    """`clock(25.5)` -> `25:30:00`, as Slurm wants it."""
    minutes = max(1, round(hours * 60))
    return f"{minutes // 60}:{minutes % 60:02}:00"


def slug(text: str) -> str:
    """`slug("My run_2")` -> `my-run-2`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "training"
