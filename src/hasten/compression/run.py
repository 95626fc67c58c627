"""`hasten compress`: take a chain, or find one for a target, and measure every model of it."""

from collections.abc import Sequence
from typing import Any

from hasten.compression.chain import Link, Train, take, words_of
from hasten.compression.measure import Measures
from hasten.compression.original import Original
from hasten.compression.record import RECORD, Compression, Measured
from hasten.compression.search import search
from hasten.core.runtime import environment
from hasten.recipe import Recipe

FOLDER = "compress"


def compress(recipe: Recipe, train: Train) -> Compression:
    """The models of a recipe's chain below its output, and compression.json beside them.

    Raises `chain.StoppedError` where a training in it was asked to stop: taken again, it goes on from there.
    """
    original = Original.of(recipe)
    assert original.tokenizer  # what cannot be read is refused before anything is made
    folder = recipe.output / FOLDER
    measures = Measures(original)
    target: dict[str, Any] | None = None
    if recipe.compress.target is None:
        links = take(original, recipe.compress.steps, folder, train)
    else:
        links, target = search(original, measures, folder, train)
    models = measured(measures, links)
    record = Compression(
        original=str(original.folder),
        final=models[-1].name,
        folder=models[-1].folder,
        models=tuple(models),
        settings=recipe.compress.measure.model_dump(mode="json"),
        machine=environment(),
        target=target,
    )
    record.write(recipe.output / RECORD)
    return record


def measured(measures: Measures, links: Sequence[Link]) -> list[Measured]:
    """The original, then each model of the chain."""
    found = [measures.of_link(link, words_of(link.steps[-1])) for link in links]
    return [measures.of_original(found), *found]
