"""Learn a task by its shipped recipe, and measure it on unseen rows: one JSON object.

    python bench/tasks.py sst2 --data ../shared/data --models runs/models --save bench/results/tasks
    python bench/tasks.py sst2-lora --set train.epochs=2
    python bench/tasks.py trec --run runs/classify-questions         what a journey has left
    python bench/tasks.py --list

`--data` is the folder that the recipes' paths begin in, `--models` holds the models that they begin with,
fetched by `make models`.  A fresh process runs the journey.  The object holds the score with what was counted
(its signature, its interval, its baseline), what was asked of it, seconds of each stage, peak memory of
training, the recipe with what was set, the environment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.core.files import write_json
from hasten.core.runtime import environment

Record = dict[str, Any]
MINILM, SMOLLM = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
LORA = ("adapt={kind: lora}",)


@dataclass(frozen=True)
class Task:
    """A recipe, the model that it begins with, and where its figure is."""

    recipe: str
    score: Callable[[Record], Record]
    base: str | None = None
    asked: float | None = None
    settings: tuple[str, ...] = ()
    teacher: str | None = None  # the task whose journey comes first, in the same time


def accuracy(found: Record) -> Record:
    """Of classes."""
    figures = found["classification"]
    return {"accuracy": figures["accuracy"], "interval": figures["interval"], "macro_f1": figures["macro_f1"],
            "baseline": figures["majority"], "calibration_error": figures["calibration"]["ece"],
            "rows": figures["examples"]}  # fmt: skip


def answers(found: Record) -> Record:
    """Of answers found in texts."""
    return {name: found["answers"][name] for name in ("f1", "exact", "signature", "questions")}


def loss(found: Record) -> Record:
    """By how much the loss of held-out answers fell."""
    figures = found["supervised"]
    before, after = figures["base"]["loss"], figures["loss"]
    return {"fall": 1 - after / before, "loss": after, "base_loss": before, "targets": figures["targets"]}


def written(found: Record) -> Record:
    """Of texts that were written."""
    kept = ("metric", "score", "interval", "signature", "figures", "baseline", "asked")
    return {name: found["written"][name] for name in kept}


def translated(found: Record) -> Record:
    """Of translations."""
    return {
        "score": found["translation"]["bleu"]["score"],
        **{n: found["translation"][n] for n in ("bleu", "chrf")},
    }


def preferred(found: Record) -> Record:
    """Of preferred answers."""
    return dict(found["preferences"])


TASKS = {
    "sst2": Task("classify", accuracy, MINILM, 0.90),
    "sst2-lora": Task("classify", accuracy, MINILM, None, LORA),
    "sst2-prompted": Task("classify-prompted", accuracy, SMOLLM),
    "sst2-taught": Task("classify-taught", accuracy, MINILM, 0.90, teacher="sst2-prompted"),
    "trec": Task("classify-questions", accuracy, MINILM, 0.95),
    "ag-news": Task("classify-topics", accuracy, MINILM, 0.88),
    "chnsenticorp": Task("classify-zh", accuracy, None, 0.85),
    "tatoeba": Task("translate-en-zh", translated, None, 20.0),
    "dialogsum": Task("summarize", written, SMOLLM),
    "csl": Task("titles-zh", written, SMOLLM),
    "squad": Task("answers", answers, MINILM, 60.0),
    "alpaca": Task("instruct", loss, SMOLLM, 0.10),
    "mbpp": Task("code", written, SMOLLM),
    "dpo": Task("prefer", preferred, SMOLLM),
}


def once(task: Task, data: Path, models: Path, settings: Sequence[str]) -> Record:
    """The figures of one journey of its own, its paths read from `data`."""
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), {}
        if task.teacher is not None:
            first = TASKS[task.teacher]
            journey(first, data, models, folder / "teacher", first.settings)
            before = {"teacher": read(first, folder / "teacher")}
            settings = [f"objective.teacher={folder / 'teacher'}", *settings]
        journey(task, data, models, folder / "run", [*task.settings, *settings])
        found = read(task, folder / "run")
        seconds = found["seconds"] + sum(one["seconds"] for one in before.values())
        return {**found, **before, "seconds": round(seconds, 1)}


def journey(task: Task, data: Path, models: Path, output: Path, settings: Sequence[str]) -> None:
    """Run the task's recipe into a folder, in a process of its own."""
    base = [f"base={model_folder(models, task.base)}"] if task.base else []
    words = [f"output={output}", f"data.cache={output.parent}/data", *base, *settings]
    command = [sys.executable, "-m", "hasten", "journey", task.recipe, *words]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=data)


def model_folder(models: Path, name: str) -> Path:
    """A model's folder, imported before if it came as one file."""
    folder = models.resolve() / name
    files = sorted(folder.glob("*.gguf"))
    if not files:
        return folder
    imported = folder.with_name(f"{name}-imported")
    if not imported.exists():
        command = [sys.executable, "-m", "hasten", "import", str(files[0]), f"output={imported}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return imported


def read(task: Task, run: Path) -> Record:
    """The figures of a finished journey."""
    training, evaluation, journal = (
        json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("training", "evaluation", "journey")
    )
    seconds = {stage: entry["seconds"] for stage, entry in journal.items()}
    return {
        **task.score(evaluation),
        "asked_for": task.asked,
        "stage_seconds": seconds,
        "seconds": round(sum(seconds.values()), 1),
        "training_seconds": round(training["seconds"], 1),
        "peak_memory": training["peak_memory"],
        "steps": training["steps"],
        "tokens": training["tokens"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or read, print, save."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("task", nargs="?", choices=sorted(TASKS))
    parser.add_argument("--list", action="store_true", help="the tasks and their recipes")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=Path("runs/models"))
    parser.add_argument("--run", type=Path, help="read this run instead")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--save", type=Path, help="write the JSON into this folder too")
    options = parser.parse_args(arguments)
    if options.list or options.task is None:
        print("\n".join(f"{name:<14}{task.recipe}" for name, task in TASKS.items()))
        return
    task, load = TASKS[options.task], os.getloadavg()
    figures = (
        read(task, options.run) if options.run else once(task, options.data, options.models, options.set)
    )
    settings = [*task.settings, *options.set]
    result = {
        "program": "tasks",
        "task": options.task,
        "recipe": task.recipe,
        "settings": settings,
        **figures,
    }
    result["environment"] = {"load_average": load, **environment()}
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        write_json(options.save / f"{options.task}.json", result)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
