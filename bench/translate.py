"""Learn to translate from nothing by the shipped recipe, and measure it on unseen sentences.

    python bench/translate.py --data ../shared/data --save bench/results/translate.json
    python bench/translate.py --run runs/translate-en-de         what a journey has left
    python bench/translate.py --data ../shared/data --set train.minutes=2 train.compile=off

`--data` is the folder that holds translation/multi30k_en_de_train.tsv.gz and its dev file.  A fresh process
runs the journey of the recipe: tokenizer and shards, training, translating the dev sentences with five beams,
report.  Prints one JSON object last: BLEU and chrF with their signatures, seconds of each stage and of all,
tokens per second of training and of translating, parameters, examples, the environment.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.core.files import write_json
from hasten.core.runtime import environment

RECIPE = "translate-en-de"


def once(data: Path, settings: Sequence[str]) -> dict[str, Any]:
    """The figures of one journey of its own, its paths read from `data`."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"output={folder}/run", f"data.cache={folder}/data", *settings]
        command = [sys.executable, "-m", "hasten", "journey", RECIPE, *words]
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=data)
        return read(Path(folder) / "run")


def read(run: Path) -> dict[str, Any]:
    """The figures of a finished journey."""
    summary, evaluation, journal = (
        json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("summary", "evaluation", "journey")
    )
    found = evaluation["translation"]
    seconds = {stage: entry["seconds"] for stage, entry in journal.items()}
    return {
        "bleu": found["bleu"],
        "chrf": found["chrf"],
        "beams": found["beams"],
        "sentences": found["pairs"],
        "cut_off": found["unfinished"],
        "reference_loss": evaluation[found["split"]]["loss"],
        "parameters": summary["parameters"],
        "trained_tokens": summary["tokens"],
        "training_tokens_per_second": round(summary["tokens"] / summary["seconds"], 1),
        "translating_tokens_per_second": found["tokens_per_second"],
        "translating_seconds": found["seconds"],
        "stage_seconds": seconds,
        "seconds": round(sum(seconds.values()), 1),
        "examples": found["examples"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or read, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="holds translation/")
    parser.add_argument("--run", type=Path, help="read this run instead")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    load = os.getloadavg()
    figures = read(options.run) if options.run else once(options.data, options.set)
    facts = {"load_average": load, **environment()}
    result = {"program": "translate", "recipe": RECIPE, "settings": options.set, **figures}
    result["environment"] = facts
    if options.save:
        write_json(options.save, result)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
