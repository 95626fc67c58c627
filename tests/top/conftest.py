"""A small text and a small recipe that go the whole way in a few seconds."""

import json
import random
from pathlib import Path

import pytest
from tiny_texts import tiny_data

WORDS = "the a an red blue old young cat dog bird house tree runs sees likes finds of in and but".split()


@pytest.fixture(scope="session")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of made-up sentences, and ten Python files."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    for number in range(60):
        sentences = [" ".join(draw.choices(WORDS, k=9)) + "." for _ in range(40)]
        (folder / f"story-{number:02}.txt").write_text("\n".join(sentences))
    for number in range(30):
        names = draw.sample(WORDS[2:12], 4)
        body = "\n\n".join(
            f"def {name}_{number}(x, y):\n    total = x + {number}\n    return total * y" for name in names
        )
        (folder / f"code_{number}.py").write_text(body + "\n")
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two columns of made-up sentences, the second the first backwards."""
    path, draw = tmp_path_factory.mktemp("pairs") / "pairs.tsv", random.Random(0)
    lines = [draw.choices(WORDS, k=draw.randint(3, 9)) for _ in range(400)]
    rows = "\n".join(f"{' '.join(line)}\t{' '.join(reversed(line))}" for line in lines)
    path.write_text(f"en\tde\n{rows}\n")
    return path


@pytest.fixture
def recipe(tmp_path: Path, text_files: Path) -> Path:
    """A recipe of a tiny model on them, with dropout, in its own folder."""
    settings = {
        "output": str(tmp_path / "run"),
        "data": tiny_data(text_files, tmp_path / "data"),
        "model": {
            "preset": "hasten-tiny",
            "dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "max_positions": 64,
            "dropout": 0.1,
        },
        "train": {
            "steps": 4,
            "batch_tokens": 128,
            "log_every": 1,
            "validation_tokens": 256,
            "checkpoint_every": 2,
        },
        "evaluate": {"max_bytes": 2000, "code": {"prompts": 4, "max_new_tokens": 8, "context_lines": 1}},
        "generate": {"prompts": ["the cat", "a dog"], "max_new_tokens": 8},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path
