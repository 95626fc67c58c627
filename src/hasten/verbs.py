"""The verbs of the command line: words to a recipe, a stage, and what to show of its result.

A function's docstring is what `hasten VERB --help` prints.  Each verb imports what it needs.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.core.console import say
from hasten.core.errors import ConfigError
from hasten.core.worker import clock_began, die_with_launcher

if TYPE_CHECKING:
    from hasten.launch.options import LaunchConfig
    from hasten.recipe import Recipe
    from hasten.train.run import Summary

Words = Sequence[str]
STARTED = time.monotonic()
"""Close to the start of the process: the clock of a training told how many minutes to take."""


def recipe_of(words: Words, verb: str) -> "Recipe":
    """The recipe named by the first word, with the rest as overrides."""
    if not words or "=" in words[0]:
        raise ConfigError(f"hasten {verb} needs a recipe first: hasten {verb} demo, or hasten {verb} my.yaml")
    from hasten import recipe

    return recipe.read(words[0], list(words[1:]))


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
    files = [Path(word) for word in words[1:] if "=" not in word]
    if len(files) > 2:
        raise ConfigError(
            f"hasten translate takes one input and one output, got {', '.join(map(str, files))}"
        )
    recipe = recipe_of([*words[:1], *(word for word in words[1:] if "=" in word)], "translate")
    from hasten import stages

    source, target = [*files, None, None][:2]
    stages.translate(recipe, source, target)


def chat(words: Words) -> None:
    """hasten chat RECIPE|RUN|MODEL [key=value ...]

    A conversation in the terminal; a model without a chat template goes on with what you write.

    generate.temperature=0.7   generate.max_new_tokens=200
    """
    recipe = recipe_of(words, "chat")
    from hasten import stages

    stages.talk(recipe)


def inspect(words: Words) -> None:
    """hasten inspect RECIPE|RUN|MODEL "TEXT" [key=value ...]

    Runs the model once on your text and shows where each head looks and what the model expected at
    each place, as a page (inspect.html in the output folder), as text, or as JSON.  An encoder fills
    each [MASK]; an encoder-decoder reads source= and has written target=, by default its own.

    format=text   format=json   page=my.html   top=10   layers=[0,5]   mask=each   target='Ein Hund.'
    """
    from hasten.recipe import Recipe
    from hasten.report.inspect.config import from_words

    config, overrides = from_words(words[1:], Recipe.model_fields)
    recipe = recipe_of([*words[:1], *overrides], "inspect")
    from hasten import stages

    say(stages.inspect(recipe, config))


def embed(words: Words) -> None:
    """hasten embed RUN|MODEL [key=value ...]

    Makes a vector of each text, so that near in meaning is near in angle, with an encoder such as
    BERT or a model of sentence-transformers, whose pooling it follows.  Prints the cosine of every
    two texts, and writes the vectors where output= says.

    texts='["A cat.", "Eine Katze."]'   file=texts.txt   output=vectors.npy   pooling=first   truncate=true
    """
    if not words or "=" in words[0]:
        raise ConfigError(
            'hasten embed needs a model first: hasten embed runs/mine texts=\'["a text", "another"]\''
        )
    from hasten.core import config
    from hasten.evaluate.embed import EmbedConfig
    from hasten.evaluate.vectors import embed_texts

    embed_texts(Path(words[0]), config.parse(EmbedConfig, config.override({}, words[1:]), "embed"))


def import_(words: Words) -> None:
    """hasten import FOLDER|FILE.gguf|OWNER/NAME [key=value ...]

    Makes a checkpoint that every verb takes out of a Hugging Face folder (config.json, safetensors,
    tokenizer, chat template, generation settings), a GGUF file, or a model of the hub, and notes in
    origin.json where each byte came from.  Nothing of the folder is run; what hasten cannot hold is
    refused by name.

    output=models/mine   revision=main   pickle=true (weights that exist only as pytorch_model.bin)
    """
    from hasten.exchange.options import ImportConfig, read_options
    from hasten.exchange.run import bring_in

    bring_in(*read_options(ImportConfig, words, "import"))


def export(words: Words) -> None:
    """hasten export RUN|CHECKPOINT|FOLDER to=hf|gguf|peft [key=value ...]

    Writes the model with its tokenizer, chat template and generation settings: to=hf a folder that
    transformers loads with equal logits, to=gguf a file that llama.cpp loads.  An imported model's
    numbers go out in the type they came in.  Of a run with `adapt:` to=peft writes the adapter alone,
    as peft loads it beside base=.

    output=exports/mine   dtype=float32|bfloat16|float16   max_shard_bytes=2000000000   (to=gguf:
    dtype=float32|float16|q8_0|q4_0; a quantised model keeps its integers)
    """
    from hasten.exchange.options import ExportConfig, check_peft, read_options

    name, config = read_options(ExportConfig, words, "export")
    check_peft(config)
    if config.to == "peft":
        from hasten.exchange.adapter import send_adapter

        send_adapter(Path(name).expanduser(), config.output, config.base)
        return
    from hasten.exchange.run import send_out

    send_out(name, config)


def merge(words: Words) -> None:
    """hasten merge RUN|CHECKPOINT|ADAPTER [key=value ...]

    Folds a LoRA adapter, of a run of ours or in PEFT's format, into the weights of its base: a
    checkpoint that every verb takes.  What comes out is compared with base and adapter, and refused
    where they differ by more than bound (nats a token).

    output=models/mine   base=path/to/base (of an adapter in PEFT's format)   bound=0.001
    """
    if not words or "=" in words[0]:
        raise ConfigError("hasten merge needs an adapter first: hasten merge runs/mine output=models/mine")
    from hasten.core import config
    from hasten.exchange.merge import MergeConfig
    from hasten.exchange.merge import merge as fold

    fold(words[0], config.parse(MergeConfig, config.override({}, words[1:]), "hasten merge"))


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


def bench(words: Words) -> None:
    """hasten bench [RECIPE] [key=value ...]

    Measures this machine (matrix peak, memory bandwidth, what others use of it), then trains the
    recipe's model, by default the demo's, with each technique left out in turn: tokens per second,
    peak memory, and time to the same loss, with their spread over repeats.  The ledger goes to
    bench.output as ledger.json and ledger.html.  Leave the machine alone meanwhile.

    bench.minutes=10   bench.repeats=3   bench.techniques=[bf16, kernels, muon]   bench.staircase=true
    """
    named = bool(words) and "=" not in words[0]
    recipe = recipe_of(words if named else ["demo", *words], "bench")
    from hasten.ledger.bench import bench as measure

    say(f"ledger: {measure(recipe)}")


def plan(words: Words) -> None:
    """hasten plan RECIPE hardware=DEVICExN[xNODES] [key=value ...]

    Ranks the ways to spread the recipe's training over devices that need not be at hand: memory,
    step time, tokens per second, days and cost of each that fits, why the others do not, and what
    would help most.  Devices: a100, a100-40, h100, h200, b200, gb200, gb300, l4, a10, 4090.

    hasten plan gpt2 hardware=h100x8x16    train.batch_tokens=4194304   model.preset=llama3-8b
    row_tokens=8192   tokens=1e12   price=2.5   network=eth100   precision=fp8   top=20   format=json
    layout.tensor=8   layout.pipeline=4   schedule=text   schedule=pipeline.svg   ranked=2
    write=FILE.yaml   (the recipe with the layout in its parallel: block)
    """
    from hasten.plan import answer, ask
    from hasten.recipe import Recipe

    named = words if words and not words[0].startswith("-") else []
    if not named or "=" in named[0]:
        recipe_of([], "plan")
    config, overrides = ask.from_words(words[1:], Recipe.model_fields)
    recipe = recipe_of([*words[:1], *overrides], "plan")
    from hasten.overview import known_vocabulary

    model, train = known_vocabulary(recipe), recipe.train
    steps = train.steps * train.batch_tokens if train.steps else None
    question = ask.question_of(
        config,
        model,
        row_tokens=recipe.data.row_tokens if recipe.data else model.max_positions,
        batch_tokens=train.batch_tokens,
        precision="bf16" if train.precision == "fp32" else train.precision,
        optimizer=train.optimizer.kind,
        tokens=train.tokens or steps,
    )
    say(answer.answer(question, config, recipe))


def job(words: Words) -> None:
    """hasten job RECIPE to=slurm|kubernetes|skypilot [key=value ...]

    Writes a job file that trains the recipe on one or several machines: it starts again what dies,
    saves before it is stopped, and goes on from there.  Read it, then give it to sbatch, kubectl or sky.

    hasten job my.yaml to=slurm nodes=4 gpus=8 hours=12 partition=h100
    file=my.sbatch   name=my-run   port=29400   grace_minutes=10   image=... volume=... (Kubernetes)
    gpu=H100 spot=true volume=... (SkyPilot)   parallel.shard=32   train.steps=100000
    """
    recipe_of(words[:1], "job")
    from hasten.launch.job import split_words, write_job
    from hasten.recipe import Recipe

    config, overrides = split_words(words[1:], Recipe.model_fields)
    path = write_job(recipe_of([words[0], *overrides], "job"), words[0], overrides, config)
    starts = {"slurm": "sbatch", "kubernetes": "kubectl apply -f", "skypilot": "sky jobs launch"}
    say(f"{path}: read it, then {starts[config.to]} {path}")


def show(words: Words) -> None:
    """hasten show RECIPE [key=value ...]

    Prints the resolved recipe, the parameters, FLOPs per token and memory, and starts nothing.
    """
    recipe = recipe_of(words, "show")
    from hasten import overview

    say(overview.describe(recipe))


def recipes(words: Words) -> None:
    """hasten recipes

    Lists the recipes that ship: what each is for, on which hardware, how long it takes.
    """
    if words:
        raise ConfigError(f"hasten recipes takes no words, got {' '.join(words)}")
    from hasten import overview

    overview.list_recipes()


def init(words: Words) -> None:
    """hasten init RECIPE [FILE]

    Copies a recipe that ships to FILE (by default RECIPE.yaml here), for you to edit.
    """
    if len(words) not in (1, 2):
        raise ConfigError("hasten init takes a recipe that ships and a file: hasten init demo my.yaml")
    from hasten.recipe import find

    source, target = find(words[0]), Path(words[1] if len(words) == 2 else f"{Path(words[0]).stem}.yaml")
    if target.exists():
        raise ConfigError(f"{target}: is there already; name another file: hasten init {words[0]} my.yaml")
    shutil.copyfile(source, target)
    say(f"{target}: edit it, then hasten journey {target}")


def schema(words: Words) -> None:
    """hasten schema

    Prints the JSON schema of recipes; save it and point your editor's YAML support at it.
    """
    if words:
        raise ConfigError(f"hasten schema takes no words, got {' '.join(words)}")
    from hasten.core.config import schema as schema_of
    from hasten.recipe import Recipe

    say(json.dumps(schema_of(Recipe), indent=2, ensure_ascii=False))
