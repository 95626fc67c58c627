"""The data section of recipes that go the whole way in a few seconds."""

from pathlib import Path
from typing import Any


def tiny_data(text_files: Path, cache: Path) -> dict[str, Any]:
    """Made-up texts in short rows, with a held-out part that is large enough to score."""
    return {
        "sources": [str(text_files)],
        "clean": {"near_duplicates": None, "repetition": False},
        "split": {"validation": 0.2, "test": 0.2},
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "row_tokens": 32,
        "cache": str(cache),
    }
