"""From a question to what is printed, and to the schedule's drawing."""

import json
from pathlib import Path

from hasten.core.config import Config, dump
from hasten.core.errors import ConfigError
from hasten.core.files import write_text
from hasten.plan.ask import PlanConfig
from hasten.plan.block import recipe_for
from hasten.plan.drawing import as_svg, timeline
from hasten.plan.search import Choice, Plan, Question, search
from hasten.plan.table import as_data, as_words, schedule_text


def answer(question: Question, config: PlanConfig, recipe: Config | None = None) -> str:
    """The text to print; a drawing, and the `recipe` with the layout in it, go to the files asked for."""
    plan = search(question)
    drawn = schedule(plan, config) if config.schedule else ""
    written = write_recipe(plan, config, recipe) if config.write and recipe else ""
    if config.format == "json":
        return json.dumps(as_data(plan, config.top), indent=2)
    return "\n\n".join(part for part in (as_words(plan, config.top), drawn, written) if part)


def chosen(plan: Plan, config: PlanConfig) -> Choice:
    """The layout that `ranked` names."""
    if config.ranked > len(plan.ranked):
        raise ConfigError(f"ranked is {config.ranked} and {len(plan.ranked)} layouts fit; write less")
    return plan.ranked[config.ranked - 1]


def write_recipe(plan: Plan, config: PlanConfig, recipe: Config) -> str:
    """A word on where the recipe went."""
    path, choice = Path(str(config.write)), chosen(plan, config)
    if path.exists():
        raise ConfigError(f"write: {path} exists; name another file, or move that one away")
    write_text(path, dump(recipe_for(recipe, choice)))
    return f"recipe: {path}, of the layout {choice.layout}"


def schedule(plan: Plan, config: PlanConfig) -> str:
    """The schedule as letters, or a word on where its picture went."""
    choice = chosen(plan, config)
    if config.schedule == "text":
        return f"schedule of {choice.layout}:\n{schedule_text(choice)}"
    if choice.layout.pipeline == 1:
        raise ConfigError(
            f"layout {config.ranked} ({choice.layout}) has no pipeline to draw; write layout.pipeline=4"
        )
    share = choice.time.bubble / choice.time.total
    title = f"{choice.layout}: {choice.time.micro_batches} micro-batches, {share:.1%} of the time idle"
    path = Path(str(config.schedule))
    write_text(path, as_svg(timeline(choice.layout, choice.time.micro_batches), title))
    return f"schedule: {path}"
