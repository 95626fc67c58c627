"""Vectors of texts for a person: where the texts come from, where the vectors go, which are near.

Letters in shapes: N texts, D model width.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.numpy import save

from hasten.core.console import say
from hasten.core.errors import ConfigError, DataError
from hasten.core.files import write_bytes
from hasten.core.runtime import choose_device
from hasten.evaluate.embed import EmbedConfig, embed, normalized
from hasten.evaluate.pooling import read_settings
from hasten.train.load import load_model
from hasten.train.restore import checkpoint_in

SUFFIXES = (".npy", ".safetensors", ".json")
SHOWN = 16
"""A table of more texts than this is wider than a terminal."""


def embed_texts(source: Path, config: EmbedConfig) -> np.ndarray:
    """The vectors [N, D] of the texts that `config` names, by the model in `source`, shown and written."""
    texts = read_texts(config)
    check_output(config, len(texts))
    folder = checkpoint_in(source)
    settings = read_settings(folder)
    model, tokenizer = load_model(folder, choose_device(config.device))
    if tokenizer is None:
        raise ConfigError(f"{folder}: has no tokenizer.json; put the model's own beside its weights")
    if config.pooling is None and settings.pooling is None:
        say(f"{folder} says nothing of pooling: the mean of all states is taken, or write pooling=first")
    vectors = embed(model, tokenizer, texts, config, settings)
    if len(texts) <= SHOWN:
        show_cosines(texts, vectors)
    if config.output is not None:
        write_vectors(config.output, texts, vectors)
    return vectors


def cosines(vectors: np.ndarray) -> np.ndarray:
    """The cosine of every two vectors: [N, D] -> [N, N] float64."""
    units = normalized(vectors.astype(np.float64))
    return units @ units.T


def read_texts(config: EmbedConfig) -> list[str]:
    """The texts given and those of the file, in this order."""
    texts = [*config.texts, *(read_lines(config.file) if config.file else [])]
    if not texts:
        raise ConfigError(
            'there is nothing to embed; write texts=\'["a text", "another"]\' or file=texts.txt'
        )
    return texts


def read_lines(path: Path) -> list[str]:
    """A text a line, or the `text` of a JSON object a line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); give another file") from None
    lines = lines[:-1] if lines[-1] == "" else lines
    if path.suffix != ".jsonl":
        return [line.removesuffix("\r") for line in lines]
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise DataError(f'{path}: line {number} should be an object such as {{"text": "..."}}')
        texts.append(text)
    return texts


def check_output(config: EmbedConfig, count: int) -> None:
    """Refuse, before anything is computed, what could neither be shown nor written."""
    if config.output is None and count > SHOWN:
        raise ConfigError(f"a table of {count:,} texts is too wide; write output=vectors.npy")
    if config.output is not None and config.output.suffix not in SUFFIXES:
        raise ConfigError(f"output: {config.output} should end with {', '.join(SUFFIXES)}")


def write_vectors(path: Path, texts: Sequence[str], vectors: np.ndarray) -> None:
    """Write `vectors` [N, D] in the format of the suffix, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, spelled(path.suffix, texts, vectors))
    except OSError as error:
        raise ConfigError(f"output: {path} cannot be written ({error.strerror}); write another") from None
    say(f"{path}: {vectors.shape[0]:,} vectors of {vectors.shape[1]:,} numbers")


def spelled(suffix: str, texts: Sequence[str], vectors: np.ndarray) -> bytes:
    """The bytes of the file."""
    if suffix == ".json":
        rows = [{"text": t, "vector": v} for t, v in zip(texts, vectors.tolist(), strict=True)]
        return (json.dumps(rows, ensure_ascii=False) + "\n").encode()
    if suffix == ".safetensors":
        return save({"vectors": vectors})
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    return buffer.getvalue()


def show_cosines(texts: Sequence[str], vectors: np.ndarray) -> None:
    """Print the cosine of every two texts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("text", overflow="ellipsis", no_wrap=True, max_width=40, min_width=8)
    for number in range(1, len(texts) + 1):
        table.add_column(str(number), justify="right", no_wrap=True, min_width=len("-0.1234"))
    for number, (text, row) in enumerate(zip(texts, cosines(vectors), strict=True), start=1):
        table.add_row(str(number), Text(text), *(f"{value:.4f}" for value in row))
    Console().print(table)
