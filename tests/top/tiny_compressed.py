"""What tests of compression share: settings that take a moment, and a trained run."""

import json
from pathlib import Path
from typing import Any

from tiny_texts import tiny_data

from hasten.cli import main

QUICK = [
    "compress.calibration.rows=8",
    "compress.measure.max_bytes=1500",
    "compress.measure.prompt_tokens=8",
    "compress.measure.new_tokens=4",
    "compress.measure.seconds=0.05",
    "compress.measure.memory=false",
]


def trained(folder: Path, text_files: Path) -> Path:
    """The folder of a run that has been trained for a moment."""
    settings = {
        "output": str(folder / "run"),
        "data": tiny_data(text_files, folder / "data"),
        "model": {"preset": "hasten-tiny", "dim": 32, "num_layers": 3, "num_heads": 2, "max_positions": 64},
        "train": {"steps": 8, "batch_tokens": 128, "log_every": 1, "validation_tokens": 256},
        "evaluate": {"max_bytes": 2000},
    }
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


def steps(*found: dict[str, Any]) -> str:
    """An override with these steps."""
    return f"compress.steps={json.dumps(found)}"


def record(run: Path) -> dict[str, Any]:
    """What compression.json says."""
    return dict(json.loads((run / "compression.json").read_text()))


def compress(run: Path, *words: str) -> int:
    """`hasten compress`, in a moment."""
    return main(["compress", str(run), *QUICK, *words])
