"""What a teacher is worth to a student: one JSON object.

    python bench/distil.py --save bench/results/distil.json
    python bench/distil.py --only text --tokens 120000 --teacher-tokens 500000 --dim 96 --seeds 1
    python bench/distil.py --only classes --data ../shared/data --models runs/models

`text`: a decoder of 12 layers (8M parameters) learns the source of Python's standard library.  Students of 4
layers then see equally many tokens, a seed a run: `labels` learn what came next, `distilled` what the teacher
would have said, `layers` the same and begin with four of its layers, `sampled` as `layers` from 12 samples of
each place.  `closed` is the share of the way in cross-entropy from `labels` to the teacher that is gone.

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
from statistics import fmean, median
from typing import Any

import torch
from training import Results, demo_text
from welch import paired_p_value

from hasten import stages
from hasten.core.config import parse
from hasten.core.files import fingerprint, write_json
from hasten.core.runtime import environment
from hasten.defaults import filled
from hasten.recipe import Recipe, read
from hasten.train.load import load_model
from hasten.train.run import Summary

TEACHER_LAYERS, STUDENT_LAYERS, DIM, HEAD_DIM = 12, 4, 192, 48
ROW_TOKENS, BATCH_TOKENS, VALIDATION_TOKENS = 256, 4096, 65_536
ARMS: dict[str, dict[str, Any]] = {
    "labels": {},
    "distilled": {"objective": {}},
    "layers": {"layers": "spread", "objective": {}},
    "sampled": {"layers": "spread", "objective": {"cache": {"samples": 12}}},
}
ASKED = {"closed": 0.40, "kept": 0.97, "faster": 1.8}
TURNS, SENTENCES = 7, 128


def shape(num_layers: int, dim: int) -> dict[str, Any]:
    """A decoder of so many layers; 12 of width 192 are 8M parameters with a vocabulary of 4,096."""
    sizes = {"dim": dim, "num_heads": dim // HEAD_DIM, "ffn_dim": 5 * dim, "max_positions": 512}
    return {"preset": "hasten-tiny", "num_layers": num_layers, **sizes}


def text_recipe(folder: Path, cache: Path, tokens: int, seed: int, given: Mapping[str, Any]) -> Recipe:
    """A training on the demo's text that validates and saves once, at its end."""
    demo = read("demo", [f"data.cache={cache}", f"data.row_tokens={ROW_TOKENS}"]).model_dump(mode="json")
    train = {
        "tokens": tokens, "batch_tokens": BATCH_TOKENS, "seed": seed, "validate_every": None,
        "checkpoint_every": None, "validation_tokens": VALIDATION_TOKENS, "compile": "off",
    }  # fmt: skip
    whole = {"output": str(folder), "data": demo["data"], "train": train, **given}
    return parse(Recipe, filled(whole), folder.name)


def whole(recipe: Recipe) -> Summary:
    """A training to its end."""
    summary = stages.train(recipe)
    if not summary.completed:
        raise SystemExit("stopped and saved; give the same command to go on")
    return summary


def trained(folder: Path, cache: Path, tokens: int, seed: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one training."""
    summary = whole(text_recipe(folder, cache, tokens, seed, given))
    return {**summary.validation, "tokens": summary.tokens, "seconds": round(summary.seconds, 1)}


def student(arm: str, teacher: Path, dim: int) -> dict[str, Any]:
    """The sections of a student's recipe."""
    given = dict(ARMS[arm])
    if "layers" in given:
        given |= {"base": str(teacher), "model": {"num_layers": STUDENT_LAYERS}}
    else:
        given["model"] = shape(STUDENT_LAYERS, dim)
    if "objective" in given:
        given["objective"] = {"kind": "distillation", "teacher": str(teacher), **given["objective"]}
    return given


def text(results: Results, arguments: argparse.Namespace) -> dict[str, Any]:
    """Teacher and students on text."""
    cache, size, dim = arguments.cache, arguments.teacher_tokens, arguments.dim
    name = fingerprint([TEACHER_LAYERS, STUDENT_LAYERS, dim, size, arguments.tokens, BATCH_TOKENS])
    runs = arguments.runs.parent / f"distil-{name}"
    teacher, model = runs / "teacher", {"model": shape(TEACHER_LAYERS, dim)}
    demo_text(cache)
    own = results.get(f"{name} / teacher", lambda: trained(teacher, cache, size, 0, model))
    losses: dict[str, list[float]] = {arm: [] for arm in arguments.arms}
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            place, given = runs / f"{arm}-{seed}", student(arm, teacher, dim)
            found = results.get(
                f"{name} / {arm} / {seed}",
                lambda p=place, g=given, s=seed: trained(p, cache, arguments.tokens, s, g),
            )
            losses[arm].append(found["validation_loss"])
    return {
        "parameters": {
            "teacher": parameters(teacher),
            "student": parameters(runs / f"{arguments.arms[0]}-0"),
        },
        "teacher": own,
        "students": {arm: arm_figures(losses, arm, own["validation_loss"]) for arm in arguments.arms},
    }


def parameters(run: Path) -> int:
    """Of the model in a run."""
    return load_model(run)[0].config.num_parameters


def arm_figures(losses: Mapping[str, Sequence[float]], arm: str, teacher: float) -> dict[str, Any]:
    """Mean loss of an arm, and what of the distance from `labels` to the teacher it closes, seed by seed."""
    own, labels = losses[arm], losses["labels"]
    closed = [(label - loss) / (label - teacher) for loss, label in zip(own, labels, strict=True)]
    figures = {"validation_loss": round(fmean(own), 4), "losses": own}
    if arm == "labels":
        return figures
    gains = [label - loss for loss, label in zip(own, labels, strict=True)]
    p = paired_p_value(gains) if len(gains) > 1 else None
    return {
        **figures,
        "closed": round(fmean(closed), 3),
        "by_seed": [round(x, 3) for x in closed],
        "p_paired": p,
    }


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


def main() -> None:
    """Train what is missing, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=["text", "classes"], default=["text", "classes"])
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
    parts = {"text": text, "classes": classes}
    found = {name: parts[name](results, arguments) for name in arguments.only}
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
