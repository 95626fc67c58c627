"""`hasten train` as a person starts it, in processes of its own, on a text and a model that take seconds."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

FAULTS = Path(__file__).with_name("faults")
WORDS = "the a red blue old young cat dog bird house tree runs sees likes finds of in and".split()


def write_recipe(folder: Path, **train: Any) -> Path:
    """A recipe of a tiny model with dropout in `folder`, with its text beside it."""
    draw, texts = random.Random(0), folder / "texts"
    texts.mkdir(parents=True)
    for number in range(30):
        sentences = [" ".join(draw.choices(WORDS, k=9)) + "." for _ in range(30)]
        (texts / f"{number:02}.txt").write_text("\n".join(sentences))
    settings = {
        "output": "run",
        "device": "cpu",
        "data": {
            "sources": ["texts"],
            "clean": {"near_duplicates": None, "repetition": False},
            "split": {"validation": 0.1, "test": 0.1},
            "tokenizer": {"kind": "bpe", "vocab_size": 300},
            "row_tokens": 32,
            "cache": "data",
        },
        "model": {"preset": "hasten-tiny", "dim": 32, "num_layers": 2, "num_heads": 2, "max_positions": 32},
        "train": {
            "steps": 10,
            "batch_tokens": 128,
            "log_every": 1,
            "validate_every": 5,
            "validation_tokens": 128,
            "checkpoint_every": 1,
            "compile": "off",
            **train,
        },
        "evaluate": {"max_bytes": 500, "code": None},
        "generate": {"prompts": ["the cat"], "max_new_tokens": 4},
    }
    settings["model"]["dropout"] = 0.1
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def environment(faults: list[dict[str, Any]] | None = None) -> dict[str, str]:
    """That of a person's shell, with faults to come."""
    taken = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # a test runner's own
    own = {name: value for name, value in os.environ.items() if name not in taken}
    return {
        **own,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(FAULTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HASTEN_FAULTS": json.dumps(faults or []),
    }


def hasten(
    folder: Path, *words: str, faults: list[dict[str, Any]] | None = None
) -> subprocess.CompletedProcess[str]:
    """`hasten WORDS` in `folder`; its exit code and what it said."""
    return subprocess.run(
        [sys.executable, "-m", "hasten", *words],
        cwd=folder,
        env=environment(faults),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
