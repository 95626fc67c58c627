"""The stages of a recipe, alone or in turn."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.core.worker import clock_began, die_with_launcher
from hasten.verbs.words import Words, recipe_of

if TYPE_CHECKING:
    from hasten.launch.options import LaunchConfig
    from hasten.recipe import Recipe
    from hasten.train.run import Summary

STARTED = time.monotonic()
"""Close to the start of the process: the clock of a training told how many minutes to take."""


def journey(words: Words) -> None:
    """hasten journey RECIPE [key=value ...]

    Runs the recipe's stages in order: prepare, train, evaluate, generate, report.
    Run again, a stage whose inputs are unchanged is kept; where training's inputs changed it
    begins anew, and the earlier run stays beside it under a numbered name.

    hasten journey demo                           the standard library's source, eight minutes on two cores
    hasten journey demo data.sources=[my/texts]   the same on your own files
    """
    from hasten.launch.options import split_words

    options, words = split_words(words)
    recipe = recipe_of(words, "journey")
    from hasten import journey as journeys
    from hasten import stages
    from hasten.claim import set_aside
    from hasten.report.summary import show, show_samples

    def learn(recipe: "Recipe") -> "Summary | None":
        return train_somehow(recipe, words, options, time.monotonic())

    if not journeys.run(recipe, {**stages.ACTIONS, "train": learn}, set_aside):
        return
    if "train" in recipe.journey:
        show(recipe.output)
        say()
        show_samples(recipe.output)
    if "report" in recipe.journey:
        say(f"report: {recipe.output / 'report.html'}")


def prepare(words: Words) -> None:
    """hasten prepare RECIPE [key=value ...]

    Reads data.sources, cleans, splits, trains the tokenizer and writes token shards below
    data.cache, in a folder named after what went in: run again, nothing is done twice.
    What each cleaning rule dropped is printed and kept.

    data.sources=[my/texts]   data.tokenizer.vocab_size=8192   data.clean.near_duplicates=null
    """
    recipe = recipe_of(words, "prepare")
    from hasten import stages

    stages.prepare(recipe)


def train(words: Words) -> int:
    """hasten train RECIPE [key=value ...]

    Trains into the recipe's `output` folder.  Run again, it resumes from the newest checkpoint,
    bit for bit; SIGTERM and Ctrl-C save first.  Give exactly one of train.steps, train.tokens,
    train.epochs and train.minutes.

    train.minutes=10   train.batch_tokens=32768   model.preset=hasten-small   output=runs/mine

    Several GPUs of this machine are all used; `parallel:` says how, and on CPUs how many processes.
    Should one die or hang, all start again from the last checkpoint.  Under torchrun it joins in.
    Several machines: the same command on each, with the address of one of them.

    parallel.shard=8   parallel.tensor=2   restarts=10   nodes=2 meet=10.0.0.1:29400
    """
    from hasten.launch.options import split_words

    options, words = split_words(words)
    summary = train_somehow(recipe_of(words, "train"), words, options, clock_began(STARTED))
    return options.stopped if summary and not summary.completed else 0


def train_somehow(
    recipe: "Recipe", words: Words, options: "LaunchConfig", started: float
) -> "Summary | None":
    """Train here, alone or as one of several, or by starting several; `words` are those of `hasten train`."""
    from hasten import stages
    from hasten.core.runtime import in_contact
    from hasten.launch import start

    number = start.number_of_processes(recipe, options)
    if number > 1 or options.nodes > 1:
        return start.train(recipe, words, options, number, started)
    die_with_launcher()
    with in_contact():
        return stages.train(recipe, started)


def evaluate(words: Words) -> None:
    """hasten evaluate RECIPE|RUN [key=value ...]

    Scores the run's best checkpoint on the held-out test documents: loss, bits per byte and
    next-token accuracy, beside what LZMA reaches on the same text.  checkpoint=FOLDER scores
    another model.

    evaluate.context=1024   evaluate.stride=256   evaluate.split=validation
    """
    recipe = recipe_of(words, "evaluate")
    from hasten import stages
    from hasten.report.summary import show

    scores = stages.evaluate(recipe)
    if (recipe.output / "metrics.jsonl").is_file():
        show(recipe.output)
        return
    figures = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    say("\n".join(f"{name:<24}{value:,.6g}" for name, value in figures.items()))  # of a model from elsewhere


def generate(words: Words) -> None:
    """hasten generate RECIPE|RUN|MODEL [key=value ...]

    Continues prompts with the run's best checkpoint, or with the model in a checkpoint's or a
    Hugging Face folder.  A single text streams to the terminal; all are kept in samples.json.

    generate.prompts='["def main("]'   generate.temperature=0.7   generate.top_p=0.9   generate.seed=1
    """
    recipe = recipe_of(words, "generate")
    from hasten import stages

    stages.show_completions(recipe)


def translate(words: Words) -> None:
    """hasten translate RECIPE|RUN|MODEL [INPUT [OUTPUT]] [key=value ...]

    Translates line by line with a model that reads a source: from a file or standard input to a
    file or standard output.  Line n of the output belongs to line n of the input.

    hasten translate runs/translate-en-de talk.en talk.de
    echo "A dog runs." | hasten translate runs/translate-en-de generate.beams=8
    """
    recipe, source, target = with_files(words, "translate")
    from hasten import lines

    lines.translate(recipe, source, target)


def classify(words: Words) -> None:
    """hasten classify RECIPE|RUN|MODEL [INPUT [OUTPUT]] [key=value ...]

    Tells the class of each text with a classifier: of the lines of a text file or of standard input,
    or of the rows of a .jsonl, .csv, .tsv or .parquet file, by the columns that data.task names.  A
    .jsonl output has each row with predicted, probability and the probabilities of all classes; a
    .tsv, and standard output, class, probability and text.

    hasten classify runs/classify reviews.csv said.jsonl
    echo "A joy from start to end." | hasten classify runs/classify
    """
    recipe, source, target = with_files(words, "classify")
    from hasten import lines

    lines.classify(recipe, source, target)


def answer(words: Words) -> None:
    """hasten answer RECIPE|RUN|MODEL INPUT [OUTPUT] [key=value ...]

    Finds the answer to each question in a text, with a model that was trained to (data.task.kind: spans).
    INPUT is a .jsonl, .csv, .tsv or .parquet file with a question and its context in each row, or a text
    file, about which standard input asks, a question a line.  A .jsonl output has each row with predicted,
    start and above_none; a .tsv, and standard output, answer, how far it is above no answer, and question.

    hasten answer runs/answers questions.jsonl said.jsonl
    hasten answer runs/answers handbook.txt
    """
    recipe, source, target = with_files(words, "answer")
    from hasten import lines

    lines.answer(recipe, source, target)


def with_files(words: Words, verb: str) -> "tuple[Recipe, Path | None, Path | None]":
    """The recipe, an input and an output among the words."""
    files = [Path(word) for word in words[1:] if "=" not in word]
    if len(files) > 2:
        raise ConfigError(f"hasten {verb} takes one input and one output, got {', '.join(map(str, files))}")
    recipe = recipe_of([*words[:1], *(word for word in words[1:] if "=" in word)], verb)
    source, target = [*files, None, None][:2]
    return recipe, source, target


def chat(words: Words) -> None:
    """hasten chat RECIPE|RUN|MODEL [key=value ...]

    A conversation in the terminal; a model without a chat template goes on with what you write.

    generate.temperature=0.7   generate.max_new_tokens=200
    """
    recipe = recipe_of(words, "chat")
    from hasten import stages

    stages.talk(recipe)


def compress(words: Words) -> int:
    """hasten compress RECIPE|RUN|MODEL [--target WHAT] [key=value ...]

    Takes the chain of compress.steps from the recipe's model to a smaller one (depth, width, sparsify,
    low_rank, distil, quantize), each step from files to files below OUTPUT/compress: run again, it goes
    on behind what is done.  Every model is measured beside the original: bytes, peak memory, speed on
    this machine, quality and agreement on held-out text, with 95% intervals.  A target finds the steps.

    --target size=20MB   --target size=25%   --target speed=2x   --target quality=99%
    compress.steps='[{kind: depth, share: 0.25}, {kind: distil, minutes: 5}, {kind: quantize}]'
    compress.model=path/to/model   data.sources=[my/texts]   compress.recover='{minutes: 5}'
    """
    recipe = recipe_of(with_target(words), "compress")
    from hasten import stages
    from hasten.train.run import Summary

    result = stages.compress(recipe)
    if isinstance(result, Summary):
        say("compress: stopped and saved; give the same command to go on")
        return 1
    say(f"report: {stages.report(recipe)}")
    return 0


def with_target(words: Words) -> list[str]:
    """The words with `--target size=25%`, or `--target=size=25%`, as an override."""
    found = list(words)
    for place, word in enumerate(found):
        flag, _, value = word.partition("=")
        if flag != "--target":
            continue
        if not value and place + 1 == len(found):
            raise ConfigError("--target needs a word behind it: size=20MB, size=25%, speed=2x or quality=99%")
        return [
            *found[:place],
            f"compress.target={json.dumps(value or found[place + 1])}",
            *found[place + 1 + (not value) :],
        ]
    return found


def report(words: Words) -> None:
    """hasten report RUN [RUN ...] [key=value ...]

    Draws report.html from the files of a run; of several runs, one page that compares them, in
    the first one's folder.

    report.lang=zh   output=runs/first
    """
    folders = [Path(word) for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    recipe = recipe_of([*map(str, folders[:1]), *overrides], "report")
    from hasten import stages

    say(f"report: {stages.report(recipe, folders[1:])}")
