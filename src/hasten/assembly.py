"""From a recipe to a training that is ready to begin: its data and its model, both checked."""

import shutil
from dataclasses import replace
from math import ceil

from hasten.claim import claim
from hasten.core.errors import ConfigError
from hasten.core.files import fingerprint
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.data.prepare import RECORD, Prepared
from hasten.data.tasks.corpus import TaskCorpus
from hasten.data.tasks.dialogues import SpokenEncoding
from hasten.evaluate.during import scoring
from hasten.evaluate.tasks import Subject
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.distillation import Distillation
from hasten.objective.preference import Preference
from hasten.objective.protocol import Objective as Training
from hasten.parallel.apply import parallelize
from hasten.parallel.arrangement import Arrangement
from hasten.parallel.grid import Grid
from hasten.recipe import Objective, Recipe
from hasten.tokenizer.template import TEMPLATE
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.agree import Agreement
from hasten.train.begin import beginning
from hasten.train.engine import choose_precision
from hasten.train.look import Probe
from hasten.train.reference import reference
from hasten.train.run import Run
from hasten.train.spoken import Spoken
from hasten.train.teacher import Teaching, open_teaching
from hasten.train.teacher_cache import TEACHERS, check_rows, spoken
from hasten.trust import check_data, keep_checks

REFERENCES = "references"
"""The folder beside prepared data with what starting models gave preferred answers."""
SPARE = 1.5
"""Times the rows of all steps: who goes back to a checkpoint reads on behind the data that did harm."""


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
    given = architecture, recipe.base_folder, recipe.adapt, rank
    seed = recipe.train.seed
    start, notes = beginning(*given, half=half, stay=recipe.staying, corpus=corpus, seed=seed)
    teaching = teaching_of(recipe, architecture, tokenizer, corpus, runtime)
    start = start if teaching is None else teaching.beginning(start)
    if isinstance(encoding, SpokenEncoding):  # how a model of conversations is to be asked
        notes[TEMPLATE] = encoding.template
    model, arrangement = parallelize(architecture, seed, grid, precision, start)
    probes = probes_of(
        recipe, Subject(model, tokenizer, prepared, recipe.text, recipe.evaluate), grid, precision
    )
    if runtime.rank == 0:
        claim(recipe)  # once nothing can be refused: a folder that is claimed belongs to this recipe
        if checks is not None:
            keep_checks(recipe.output, checks)
        # The report reads the run's folder alone, so what became of the data is noted there too.
        shutil.copyfile(prepared.folder / RECORD, recipe.output / "data.json")
    for some in (corpus, validation):
        if isinstance(some, TaskCorpus):
            refer(recipe.objective, some, model, arrangement, runtime=runtime, precision=precision)
    objective: Training
    if isinstance(recipe.objective, Distillation):
        assert teaching is not None
        if recipe.objective.cache is not None:
            corpus.beside = heard(
                recipe, teaching, corpus, prepared, grid, runtime=runtime, precision=precision
            )
        objective = teaching.objective(model, precision)
    else:
        objective = recipe.objective
    return Run(
        recipe.output,
        recipe.train,
        model=model,
        arrangement=arrangement,
        objective=objective,
        corpus=corpus,
        validation=validation,
        probes=probes,
        runtime=runtime,
        tokenizer=prepared.tokenizer,
        parent=prepared.folder.name,
        started=started,
        notes=notes,
    )


def probes_of(recipe: Recipe, subject: Subject, grid: Grid, precision: str) -> list[Probe]:
    """What looks at the model beside validation: the score of its task, where that is asked for."""
    if not recipe.evaluate.during_training:
        return []
    spread = [axis for axis, degree in grid.degrees.items() if degree > 1 and axis != "data"]
    if spread:
        raise ConfigError(
            f"evaluate.during_training writes with the whole model, which parallel.{spread[0]} spreads over"
            " processes; leave it out, and train.metric=score"
        )
    if not subject.prepared.splits.get("validation"):
        raise ConfigError(
            "evaluate.during_training scores examples of the validation split, which has none; give"
            " data.split.validation a share, or leave it out"
        )
    subject = replace(subject, base=recipe.base_folder, most=recipe.evaluate.during_training)
    return [scoring(subject, recipe.train.validate_every, bf16=precision != "fp32")]


def teaching_of(
    recipe: Recipe, student: ModelConfig, tokenizer: Tokenizer, corpus: Corpus, runtime: Runtime
) -> Teaching | None:
    """The recipe's teacher for a student of this shape and these rows; None without one."""
    if not isinstance(recipe.objective, Distillation) or recipe.teacher_folder is None:
        return None
    if recipe.objective.cache is not None:
        check_rows(corpus)
    rows = max(recipe.text.row_tokens, recipe.text.source_row_tokens or 0)
    return open_teaching(
        recipe.objective, recipe.teacher_folder, student, tokenizer, row_tokens=rows, device=runtime.device
    )


def heard(
    recipe: Recipe,
    teaching: Teaching,
    corpus: Corpus,
    prepared: Prepared,
    grid: Grid,
    *,
    runtime: Runtime,
    precision: str,
) -> Spoken:
    """What the teacher says of the rows that the training reads, kept beside the prepared data."""
    batch_rows = recipe.train.batch_rows(corpus.row_tokens, grid.replicas)
    steps = recipe.train.num_steps(batch_rows, corpus.num_rows)
    return spoken(
        teaching,
        corpus,
        folder=prepared.folder.parent / TEACHERS,
        data=f"{prepared.folder.name}/train/{corpus.row_tokens}/{corpus.source_tokens}",
        runtime=runtime,
        precision=precision,
        share=(grid.replica, grid.replicas),
        rows=None if steps is None else ceil(SPARE * steps * batch_rows),
    )


def agree(recipe: Recipe, prepared: Prepared, runtime: Runtime) -> None:
    """Refuse processes that do not all train the same."""
    names = {"base", "layers", "model", "adapt", "objective", "train", "parallel"}
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
