"""The floors of the house (docs/architecture.md): imports go down only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hasten

PACKAGE = Path(hasten.__file__).parent
FLOORS = [
    {"core"},
    {"ops", "tokenizer"},
    {"model", "data"},
    {"adapt", "objective", "parallel"},
    {"train", "generate", "compress"},
    {"evaluate", "serve", "report", "plan"},
    {
        "__main__",
        "cli",
        "verbs",
        "journey",
        "stages",
        "lines",
        "exchange",
        "overview",
        "recipe",
        "recipes",
        "lookup",
    }
    | {"ledger", "launch", "templates", "assembly", "claim", "compression", "defaults", "trust"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import of ours, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import out, from hasten.…"
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("hasten."))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    """A file may import its own folder and lower floors; never a neighbour, never upward."""
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here == "__init__":
        assert not list(imported(path)), "the package's root imports nothing: `hasten --help` must be quick"
        return
    assert here in FLOOR, f"{here} stands on no floor: add it to FLOORS and to docs/architecture.md"
    for line, name in imported(path):
        there = name.split(".")[1]
        allowed = there == here or FLOOR[there] < FLOOR[here] or FLOOR[here] == len(FLOORS) - 1
        assert allowed, (
            f"{path.name}:{line}: {here} (floor {FLOOR[here]}) may not import {there} (floor {FLOOR[there]})"
        )
