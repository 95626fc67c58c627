"""From a recipe to a training that is ready to begin: its data and its model, both checked."""

import shutil
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from hasten.claim import claim
from hasten.core.errors import ConfigError
from hasten.core.files import fingerprint
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.data.prepare import RECORD, Prepared
from hasten.data.tasks.corpus import TaskCorpus
from hasten.data.tasks.dialogues import SpokenEncoding
from hasten.data.tasks.labelled import LabelledConfig, LabelledEncoding
from hasten.data.tasks.protocol import Encoding
from hasten.data.tasks.wording import PROMPT, TEXTS
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
from hasten.recipe import Recipe
from hasten.tokenizer.template import TEMPLATE
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.agree import Agreement
from hasten.train.begin import beginning
from hasten.train.by_text import Texts
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


@dataclass(frozen=True)
class Site:
    """What is trained, and where: the processes as a grid, and the precision of their products."""

    recipe: Recipe
    runtime: Runtime
    grid: Grid
    precision: str


@dataclass(frozen=True)
class Rows:
    """What there is to learn from."""

    prepared: Prepared
    tokenizer: Tokenizer
    encoding: Encoding | None  # of a task
    checks: dict[str, Any] | None  # what became of them, for the report
    corpus: Corpus
    validation: Corpus | None


@dataclass(frozen=True)
class Made:
    """A model with its first weights, and what a checkpoint has to say of it."""

    model: Transformer
    arrangement: Arrangement
    teaching: Teaching | None
    notes: dict[str, str]


def assemble(recipe: Recipe, runtime: Runtime, started: float) -> Run:
    """The parts of a training put together, in a folder of its own."""
    site = site_of(recipe, runtime)
    prepared = recipe.prepared()
    tokenizer = Tokenizer.load(prepared.tokenizer)
    architecture = recipe.architecture(tokenizer, prepared.learnt)
    recipe.check_batch(site.grid.replicas)  # before anything is written
    agree(recipe, prepared, runtime)
    rows = rows_of(site, prepared, tokenizer)
    made = made_of(site, rows, architecture)
    probes = probes_of(site, Subject(made.model, tokenizer, prepared, recipe.text, recipe.evaluate))
    if runtime.rank == 0:
        settle_in(recipe, rows)  # once nothing can be refused
    return Run(
        recipe.output,
        recipe.train,
        model=made.model,
        arrangement=made.arrangement,
        objective=objective_of(site, rows, made),
        corpus=rows.corpus,
        validation=rows.validation,
        probes=probes,
        runtime=runtime,
        tokenizer=prepared.tokenizer,
        parent=prepared.folder.name,
        started=started,
        notes=made.notes,
    )


def site_of(recipe: Recipe, runtime: Runtime) -> Site:
    """Where a recipe trains; ConfigError, before any data is read, where it cannot."""
    recipe.examples()
    grid = Grid.make(runtime, recipe.parallel)
    precision = choose_precision(recipe.train.precision, runtime.device)
    if not isinstance(recipe.objective, CrossEntropy):
        recipe.objective.check_degrees(grid.degrees)
    if recipe.adapt is not None:
        recipe.adapt.check_mesh(grid.degrees, precision)
    return Site(recipe, runtime, grid, precision)


def rows_of(site: Site, prepared: Prepared, tokenizer: Tokenizer) -> Rows:
    """The recipe's rows, those of a task checked: what fails stops here."""
    recipe, held_out = site.recipe, prepared.splits.get("validation")
    checks, encoding = None, recipe.encoding(tokenizer, prepared.learnt)
    if encoding is not None:
        checks = check_data(recipe.text, prepared, tokenizer, encoding, aloud=site.runtime.rank == 0)
    corpus = recipe.corpus(prepared, "train", tokenizer)
    validation = recipe.corpus(prepared, "validation", tokenizer) if held_out else None
    return Rows(prepared, tokenizer, encoding, checks, corpus, validation)


def made_of(site: Site, rows: Rows, architecture: ModelConfig) -> Made:
    """The model with the weights that it begins with, as far as they are kept in this process."""
    recipe, seed = site.recipe, site.recipe.train.seed
    given = architecture, recipe.base_folder, recipe.adapt, recipe.rank_for(rows.corpus)
    # FSDP wants parameters of one type, and casts what it gathers.
    half = site.precision != "fp32" and site.grid.degrees["shard"] == 1
    words = rows.encoding.words if isinstance(rows.encoding, LabelledEncoding) else None
    start, notes = beginning(
        *given, half=half, stay=recipe.staying, corpus=rows.corpus, words=words, seed=seed
    )
    teaching = teaching_of(site, rows, architecture)
    start = start if teaching is None else teaching.beginning(start)
    notes = {**notes, **manner_of_asking(rows.encoding)}
    return Made(*parallelize(architecture, seed, site.grid, site.precision, start), teaching, notes)


def manner_of_asking(encoding: Encoding | None) -> dict[str, str]:
    """How the model is to be asked once it is trained, for its checkpoints: a template, or a prompt."""
    if isinstance(encoding, SpokenEncoding):
        return {TEMPLATE: encoding.template}
    if isinstance(encoding, LabelledEncoding) and encoding.wording is not None:
        return {PROMPT: encoding.wording.written(TEXTS[: len(encoding.before)])}
    return {}


def settle_in(recipe: Recipe, rows: Rows) -> None:
    """Make the run's folder this recipe's own, with what became of the data: the report reads it alone."""
    claim(recipe)
    if rows.checks is not None:
        keep_checks(recipe.output, rows.checks)
    shutil.copyfile(rows.prepared.folder / RECORD, recipe.output / "data.json")


def objective_of(site: Site, rows: Rows, made: Made) -> Training:
    """What is minimised, with what frozen models say of the rows."""
    objective = site.recipe.objective
    if isinstance(objective, Distillation):
        assert made.teaching is not None
        if objective.cache is not None:
            rows.corpus.beside = heard(site, rows, made.teaching)
        return made.teaching.objective(made.model, site.precision)
    if isinstance(objective, Preference) and objective.needs_reference:
        for some in (rows.corpus, rows.validation):
            if isinstance(some, TaskCorpus):
                refer(site, objective, some, made)
    return objective


def probes_of(site: Site, subject: Subject) -> list[Probe]:
    """What looks at the model beside validation: the score of its task, where that is asked for."""
    recipe = site.recipe
    if not recipe.evaluate.during_training:
        return []
    spread = [axis for axis, degree in site.grid.degrees.items() if degree > 1 and axis != "data"]
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
    return [scoring(subject, recipe.train.validate_every, bf16=site.precision != "fp32")]


def teaching_of(site: Site, rows: Rows, student: ModelConfig) -> Teaching | None:
    """The recipe's teacher for a student of this shape and these rows; None without one."""
    recipe = site.recipe
    if not isinstance(recipe.objective, Distillation) or recipe.teacher_folder is None:
        return None
    if recipe.objective.cache is not None:
        check_rows(rows.corpus)
    longest = max(recipe.text.row_tokens, recipe.text.source_row_tokens or 0)
    given = recipe.objective, recipe.teacher_folder, student, rows.tokenizer
    task = recipe.text.task
    texts = Texts(task, rows.prepared) if isinstance(task, LabelledConfig) else None
    return open_teaching(*given, row_tokens=longest, device=site.runtime.device, texts=texts)


def heard(site: Site, rows: Rows, teaching: Teaching) -> Spoken:
    """What the teacher says of the rows that the training reads, kept beside the prepared data."""
    corpus, grid, train, folder = rows.corpus, site.grid, site.recipe.train, rows.prepared.folder
    batch_rows = train.batch_rows(corpus.row_tokens, grid.replicas)
    steps = train.num_steps(batch_rows, corpus.num_rows)
    return spoken(
        teaching,
        corpus,
        folder=folder.parent / TEACHERS,
        data=f"{folder.name}/train/{corpus.row_tokens}/{corpus.source_tokens}",
        runtime=site.runtime,
        precision=site.precision,
        share=(grid.replica, grid.replicas),
        rows=None if steps is None else ceil(SPARE * steps * batch_rows),
    )


def agree(recipe: Recipe, prepared: Prepared, runtime: Runtime) -> None:
    """Refuse processes that do not all train the same."""
    names = {"base", "layers", "model", "adapt", "objective", "train", "parallel"}
    settings = recipe.model_dump(mode="json", include=names)
    Agreement(runtime).same(fingerprint([settings, prepared.folder.name]), "the recipe, or its data,")


def refer(site: Site, objective: Preference, corpus: TaskCorpus, made: Made) -> None:
    """Let each pair come with what the model gives its answers before the first step."""
    grid, folder = site.grid, corpus.prepared
    figures = reference(
        made.model,
        objective,
        corpus.numbered(1, rank=grid.replica, world_size=grid.replicas),
        corpus.num_examples,
        runtime=site.runtime,
        arrangement=made.arrangement,
        folder=folder.parent / REFERENCES,
        data=f"{folder.name}/{corpus.split}/{corpus.row_tokens}",
        precision=site.precision,
    )
    corpus.refer(figures)
