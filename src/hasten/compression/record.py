"""compression.json: what each model of a chain is worth beside the original."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.compression.footprint import Footprint
from hasten.compression.speed import Speed
from hasten.core.files import write_json
from hasten.evaluate.agreement import Agreement, Estimate

RECORD = "compression.json"


@dataclass(frozen=True)
class Quality:
    """The figure that a model is judged by: its name, value and change, and which way is better."""

    name: str  # bits_per_byte, loss, accuracy, f1, preference_accuracy
    score: Estimate
    change: Estimate | None  # less the original's; None of the original
    higher_is_better: bool
    kept: float  # share of the original's quality


@dataclass(frozen=True)
class Measured:
    """One model of a chain."""

    name: str
    folder: str
    key: str
    words: str
    bytes: int
    parameters: int
    zeros: float  # share of its matrices' numbers
    speed: Speed | None
    speedup: Estimate | None  # over the original, after reading; None of the original
    reading_speedup: Estimate | None
    memory: Footprint | None
    quality: Quality | None
    agreement: Agreement | None


@dataclass(frozen=True)
class Compression:
    """All of it; `final` is the name of the last model, `target` what was asked for and what came of it."""

    original: str
    final: str
    folder: str
    models: tuple[Measured, ...]
    settings: dict[str, Any]
    machine: dict[str, Any]
    target: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Write compression.json, whole or not at all."""
        write_json(path, asdict(self))
