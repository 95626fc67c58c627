"""One system in a process of its own: python -m peers.worker FAMILY SHAPE OPTIONS, driven over stdin."""

import importlib
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from peers.machine import memory
from peers.shapes import SHAPES
from peers.turns import Voice

PACKAGES = ("torch", "hasten", "transformers", "accelerate", "lightning", "litgpt", "llama_cpp_python")


def main() -> None:
    """Import, say hello, and train until stdin ends."""
    family, shape, options = sys.argv[1:]
    voice = Voice()
    try:
        module = importlib.import_module(f"peers.with_{family}")
    except ModuleNotFoundError as error:
        voice.tell(missing=str(error))
        return
    voice.tell(baseline_bytes=memory("self")["VmRSS"], versions=versions())
    module.train(SHAPES[shape], voice, **json.loads(options))


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """What is installed here."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
