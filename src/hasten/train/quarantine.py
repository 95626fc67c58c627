"""The record of batches whose loss or gradient was not finite."""

import json
from collections.abc import Sequence
from pathlib import Path

from hasten.train.metrics import finite


class Quarantine:
    """A run's quarantine.jsonl: which step, which place in the data, which documents.

    A resumed run that meets the same batch again does not write it again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.known = {(line["step"], line["data_step"]) for line in map(json.loads, lines)}

    def write(self, step: int, data_step: int, documents: Sequence[str], loss: float, norm: float) -> None:
        """Append a batch; `loss` and `norm` become null where they are not numbers."""
        if (step, data_step) in self.known:
            return
        self.known.add((step, data_step))
        line = {
            "step": step,
            "data_step": data_step,
            "loss": finite(loss),
            "grad_norm": finite(norm),
            "documents": sorted(set(documents)),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
