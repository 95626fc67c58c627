"""Machines: what this one gives, what others would, and how to start there."""

from hasten.core.console import say
from hasten.verbs.words import Words, recipe_of


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
