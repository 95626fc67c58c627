"""A run's folder as training, evaluation and generation leave it."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten.core.config import dump
from hasten.core.files import write_json
from hasten.model.config import ModelConfig
from hasten.train.metrics import MetricsLog

MakeRun = Callable[..., Path]
SHAPE = ModelConfig(vocab_size=4096, dim=256, num_layers=4, num_heads=4, max_positions=512)


def score(bits_per_byte: float, **changes: Any) -> dict[str, Any]:
    """A score as `evaluate` writes it."""
    loss = bits_per_byte * math.log(2) * 3.4
    figures = {"bits_per_byte": bits_per_byte, "stderr": 0.0132, "loss": loss, "perplexity": math.exp(loss)}
    return {**figures, "accuracy": 0.513, "tokens": 176_000, "bytes": 600_000, "documents": 61, **changes}


def write_metrics(path: Path, steps: int, final: float, seed: int) -> None:
    """A loss that falls from ln 4096 to `final`, with noise, validated every tenth of the way."""
    log, generator = MetricsLog(path), random.Random(seed)
    for step in range(1, steps + 1):
        progress = step / steps
        loss = final + (math.log(4096) - final) * math.exp(-7 * progress**0.6)
        place = {"tokens": step * 8192, "seconds": step * 0.41, "epoch": 3 * progress}
        figures = {
            "loss": loss + generator.gauss(0, 0.05),
            "learning_rate": 0.003 * min(step / (steps / 20), 1.0, (1 - progress) / 0.3 + 1e-3),
            "grad_norm": 0.3 + 2 * math.exp(-20 * progress) + abs(generator.gauss(0, 0.06)),
            "tokens_per_second": 20_000 + generator.gauss(0, 400),
            "mfu": 0.42 + generator.gauss(0, 0.008),
        }
        log.write(step, "train", {**figures, **place})
        if step % max(steps // 10, 1) == 0:
            log.write(
                step, "validation", {"validation_loss": loss + 0.04, "bits_per_byte": loss / 2.3, **place}
            )
    log.close()


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name="first", steps=120, final=2.6, seed=0, recipe={...}, evaluated=True)` -> folder."""

    def make(
        name: str = "first",
        *,
        steps: int = 120,
        final: float = 2.6,
        seed: int = 0,
        recipe: dict[str, Any] | None = None,
        samples: list[dict[str, Any]] | None = None,
        evaluated: bool = True,
    ) -> Path:
        folder = tmp_path / name
        write_metrics(folder / "metrics.jsonl", steps, final, seed)
        settings = recipe or {"model": {"dim": 256}, "train": {"steps": steps, "seed": seed}}
        write_json(folder / "recipe.yaml", settings)  # JSON is YAML
        write_json(
            folder / "environment.json", {"hasten": "0.1.0", "torch": "2.13.0", "gpu": None, "threads": 2}
        )
        if not evaluated:
            return folder
        model = folder / "checkpoints" / f"step-{steps:06}" / "model.yaml"
        model.parent.mkdir(parents=True)
        model.write_text(dump(SHAPE))
        write_json(
            folder / "training.json", {"steps": steps, "tokens": steps * 8192, "seconds": steps * 0.41 + 9}
        )
        write_json(
            folder / "evaluation.json",
            {
                "test": score(final * 0.45),
                "sources": {"library": score(final * 0.44), "notes": score(final * 0.5, stderr=None)},
                "baselines": {
                    "lzma_each": {"bits_per_byte": 2.31, "bytes": 600_000, "compressed_bytes": 173_250},
                    "lzma_stream": {"bits_per_byte": 1.87, "bytes": 600_000, "compressed_bytes": 140_250},
                },
                "code": {
                    "rate": 0.81,
                    "stderr": 0.039,
                    "parsed": 81,
                    "snippets": 100,
                    "authors": {"rate": 0.99, "stderr": 0.01, "parsed": 99, "snippets": 100},
                },
                "checkpoint": f"step-{steps:06}",
                "documents_available": 61,
            },
        )
        text = {
            "prompt": "def read(path):\n",
            "text": "    with open(path) as file:\n        return file.read()\n",
        }
        write_json(folder / "samples.json", samples or [{**text, "stopped_by": "length", "seed": 0}])
        example = {"id": "lib/antigravity.py", "text": "import webbrowser", "note": "8 words"}
        dropped = {"too_short": {"documents": 12, "bytes": 3400, "examples": [example]}}
        counts = {"documents": 61, "tokens": 176_000, "bytes": 600_000}
        write_json(
            folder / "data.json",
            {
                "splits": {"train": {"stdlib": {**counts, "documents": 1200}}, "test": {"stdlib": counts}},
                "clean": {
                    "documents": 1300,
                    "bytes": 12_500_000,
                    "kept": 1261,
                    "dropped": dropped,
                    "bad_rows": 0,
                },
            },
        )
        return folder

    return make


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
