"""Bases and rows small enough to fine-tune in a test."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.model.config import ModelConfig
from hasten.model.interop import save_hugging_face
from hasten.model.transformer import build
from hasten.recipe import Recipe
from hasten.tokenizer.tokenizer import Tokenizer

ENCODER = ModelConfig(
    kind="encoder", vocab_size=260, dim=32, num_layers=2, num_heads=2, max_positions=128,
    norm="layer", norm_place="after", norm_eps=1e-12, activation="gelu", position="learned", head="none",
    num_token_types=2, embedding_norm="learned", attention_bias=True, out_bias=True, ffn_bias=True,
)  # fmt: skip
DECODER = ModelConfig(
    vocab_size=260, dim=32, num_layers=2, num_heads=2, max_positions=128, activation="swiglu"
)
WORDS = {
    "red": "colour",
    "blue": "colour",
    "green": "colour",
    "one": "number",
    "two": "number",
    "six": "number",
}


def save_base(folder: Path, config: ModelConfig, byte_tokenizer: Callable[..., Tokenizer]) -> Path:
    """A folder in the hub's layout with a model of this shape and a tokenizer of bytes."""
    save_hugging_face(build(config, 0), folder)
    byte_tokenizer("<|end|>", "<s>", "</s>", "<pad>").save(folder)
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(tmp_path: Path) -> dict[str, Any]:
    """Rows whose label is that of their one word."""
    rows = [
        {"text": f"{filler} {word} {number}", "label": label}
        for word, label in WORDS.items()
        for number, filler in enumerate(("see", "a", "this is", "take", "my", "no", "the", "such"))
    ]
    held_out = [{"text": f"all the {word}", "label": label} for word, label in WORDS.items()]
    split = {"validation": 0, "test": 0, "validation_sources": [lines(tmp_path / "held-out.jsonl", held_out)]}
    return {"task": {"kind": "labelled"}, "sources": [lines(tmp_path / "rows.jsonl", rows)], "split": split}


def chats(tmp_path: Path) -> dict[str, Any]:
    """Questions that are answered with their word twice."""
    words = [f"{first}{second}" for first in "abcdef" for second in "uvwxyz"]
    rows = [{"prompt": f"say {word}", "completion": word * 2} for word in words]
    split = {"validation": 0, "test": 0, "test_sources": [lines(tmp_path / "asked.jsonl", rows[:3])]}
    return {
        "task": {"kind": "chat", "template": "plain"},
        "sources": [lines(tmp_path / "chats.jsonl", rows)],
        "split": split,
        "waive": ["leak", "duplicates"],
    }


def preferred(tmp_path: Path) -> dict[str, Any]:
    rows = [{"prompt": f"what is {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(12)]
    split = {"validation": 0.2, "test": 0.2}
    task = {"kind": "preferences", "template": "plain"}
    return {"task": task, "sources": [lines(tmp_path / "pairs.jsonl", rows)], "split": split}


def spans(tmp_path: Path) -> dict[str, Any]:
    def row(word: str, n: int) -> dict[str, Any]:
        context = f"{'x' * (n % 5)} the word is {word} ."
        return {
            "question": f"word {n}",
            "context": context,
            "answers": [word],
            "answer_starts": [context.index(word)],
        }

    rows = [row(word, n) for n, word in enumerate([*WORDS] * 3)]
    split = {"validation": 0, "test": 0, "test_sources": [lines(tmp_path / "q.jsonl", [row("gold", 3)])]}
    return {
        "task": {"kind": "spans", "stride_tokens": 16},
        "sources": [lines(tmp_path / "spans.jsonl", rows)],
        "split": split,
    }


TASKS = {"labelled": labelled, "chat": chats, "preferences": preferred, "spans": spans}


def like_its_own(recipe: Recipe, tmp_path: Path) -> dict[str, Any]:
    """`data` of a shipped recipe's task with rows of its columns, without the files that it names."""
    assert recipe.data is not None and recipe.data.task is not None
    task = recipe.data.task
    made = TASKS[task.kind](tmp_path)
    if task.kind == "chat" and task.prompt is not None:
        columns = re.findall(r"\{(\w+)\}", f"{task.prompt}{task.answer}")
        rows = [{column: f"{column} number {n}" for column in columns} for n in range(36)]
        made["sources"] = [lines(tmp_path / "columns.jsonl", rows)]
    if task.kind == "labelled" and task.group_field is not None:
        names = task.text_field, task.label_field, task.group_field
        rows = [
            dict(zip(names, (f"{other} {word} {n}", word, group), strict=True))
            for word, group in WORDS.items()
            for n, other in enumerate(WORDS)
        ]
        made["sources"] = [lines(tmp_path / "groups.jsonl", rows)]
    return {
        "sources": made["sources"],
        "waive": ["leak", "duplicates"],
    }
