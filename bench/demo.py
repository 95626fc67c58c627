"""Run the demo's journey from nothing, several times, and keep every figure.

    python bench/demo.py --times 3 --save bench/results/demo.json
    python bench/demo.py --run runs/demo --save bench/results/demo.json    what `make demo` left

Each repeat is a fresh process with a fresh output folder and fresh data.  Prints one JSON object last.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hasten.core.runtime import environment


def once(seed: int) -> dict[str, Any]:
    """The figures of one journey of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"output={folder}/run", f"data.cache={folder}/data", f"train.seed={seed}"]
        command = [sys.executable, "-m", "hasten", "journey", "demo", *words]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return read(Path(folder) / "run", seed)


def read(run: Path, seed: int = 0) -> dict[str, Any]:
    """The figures of a finished journey."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    journal = json.loads((run / "journey.json").read_text(encoding="utf-8"))
    seconds = sum(stage["seconds"] for stage in journal.values())
    return {**summary, "report": None, "seed": seed, "journey_seconds": round(seconds, 1)}


def main() -> None:
    """Repeat, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1, help="one seed each")
    parser.add_argument("--run", type=Path, help="read this run instead")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    seeds = range(arguments.times)
    repeats = [read(arguments.run)] if arguments.run else [once(seed) for seed in seeds]
    result = {"environment": environment(), "repeats": repeats}
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
