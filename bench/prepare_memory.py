"""Peak memory and speed of `prepare` on more text than should be held: 2 GB of synthetic documents.

    python bench/prepare_memory.py [--megabytes 2000] [--save bench/results/prepare-memory.json]

Documents have the sizes of web pages (log-normal, median 2 kB, now and then 100 kB), words the
frequencies of natural language (Zipf); one in fifty is a near-copy of another.  `prepare` runs in a process
of its own; the resident memory of that process and all its children is read twenty times a second.
The last line printed is the result as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hasten.core.files import write_json
from hasten.core.runtime import environment

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ROWS_AT_ONCE = 2_000
COPIES = 0.02


def write_text(folder: Path, megabytes: int, seed: int = 0) -> int:
    """Fill `folder` with JSON lines in files of at most 500 MB; the number of planted near-copies."""
    generator = np.random.default_rng(seed)
    vocabulary = invent_words(generator, 60_000)
    frequencies = 1 / np.arange(1, len(vocabulary) + 1) ** 1.05
    chances = np.cumsum(frequencies / frequencies.sum())
    written = copies = number = 0
    while written < megabytes * 1_000_000:
        with (folder / f"part-{number}.jsonl").open("w", encoding="utf-8") as file:
            while written < megabytes * 1_000_000 and file.tell() < 500_000_000:
                texts = write_documents(generator, vocabulary, chances)
                planted = [edit(generator, text) for text in texts[: int(COPIES * len(texts))]]
                copies += len(planted)
                for text in texts + planted:
                    written += file.write(json.dumps({"text": text}) + "\n")
        number += 1
    return copies


def invent_words(generator: np.random.Generator, count: int) -> np.ndarray:
    """Pronounceable words, frequent ones short."""
    syllables = np.array(
        [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "it")]
    )
    lengths = 1 + (np.log2(np.arange(count) + 2) / 5).astype(int)
    return np.array(["".join(generator.choice(syllables, length)) for length in lengths], dtype=object)


def write_documents(generator: np.random.Generator, vocabulary: np.ndarray, chances: np.ndarray) -> list[str]:
    """Some documents of sentences and lines."""
    sizes = np.clip(generator.lognormal(np.log(330), 1.1, ROWS_AT_ONCE).astype(int), 20, 60_000)
    ranks = np.minimum(np.searchsorted(chances, generator.random(sizes.sum())), len(vocabulary) - 1)
    drawn = vocabulary[ranks]
    drawn[generator.random(len(drawn)) < 1 / 14] += "."
    drawn[generator.random(len(drawn)) < 1 / 60] += "\n"
    return [" ".join(words) for words in np.split(drawn, np.cumsum(sizes)[:-1])]


def edit(generator: np.random.Generator, text: str) -> str:
    """The text with about one word in fifty changed."""
    words = np.array(text.split(" "), dtype=object)
    words[generator.random(len(words)) < 0.02] = "changed"
    return " ".join(words)


def family(root: int) -> set[int]:
    """A process and its descendants."""
    found, waiting = set(), [root]
    while waiting:
        process = waiting.pop()
        found.add(process)
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                waiting += map(int, children.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def resident_bytes(root: int) -> int:
    """Resident memory of a process and its descendants, pages shared between them counted for each."""
    total = 0
    for process in family(root):
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE_BYTES
        except (OSError, IndexError):
            continue
    return total


def watch(command: list[str]) -> tuple[float, int, list[list[float]]]:
    """Run a command: its seconds, its peak of resident bytes, and (seconds, bytes) now and then."""
    start, peak, curve = time.monotonic(), 0, []
    process = subprocess.Popen(command)
    while process.poll() is None:
        now = resident_bytes(process.pid)
        seconds = time.monotonic() - start
        peak = max(peak, now)
        if not curve or seconds - curve[-1][0] >= 5:
            curve.append([round(seconds, 1), now])
        time.sleep(0.05)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - start, peak, curve


PROGRAM = """
import json, sys
from hasten.core.config import parse
from hasten.data.config import DataConfig
from hasten.data.prepare import prepare
prepared = prepare(parse(DataConfig, json.loads(sys.argv[1]), "bench"))
"""


def main() -> None:
    """Write the text, prepare it, and report."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--megabytes", type=int, default=2_000)
    arguments.add_argument("--vocab-size", type=int, default=8_192)
    arguments.add_argument("--save", type=Path, help="where to keep the result")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="hasten-prepare-") as folder:
        text, cache = Path(folder, "text"), Path(folder, "cache")
        text.mkdir()
        copies = write_text(text, options.megabytes)
        size = sum(path.stat().st_size for path in text.iterdir())
        data = {"sources": [str(text)], "tokenizer": {"vocab_size": options.vocab_size}, "cache": str(cache)}
        seconds, peak, curve = watch([sys.executable, "-c", PROGRAM, json.dumps(data)])
        again, _, _ = watch([sys.executable, "-c", PROGRAM, json.dumps(data)])
        record = json.loads(next(cache.glob("*/prepared.json")).read_text(encoding="utf-8"))
    result = {
        "bench": "prepare_memory",
        "text_bytes": size,
        "peak_resident_bytes": peak,
        "seconds": round(seconds, 1),
        "megabytes_per_second": round(size / 1e6 / seconds, 2),
        "second_run_seconds": round(again, 1),
        "documents": record["clean"]["documents"],
        "planted_near_copies": copies,
        "dropped": {rule: entry["documents"] for rule, entry in record["clean"]["dropped"].items()},
        "splits": record["splits"],
        "resident_bytes_by_second": curve,
        "environment": environment(),
    }
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.save, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
