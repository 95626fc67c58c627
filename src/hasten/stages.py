"""The stages of a recipe, each from files to files: what the verbs and the journey run."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hasten.assembly import assemble
from hasten.compression.chain import StoppedError
from hasten.compression.record import Compression
from hasten.compression.run import compress as take_chain
from hasten.compression.table import show as show_compression
from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.core.files import write_json, write_text
from hasten.core.runtime import choose_device, start
from hasten.data.prepare import Prepared
from hasten.evaluate.run import evaluate as score
from hasten.evaluate.run import evaluate_masked as score_masked
from hasten.evaluate.run import evaluate_pairs as score_pairs
from hasten.evaluate.tasks import Subject, evaluate_task
from hasten.generate.completion import Completion
from hasten.generate.engine import OnText
from hasten.generate.engine import generate as continue_prompts
from hasten.model.transformer import Decoder, Seq2Seq
from hasten.objective.preference import Preference
from hasten.plan.here import predict
from hasten.recipe import Recipe
from hasten.report.inspect.config import InspectConfig
from hasten.report.inspect.look import look
from hasten.report.inspect.page import render
from hasten.report.inspect.text import as_json, as_text
from hasten.report.page import write_page
from hasten.report.summary import write_summary
from hasten.serve.chat import chat
from hasten.tokenizer.template import find_template
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.load import load_model
from hasten.train.memory import resident_memory
from hasten.train.restore import checkpoint_in
from hasten.train.run import Summary
from hasten.train.times import time_table

EVALUATION = "evaluation.json"
WORTH_MEASURING_SECONDS = 900.0
"""From which length a run measures the machine's kernels, where nobody has, to predict its steps."""


def prepare(recipe: Recipe) -> Prepared:
    """Text to token shards in `data.cache`."""
    return recipe.prepared()


def train(recipe: Recipe, started: float | None = None) -> Summary:
    """Begin or go on with the training in the recipe's folder; `started` is when its clock began."""
    runtime = start(recipe.device, recipe.parallel.timeout)
    held_before = resident_memory(runtime.device)
    started = time.monotonic() if started is None else started
    run = assemble(recipe, runtime, started)
    summary = run.fit()
    # Afterwards, for measuring the machine takes memory; and once, some seconds, which a short run does not.
    measure = summary.completed and run.plan.is_long(WORTH_MEASURING_SECONDS)  # who asks to stop is in haste
    expected = predict(run.plan.work, runtime, base_bytes=held_before, measure=measure)
    predicted = {"step_seconds": expected.step_seconds, "peak_memory": expected.peak_bytes}
    summary = replace(summary, predicted=predicted)
    if run.leads:
        write_json(recipe.output / "training.json", asdict(summary))
        how = "trained" if summary.completed else "stopped and saved; run it again to go on:"
        what = f"{summary.steps:,} steps, {summary.tokens:,} tokens, {summary.seconds:,.0f} s"
        say(f"{how} {what}: {recipe.output}")
        say(time_table(summary.times))
        say(beside_prediction(summary))
    return summary


def beside_prediction(summary: Summary) -> str:
    """What a step took and what memory was held, beside what was expected of this machine."""
    step, memory = summary.predicted["step_seconds"], summary.predicted["peak_memory"]
    told = "not measured for it; a long run measures" if step is None else f"{step:,.3f} s predicted"
    return (
        f"a step took {summary.step_seconds:,.3f} s ({told}), peak memory was"
        f" {summary.peak_memory / 1e9:,.2f} GB ({(memory or 0) / 1e9:,.2f} GB predicted)"
    )


def evaluate(recipe: Recipe) -> dict[str, Any]:
    """Score the model on held-out text; the figures go to evaluation.json."""
    model, tokenizer, folder = loaded(recipe)
    recipe.output.mkdir(parents=True, exist_ok=True)
    prepared, config = recipe.prepared(), recipe.evaluate
    record: dict[str, Any] = {"path": recipe.output / EVALUATION, "checkpoint": str(folder)}
    if recipe.text.task is not None:
        objective = recipe.objective if isinstance(recipe.objective, Preference) else None
        place = recipe.text, config, recipe.base_folder, objective
        return evaluate_task(Subject(model, tokenizer, prepared, *place), **record)
    if model.config.kind == "encoder":
        return score_masked(model, tokenizer, prepared, recipe.text, config, **record)
    if isinstance(model, Seq2Seq):
        return score_pairs(model, tokenizer, prepared, config, **record)
    begun = load_model(recipe.base_folder, choose_device(recipe.device))[0] if recipe.base_folder else None
    base = begun if isinstance(begun, Decoder) else None
    return score(model, tokenizer, list(prepared.texts(config.split)), config, base=base, **record)


def generate(recipe: Recipe, on_text: OnText | None = None) -> list[Completion]:
    """Continue the recipe's prompts; the texts go to samples.json."""
    model, tokenizer, folder = loaded(recipe)
    prompts = recipe.generate.all_prompts()
    if not prompts:
        raise ConfigError("generate.prompts is empty; write generate.prompts='[\"Once upon a time\"]'")
    if on_text is not None and isinstance(model, Seq2Seq):
        on_text(0, "\n")  # a translation begins on a line of its own
    draft = draft_for(recipe, tokenizer)
    completions = continue_prompts(model, tokenizer, prompts, recipe.generate, on_text, draft=draft)
    recipe.output.mkdir(parents=True, exist_ok=True)
    samples = [{**asdict(completion), "checkpoint": str(folder)} for completion in completions]
    write_json(recipe.output / "samples.json", samples)
    return completions


def draft_for(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    """The model that guesses ahead, None where the recipe names none."""
    folder = recipe.generate.draft
    if folder is None:
        return None
    draft, theirs = load_model(folder, choose_device(recipe.device))
    if theirs is not None and not theirs.spells_like(tokenizer):
        raise ConfigError(
            f"generate.draft: {folder} has another vocabulary than the model, so it cannot guess its tokens;"
            " distil one from the model (recipe distil), or leave it out"
        )
    return draft


def show_completions(recipe: Recipe) -> None:
    """`generate` for a person: a single text appears as it grows, several one after the other."""
    single = len(recipe.generate.all_prompts()) * recipe.generate.samples_per_prompt == 1
    if single:
        print(recipe.generate.all_prompts()[0], end="", flush=True)
    completions = generate(recipe, show_piece if single else None)
    if single:
        print()
    for completion in completions:
        if not single:
            between = "\n" if completion.from_source else ""
            say(f"{completion.prompt}{between}{completion.text}\n{'─' * 40}")
        if remark := completion.remark:
            say(f"({remark})")


def show_piece(_index: int, piece: str) -> None:
    """Show a piece of the text at once."""
    print(piece, end="", flush=True)


def talk(recipe: Recipe) -> None:
    """A conversation in the terminal."""
    model, tokenizer, folder = loaded(recipe)
    template, draft = find_template(folder), draft_for(recipe, tokenizer)
    chat(model, tokenizer, recipe.generate, template, draft=draft)


def loaded(recipe: Recipe) -> tuple[Any, Tokenizer, Path]:
    """The model that evaluate, generate and chat work with, its tokenizer, and the folder that holds them.

    Any of the assemblies: each verb says which it takes.
    """
    folder = checkpoint_in(recipe.source)
    model, tokenizer = load_model(folder, choose_device(recipe.device))
    if tokenizer is None:
        raise ConfigError(f"{folder}: has no tokenizer.json; put the model's own beside its weights")
    return model, tokenizer, folder


def inspect(recipe: Recipe, config: InspectConfig) -> str:
    """Look at the attention in a text: the numbers as text or JSON, or where the page is."""
    model, tokenizer, _ = loaded(recipe)
    seen, name = look(model, tokenizer, config), recipe.source.resolve().name
    if config.format == "text":
        return as_text(seen, name)
    if config.format == "json":
        return json.dumps(as_json(seen, name), ensure_ascii=False)
    page = config.page or recipe.output / "inspect.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, render(seen, name, model.config.num_parameters, recipe.report.lang))
    return f"attention: {page}"


def compress(recipe: Recipe) -> Compression | Summary:
    """Take the recipe's chain from a model to a smaller one; a summary where a training in it was stopped."""
    try:
        record = take_chain(recipe, train)
    except StoppedError as stopped:
        return stopped.summary
    show_compression(record)
    return record


def report(recipe: Recipe, others: Sequence[Path] = ()) -> Path:
    """Draw report.html, of several runs a comparison, and write summary.json from the run's files."""
    page = write_page([recipe.output, *others], recipe.output / "report.html", recipe.report)
    write_summary(recipe.output, page)
    return page


ACTIONS: dict[str, Callable[[Recipe], object]] = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "compress": compress,
    "report": report,
}
