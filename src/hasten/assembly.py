"""From a recipe to a training that is ready to begin: its data and its model, both checked."""

import shutil

from hasten.claim import claim
from hasten.core.files import fingerprint
from hasten.core.runtime import Runtime
from hasten.data.prepare import RECORD, Prepared
from hasten.data.tasks.corpus import TaskCorpus
from hasten.data.tasks.dialogues import SpokenEncoding
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.preference import Preference
from hasten.parallel.apply import parallelize
from hasten.parallel.arrangement import Arrangement
from hasten.parallel.grid import Grid
from hasten.recipe import Objective, Recipe
from hasten.tokenizer.template import TEMPLATE
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.agree import Agreement
from hasten.train.begin import beginning
from hasten.train.engine import choose_precision
from hasten.train.reference import reference
from hasten.train.run import Run
from hasten.trust import check_data, keep_checks

REFERENCES = "references"
"""The folder beside prepared data with what starting models gave preferred answers."""


def assemble(recipe: Recipe, runtime: Runtime, started: float) -> Run:
    """The parts of a training put together, in a folder of its own."""
    recipe.examples()  # before any data is read
    grid = Grid.make(runtime, recipe.parallel)
    if not isinstance(recipe.objective, CrossEntropy):
        recipe.objective.check_degrees(grid.degrees)
    prepared = recipe.prepared()
    tokenizer = Tokenizer.load(prepared.tokenizer)
    architecture = recipe.architecture(tokenizer, prepared.learnt)
    recipe.check_batch(grid.replicas)  # before anything is written
    agree(recipe, prepared, runtime)
    checks, encoding = None, recipe.encoding(tokenizer, prepared.learnt)
    if encoding is not None:
        checks = check_data(recipe.text, prepared, tokenizer, encoding, aloud=runtime.rank == 0)
    precision = choose_precision(recipe.train.precision, runtime.device)
    corpus = recipe.corpus(prepared, "train", tokenizer)
    held_out = prepared.splits.get("validation")
    validation = recipe.corpus(prepared, "validation", tokenizer) if held_out else None
    rank = recipe.rank_for(corpus)
    if recipe.adapt is not None:
        recipe.adapt.check_mesh(grid.degrees, precision)
    # FSDP wants parameters of one type, and casts what it gathers.
    half = precision != "fp32" and grid.degrees["shard"] == 1
    start, notes = beginning(architecture, recipe.base_folder, recipe.adapt, rank, half=half)
    if isinstance(encoding, SpokenEncoding):  # how a model of conversations is to be asked
        notes[TEMPLATE] = encoding.template
    model, arrangement = parallelize(architecture, recipe.train.seed, grid, precision, start)
    if runtime.rank == 0:
        claim(recipe)  # once nothing can be refused: a folder that is claimed belongs to this recipe
        if checks is not None:
            keep_checks(recipe.output, checks)
        # The report reads the run's folder alone, so what became of the data is noted there too.
        shutil.copyfile(prepared.folder / RECORD, recipe.output / "data.json")
    for some in (corpus, validation):
        if isinstance(some, TaskCorpus):
            refer(recipe.objective, some, model, arrangement, runtime=runtime, precision=precision)
    return Run(
        recipe.output,
        recipe.train,
        model=model,
        arrangement=arrangement,
        objective=recipe.objective,
        corpus=corpus,
        validation=validation,
        runtime=runtime,
        tokenizer=prepared.tokenizer,
        parent=prepared.folder.name,
        started=started,
        notes=notes,
    )


def agree(recipe: Recipe, prepared: Prepared, runtime: Runtime) -> None:
    """Refuse processes that do not all train the same."""
    names = {"base", "model", "adapt", "objective", "train", "parallel"}
    settings = recipe.model_dump(mode="json", include=names)
    Agreement(runtime).same(fingerprint([settings, prepared.folder.name]), "the recipe, or its data,")


def refer(
    objective: Objective,
    corpus: TaskCorpus,
    model: Transformer,
    arrangement: Arrangement,
    *,
    runtime: Runtime,
    precision: str,
) -> None:
    """Let each pair come with what the model gives its answers before the first step, where that is asked."""
    grid, folder = arrangement.grid, corpus.prepared.parent
    if not isinstance(objective, Preference) or not objective.needs_reference:
        return
    figures = reference(
        model,
        objective,
        corpus.numbered(1, rank=grid.replica, world_size=grid.replicas),
        corpus.num_examples,
        runtime=runtime,
        arrangement=arrangement,
        folder=folder / REFERENCES,
        data=f"{corpus.prepared.name}/{corpus.split}/{corpus.row_tokens}",
        precision=precision,
    )
    corpus.refer(figures)
