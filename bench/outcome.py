"""What a training came to, without what no two runs share: to compare a disturbed one with a quiet one."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

BY_THE_CLOCK = {"seconds", "tokens_per_second", "mfu"}
"""Figures of a line that no two runs share."""


def steady_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but for what a clock gave them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in BY_THE_CLOCK} for line in lines]


def tensors_of(run: Path, step: int) -> dict[str, Any]:
    """Type, shape and bytes of each tensor in the checkpoint of a step: weights, optimizer, random states."""
    folder = run / "checkpoints" / f"step-{step:06}"
    return {
        f"{path.relative_to(folder)} {name}": (tensor.dtype, tensor.shape, tensor.numpy().tobytes())
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()  # a header may say the same in another order
    }
