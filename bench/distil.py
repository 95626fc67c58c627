"""What a teacher is worth to a student: one JSON object.

    python bench/distil.py --save bench/results/distil.json
    python bench/distil.py --only text --tokens 120000 --teacher-tokens 500000 --dim 96 --seeds 1
    python bench/distil.py --only classes --data ../shared/data --models runs/models

`text`: a decoder of 12 layers (8M parameters) learns the source of Python's standard library.  Students of 4
layers then see equally many tokens, a seed a run: `labels` learn what came next, `distilled` what the teacher
would have said, `layers` the same and begin with four of its layers, `sampled` as `layers` from 12 samples of
each place.  `closed` is the share of the way in cross-entropy from `labels` to the teacher that is gone.

`regained`: that teacher loses a quarter of its layers and learns from what it was for a twentieth of its
tokens, a seed a run; the figure is the share of the lost cross-entropy that is back.  `scratch` are as many
layers that begin with nothing and learn what came next from as many tokens.

`classes`: the recipe `classify` trains MiniLM's six layers on SST-2, `distil-classify` three of them; `kept`
is the student's share of the teacher's accuracy on held-out sentences, `faster` how many times as many of
these it reads in a second on this CPU, one thread, in turns.

Trainings that are done are found again in `--runs`.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from distil_text import ARMS, DIM, regained, text, whole
from training import Results

from hasten import stages
from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.lookup import read
from hasten.train.load import load_model

ASKED = {"closed": 0.40, "regained": 0.70, "kept": 0.97, "faster": 1.8}
TURNS, SENTENCES = 7, 128


def classes(results: Results, arguments: argparse.Namespace) -> dict[str, Any]:
    """Teacher and student on sentences, both by their recipes."""
    data, runs = arguments.data.resolve(), arguments.runs.resolve().parent / "distil-classes"
    rows, held_out = data / "classification/sst2_train.jsonl.gz", data / "classification/sst2_dev.jsonl"
    split = json.dumps({"validation": 0.05, "test_sources": [str(held_out)]})
    place = [
        f"data.cache={arguments.cache.resolve()}",
        f"data.sources=[{json.dumps(str(rows))}]",
        f"data.split={split}",
    ]
    base = (arguments.models / "all-MiniLM-L6-v2").resolve()
    teacher, own = runs / "teacher", runs / "student"
    found = {
        "teacher": results.get(
            "classes / teacher", lambda: scored("classify", teacher, [*place, f"base={base}"])
        ),
        "student": results.get(
            "classes / student",
            lambda: scored(
                "distil-classify", own, [*place, f"base={teacher}", f"objective.teacher={teacher}"]
            ),
        ),
    }
    speeds = sentences_per_second({"teacher": teacher, "student": own}, held_out)
    return {
        "teacher": {**found["teacher"], "sentences_per_second": round(speeds["teacher"], 1)},
        "student": {**found["student"], "sentences_per_second": round(speeds["student"], 1)},
        "kept": round(found["student"]["accuracy"] / found["teacher"]["accuracy"], 4),
        "faster": round(speeds["student"] / speeds["teacher"], 3),
    }


def scored(name: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe trained and evaluated."""
    recipe = read(name, [f"output={folder}", *overrides])
    summary = whole(recipe)
    figures = stages.evaluate(recipe)["classification"]
    kept = {name: figures[name] for name in ("accuracy", "interval", "examples")}
    return {**summary.validation, **kept, "seconds": round(summary.seconds, 1)}


@torch.no_grad()
def sentences_per_second(folders: Mapping[str, Path], held_out: Path) -> dict[str, float]:
    """Of each model, by the median of turns, in the time of one thread; a sentence at a time, as it comes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lines = held_out.read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["text"] for line in lines if line][:SENTENCES]
    seconds: dict[str, list[float]] = {name: [] for name in folders}
    loaded = {name: load_model(folder) for name, folder in folders.items()}
    for turn in range(TURNS + 1):
        for name, (model, tokenizer) in loaded.items():
            assert tokenizer is not None
            rows = [
                torch.tensor([[tokenizer.bos_id, *ids, tokenizer.eot_id]])
                for ids in tokenizer.encode_batch(texts)
            ]
            began = time.thread_time()
            for row in rows:
                model.logits(model(row)[:, 0])
            if turn:  # the first warms up
                seconds[name].append(time.thread_time() - began)
    torch.set_num_threads(threads)
    return {name: len(texts) / median(taken) for name, taken in seconds.items()}


PARTS = {"text": text, "regained": regained, "classes": classes}


def main() -> None:
    """Train what is missing, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tokens", type=int, default=250_000, help="of each student")
    parser.add_argument("--teacher-tokens", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=DIM, help="of both models; a multiple of 48")
    parser.add_argument("--arms", nargs="+", default=["labels", "distilled", "layers"], choices=list(ARMS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="begins the recipes' paths")
    parser.add_argument("--models", type=Path, default=Path("runs/models"))
    parser.add_argument("--cache", type=Path, default=Path("runs/data"), help="where the prepared text is")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/distil.json"), help="figures of each training"
    )
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results, began = Results(arguments.runs), time.monotonic()
    found = {name: PARTS[name](results, arguments) for name in arguments.only}
    setting = {
        "tokens": arguments.tokens,
        "teacher_tokens": arguments.teacher_tokens,
        "seeds": arguments.seeds,
    }
    result = {
        "program": "distil",
        "asked": ASKED,
        "setting": setting,
        **found,
        "seconds": round(time.monotonic() - began),
    }
    result["environment"] = environment()
    if arguments.save:
        write_json(arguments.save, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
