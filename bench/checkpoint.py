"""Time checkpoints: how long a training waits for a save, and how fast one is verified.

    python bench/checkpoint.py --dim 512 --layers 10

A synchronous save returns when the folder is on the disk; an asynchronous one when the training may go on.
Nothing trains meanwhile.  The last line is one JSON object: medians, and all repeats beside them.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hasten.core.files import damage, write_json
from hasten.core.runtime import choose_device, environment
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.train.checkpoint import Checkpoints, restore
from hasten.train.optim import AdamWConfig, MuonConfig, Optimizer


def seconds_of(work: Callable[[], Any]) -> float:
    """How long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def time_optimizer(model: Any, optimizer: Optimizer, folder: Path, repeats: int) -> dict[str, Any]:
    """Every figure for one kind of optimizer."""
    checkpoints, step = Checkpoints(folder, keep_last=1), 0

    def save(wait: bool) -> None:
        nonlocal step
        step += 1
        checkpoints.save(step, model=model, optimizer=optimizer, state={}, wait=wait)

    first = seconds_of(lambda: save(True))
    written, paused = [], []
    for _ in range(repeats):
        written.append(seconds_of(lambda: save(True)))
        paused.append(seconds_of(lambda: save(False)))
        checkpoints.wait()
    newest = checkpoints.latest()
    assert newest is not None
    num_bytes = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    verified = [seconds_of(lambda: damage(newest)) for _ in range(repeats)]
    restored = [seconds_of(lambda: restore(newest, model, optimizer)) for _ in range(repeats)]
    return {
        "megabytes": round(num_bytes / 1e6, 1),
        "first_save_seconds": first,
        "save_seconds": median(written),
        "pause_seconds": median(paused),
        "pause_share": median(paused) / median(written),
        "verify_gigabytes_per_second": num_bytes / 1e9 / median(verified),
        "restore_seconds": median(restored),
        "repeats": {"save": written, "pause": paused, "verify": verified, "restore": restored},
    }


def main() -> None:
    """Build a model, time both optimizers, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    config = ModelConfig(vocab_size=4096, dim=arguments.dim, num_layers=arguments.layers, num_heads=8)
    model = build(config, seed=0, device=choose_device(arguments.device))
    result: dict[str, Any] = {"parameters": config.num_parameters}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for optimizer_config in (AdamWConfig(), MuonConfig()):
            optimizer = Optimizer(model, optimizer_config)
            where = Path(folder) / optimizer_config.kind
            result[optimizer_config.kind] = time_optimizer(model, optimizer, where, arguments.repeats)
    result |= {"torch_threads": torch.get_num_threads(), **environment()}
    if arguments.save:
        write_json(arguments.save, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
