"""hasten's side of a job: the rows that a peer gets, a training in its own process, the scores on the way."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peers.jobs import Job
from peers.reaching import spread
from tasks import TASKS, model_folder

from hasten.data.tasks.corpus import TaskCorpus
from hasten.evaluate.tasks import Subject, evaluate_task
from hasten.lookup import read
from hasten.recipe import Recipe
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.load import load_model

HORIZONS = ("epochs", "minutes")


def hugging_face_folder(models: Path, name: str) -> Path:
    """The model as transformers reads it, written out in float32 where it came as one file."""
    folder = model_folder(models, name)
    if (folder / "config.json").exists():
        return folder
    exported = folder.with_name(f"{name}-hf")
    if not (exported / "config.json").exists():
        words = [str(folder), "to=hf", f"output={exported}", "dtype=float32"]
        subprocess.run([sys.executable, "-m", "hasten", "export", *words], check=True, stdout=sys.stderr)
    return exported


@dataclass(frozen=True)
class HastenJob:
    """A job with its places: `data`, where the recipe's paths begin, the model's folder, and room to work."""

    job: Job
    data: Path
    base: Path
    folder: Path
    steps: int | None = None  # end every training after so many
    settings: tuple[str, ...] = ()  # of the recipe, as its verbs take them

    @property
    def recipe_name(self) -> str:
        """As a user writes it."""
        return TASKS[self.job.task].recipe

    def words(self, folder: Path) -> list[str]:
        """What is set of the recipe: places, all checkpoints kept."""
        words = [f"output={folder}/run", f"data.cache={folder}/data", f"base={self.base}"]
        words += [*TASKS[self.job.task].settings, *self.settings, "train.keep_last=1000"]
        if self.steps:
            words += [*(f"train.{name}=null" for name in HORIZONS), f"train.steps={self.steps}"]
        return words

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, with its data prepared in a place of their own: no training finds them made."""
        with chdir(self.data):
            return read(self.recipe_name, self.words(self.folder / "rows"))

    def write_rows(self) -> Path:
        """The folder with the rows of training and of the dev set as a peer reads them."""
        with chdir(self.data):
            prepared = self.recipe.prepared()
        folder = self.folder / "rows"
        train = [record for _, record in prepared.records("train")]
        if "labels" in prepared.learnt:
            names = list(prepared.learnt["labels"])
            dev = [record for _, record in prepared.records("test")]
            write_lines(folder / "train.jsonl", (labelled(record, names) for record in train))
            write_lines(folder / "dev.jsonl", (labelled(record, names) for record in dev))
        else:
            write_lines(folder / "train.jsonl", ({"messages": record["messages"]} for record in train))
            write_lines(
                folder / "dev.jsonl", self.answers(prepared.folder, Tokenizer.load(prepared.tokenizer))
            )
        return folder

    def answers(self, prepared: Path, tokenizer: Tokenizer) -> Iterator[dict[str, list[int]]]:
        """The dev conversations as token ids, with the targets that carry loss."""
        corpus = TaskCorpus(prepared, "test", self.recipe.text.row_tokens, 0, pad_id=tokenizer.pad_id)
        for stream in corpus.task_streams:
            for number in range(stream.table.num_examples):
                ids, targets, _ = stream.table.example(number)
                yield {"ids": ids.tolist(), "targets": targets.tolist()}

    def train(self, number: int, environment: dict[str, str]) -> dict[str, Any]:
        """Prepare and train in a fresh process, with fresh folders; then score what it kept."""
        folder = self.folder / f"hasten-{number}"
        words = [*self.words(folder), f"train.seed={number}"]
        command = [sys.executable, "-m", "hasten", "train", self.recipe_name, *words]
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=self.data, env=environment)
        return self.record(folder / "run", time.monotonic() - began)

    def record(self, run: Path, seconds: float) -> dict[str, Any]:
        """What a finished training came to, in a peer's words; its process took `seconds`.

        What it does after its last step counts as if it came before the first.
        """
        training = json.loads((run / "training.json").read_text(encoding="utf-8"))
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        clock = Clock([json.loads(line) for line in lines], training)
        looks = [self.look(clock, folder) for folder in self.kept(run)]
        return {
            "startup_seconds": seconds - clock.loop_seconds,
            "loop_seconds": clock.loop_seconds,
            "base_score": None if self.job.higher else self.score(self.base),
            "looks": looks,
            "steps": training["steps"],
            "step_seconds": training["step_seconds"],
            "peak_bytes": training["peak_memory"],
        }

    def kept(self, run: Path) -> Sequence[Path]:
        """The checkpoints to look at."""
        return spread(sorted((run / "checkpoints").glob("step-*[0-9]")), self.job.looks)

    def look(self, clock: "Clock", checkpoint: Path) -> dict[str, float]:
        """A checkpoint's score, and when it was reached."""
        step = int(checkpoint.name.removeprefix("step-"))
        return {"step": step, "seconds": clock.at(step), "score": self.score(checkpoint)}

    def score(self, folder: Path) -> float:
        """The model's score on the dev set as `hasten evaluate` gives it, in float32."""
        with chdir(self.data):
            prepared = self.recipe.prepared()
        model, tokenizer = load_model(folder)
        config = self.recipe.evaluate.model_copy(update={"precision": "fp32"})
        tokenizer = tokenizer or Tokenizer.load(prepared.tokenizer)
        found = evaluate_task(Subject(model, tokenizer, prepared, self.recipe.text, config))
        section, name = self.job.score
        return float(found[section][name])


@dataclass(frozen=True)
class Clock:
    """When steps were taken, by a run's own lines; its `seconds` begin with its process."""

    lines: Sequence[dict[str, Any]]
    training: dict[str, Any]

    @property
    def loop_seconds(self) -> float:
        """From the first step to the end, validation and saving included."""
        return float(self.training["seconds"] - self.training["times"]["start"])

    def at(self, step: int) -> float:
        """Seconds of the loop until `step` was taken: of the first line that is no earlier."""
        line = next(line for line in self.lines if line["step"] >= step)
        return float(line["seconds"] - self.training["times"]["start"])


def labelled(record: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A labelled text with its label's number."""
    return {"text": record["text"], "label": names.index(record["label"])}


def write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
