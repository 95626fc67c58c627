"""A peer's training in a process of its own: python -m peers.tuning FAMILY OPTIONS, one line of JSON back.

`peers/tune_FAMILY.py` has `train(options, output)`.  Options for all: `folder`, the model as Hugging Face has
it; `rows`, the folder with train.jsonl and dev.jsonl; `started`, when the process was begun; `looks`, how
many; `seed`; `bf16`; `max_steps`, or -1 for as many as the epochs have.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers.turns import Voice
from peers.worker import versions

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "trl")
QUIET = {
    "use_cpu": True,
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def read_rows(folder: str, name: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON Lines."""
    with (Path(folder) / f"{name}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def arguments(options: Mapping[str, Any], output: str) -> dict[str, Any]:
    """What Trainer and SFTTrainer are told alike."""
    return {
        **QUIET,
        "output_dir": output,
        "learning_rate": options["learning_rate"],
        "per_device_train_batch_size": options["batch_rows"],
        "max_steps": options["max_steps"],
        "bf16": options["bf16"],
        "seed": options["seed"],
    }


def main() -> None:
    """Train, and tell what came of it."""
    family, words = sys.argv[1:]
    voice, options = Voice(), json.loads(words)
    try:
        module = importlib.import_module(f"peers.tune_{family}")
    except ModuleNotFoundError as error:
        voice.tell(missing=str(error))
        return
    with tempfile.TemporaryDirectory() as output:
        voice.tell(**module.train(options, output), versions=versions(PACKAGES))


if __name__ == "__main__":
    main()
