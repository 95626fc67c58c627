"""From what a recipe names to documents: files found, told apart by extension, and read as streams."""

import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from itertools import count
from pathlib import Path
from typing import Any, Literal

from hasten.core.errors import DataError, MissingExtraError, did_you_mean
from hasten.data import formats
from hasten.data.config import GLOB, STDLIB, SourceConfig
from hasten.data.formats import BadLines, Reader, TextFields
from hasten.data.json_rows import json_rows
from hasten.data.tasks.protocol import TaskConfig
from hasten.data.tasks.records import RecordReader

PROSE = {".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".xml"}
# fmt: off
CODE = {
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala",
    ".swift", ".m", ".js", ".mjs", ".jsx", ".ts", ".tsx", ".css", ".php", ".rb", ".pl", ".lua", ".r",
    ".jl", ".hs", ".ml", ".ex", ".erl", ".clj", ".lisp", ".el", ".sh", ".bash", ".sql", ".yaml", ".yml",
    ".toml", ".cmake", ".f90", ".asm", ".s", ".v", ".vhd",
}
# fmt: on
ROWS = {
    ".jsonl": formats.jsonl_rows,
    ".ndjson": formats.jsonl_rows,
    ".csv": formats.csv_rows,
    ".tsv": formats.csv_rows,
    ".parquet": formats.parquet_rows,
    ".json": json_rows,
}
NAMED_ALONE = {".json"}
"""Read where they are named, and not in a folder, where they are mostly something else's settings."""
COMPRESSED = {".gz", ".zst"}
KNOWN = sorted(PROSE | CODE | ROWS.keys())
KNOWN_BELOW = sorted({*KNOWN} - NAMED_ALONE)
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """A text with a name that stays the same wherever the files are: the path below the source's root,
    with `:line` for a row and `#number` for a piece of a larger text."""

    id: str
    text: str
    source: str
    kind: Literal["prose", "code"] = "prose"


@dataclass(frozen=True)
class File:
    """A file of a source; `id` is its path relative to the source's root."""

    path: Path
    id: str

    @property
    def extension(self) -> str:
        """`.jsonl` of `rows.jsonl.gz`."""
        return extension(self.path)


def extension(path: Path) -> str:
    """What the file holds, by its name without the compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def documents(
    source: SourceConfig, bad: BadLines | None = None, task: TaskConfig | None = None
) -> Iterator[Document]:
    """Every document of `source`, by sorted file names; only the current one is held.

    Of a `task` a document is the record of a row, as JSON.
    """
    bad = bad or BadLines("error")
    read = TextFields(source.fields) if task is None else RecordReader(task)
    if source.hub is not None:
        rows = formats.text_of_rows(hub_rows(source), source.hub, read, bad)
        yield from (Document(f"{source.hub}:{line}", text, source.title) for line, text in rows)
    for file in files(source):
        yield from documents_of(file, source, read, bad)


def documents_of(file: File, source: SourceConfig, read: Reader, bad: BadLines) -> Iterator[Document]:
    """The documents in one file."""
    if read_rows := ROWS.get(file.extension):
        for line, text in read_rows(file.path, read, bad):
            yield Document(f"{file.id}:{line}", text, source.title)
        return
    if source.is_pairs or isinstance(read, RecordReader):
        what = "pairs are rows with two fields" if source.is_pairs else "a task reads rows with columns"
        raise DataError(f"{file.path}: holds text, and {what}; give {' '.join(sorted(ROWS))}")
    kind: Literal["prose", "code"] = "code" if file.extension in CODE else "prose"
    pieces = formats.pieces(formats.text_chunks(file.path), source.separator)
    first, second = next(pieces, ""), next(pieces, None)
    if second is None:
        yield Document(file.id, first, source.title, kind)
        return
    numbers = count()
    for piece in (first, second):
        yield Document(f"{file.id}#{next(numbers)}", piece, source.title, kind)
    for piece in pieces:
        yield Document(f"{file.id}#{next(numbers)}", piece, source.title, kind)


def files(source: SourceConfig) -> list[File]:
    """The files of `source`, sorted by their path below the source's root; none is opened."""
    places = [find(text) for text in source.paths]
    roots = list(dict.fromkeys(root for root, _ in places))
    found: dict[Path, str] = {}
    for root, paths in places:
        for path in paths:
            found.setdefault(path, (prefix(root, roots) / path.relative_to(root)).as_posix())
    return [File(path, name) for path, name in sorted(found.items(), key=lambda item: item[1])]


def prefix(root: Path, roots: list[Path]) -> Path:
    """What keeps the names below several roots apart: the root's own name, numbered where two are equal."""
    if len(roots) == 1:
        return Path()
    same = [other for other in roots if other.name == root.name]
    return Path(root.name if len(same) == 1 else f"{root.name}-{same.index(root)}")


def left_out(source: SourceConfig) -> dict[str, int]:
    """{extension: how many} of the files below the source's folders that are of no kind that is read."""
    folders = [Path(text).expanduser() for text in source.paths if text != STDLIB]
    paths = (path for folder in folders if folder.is_dir() for path in visible_below(folder))
    return dict(Counter(extension(path) or path.name for path in paths if extension(path) not in KNOWN_BELOW))


def text_bytes(source: SourceConfig) -> int | None:
    """About how much text there is, or None where sizes of files do not tell."""
    if source.hub:
        return None
    paths = [file.path for file in files(source)]
    if any(path.suffix.lower() in {*COMPRESSED, ".parquet"} for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


def find(text: str) -> tuple[Path, list[Path]]:
    """The root and the files that one entry of `paths` stands for."""
    if text == STDLIB:
        return standard_library()
    path = Path(text).expanduser()
    if path.is_dir():
        return path.absolute(), readable_below(path.absolute(), text)
    if path.exists():
        return path.absolute().parent, [checked(path.absolute(), text)]
    if GLOB.search(text):
        return matching(path.absolute(), text)
    near = did_you_mean(path.name, (p.name for p in path.parent.glob("*"))) if path.parent.is_dir() else ""
    raise DataError(f"{text}: there is no such file or folder.{near} Paths are read from {Path.cwd()}")


def checked(path: Path, text: str) -> Path:
    """A file that was named by itself: it must be of a known kind and hold something."""
    if extension(path) not in KNOWN:
        near = did_you_mean(extension(path), KNOWN)
        raise DataError(f"{text}: unknown extension '{extension(path)}'.{near} {kinds()}")
    if path.stat().st_size == 0:
        raise DataError(f"{text}: is empty; give a file with text in it")
    return path


def kinds() -> str:
    """The extensions that are read, as the end of a message."""
    rows, prose = " ".join(sorted(ROWS)), " ".join(sorted(PROSE))
    return f"Read are {prose}, program files, {rows}, each also as .gz or .zst"


def readable_below(folder: Path, text: str) -> list[Path]:
    """Every file of a known kind below `folder`."""
    paths = [path for path in visible_below(folder) if extension(path) in KNOWN_BELOW]
    if not paths:
        raise DataError(f"{text}: this folder holds no file that can be read. {kinds()}")
    return paths


def visible_below(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted, without those whose name, or folder's name, begins with a dot."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file()
    ]


def matching(pattern: Path, text: str) -> tuple[Path, list[Path]]:
    """The files that a glob matches, and the part of it before the first wildcard."""
    root = Path(*(part for part in pattern.parts[: first_wild(pattern.parts)]))
    paths = [Path(path) for path in sorted(glob(str(pattern), recursive=True)) if Path(path).is_file()]
    if not paths:
        near = did_you_mean(pattern.name, (p.name for p in root.glob("*"))) if root.is_dir() else ""
        raise DataError(
            f"{text}: matches no file.{near} Paths are read from {Path.cwd()}; ** crosses folders"
        )
    for path in paths:
        if extension(path) not in KNOWN:
            raise DataError(f"{text}: matches {path.name}, whose extension is not known. {kinds()}")
    return root, paths


def first_wild(parts: Iterable[str]) -> int:
    """How many parts of a path come before the first with a wildcard."""
    return next(number for number, part in enumerate(parts) if GLOB.search(part))


def standard_library() -> tuple[Path, list[Path]]:
    """The running interpreter's own Python source, without installed packages and tests."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.rglob("*.py")) if not NOT_LIBRARY & set(p.relative_to(root).parts)]
    if not paths:
        raise DataError(
            f"{STDLIB}: this interpreter keeps no .py files in {root}; give the path of some source code"
        )
    return root, paths


def hub_rows(source: SourceConfig) -> Iterator[dict[str, Any]]:
    """The rows of a hub data set, streamed."""
    try:
        from datasets import load_dataset  # noqa: PLC0415  an optional package
    except ImportError:
        raise MissingExtraError("datasets", "hub", f"the hub data set {source.hub}") from None
    try:
        yield from load_dataset(
            source.hub,
            source.hub_config,
            split=source.hub_split,
            revision=source.hub_revision,
            streaming=True,
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # what `datasets` raises when offline, unknown or gated
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"hub data set {source.hub}, split {source.hub_split}, cannot be read ({reason}); check its name"
            " and the network, or give files with `paths:`"
        ) from None
