"""Files and folders that are whole or absent: what a crash at any instant must leave behind.

A folder is built under a temporary name beside its final place; every file is flushed to the disk;
a manifest with the size and digest of each file is written last; then one rename publishes it.

The digest is XXH3-128, which finds accidents at the speed of memory.  Against somebody who forges a
folder no unsigned digest helps, so readers of published files still take no length or type on trust.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
ASIDE = f"{TEMPORARY}aside-"
Record = list[Any]
"""[bytes, digest] of a file, as a manifest has it."""
CHUNK_BYTES = 1 << 20  # large enough that a busy main thread is asked for the interpreter lock rarely


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader sees the old content or the new, never half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """`write_text` of bytes."""
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def chunks(path: Path) -> Iterator[memoryview]:
    """A file's bytes, one reused buffer at a time."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            yield buffer[:size]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes: a name for its content."""
    state = hashlib.sha256()
    for chunk in chunks(path):
        state.update(chunk)
    return state.hexdigest()


def digest(path: Path) -> str:
    """Hexadecimal XXH3-128 of a file's bytes: what a manifest vouches for."""
    state = xxhash.xxh3_128()
    for chunk in chunks(path):
        state.update(chunk)
    return state.hexdigest()


def fingerprint(value: object) -> str:
    """Sixteen hexadecimal digits that name a JSON-like value: equal values, equal names."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def contents(folder: Path) -> list[Path]:
    """Every file below `folder` except its manifest, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


@contextmanager
def publish(final: Path, note: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder; when the block succeeds, make it appear as `final`, verified and whole.

    The manifest holds `note` (any JSON) and {relative path: [bytes, digest]} of each file.  If
    anything raises before the folder is in its place, the temporary folder is removed and nothing
    else has changed.
    """
    temporary = begin(final)
    try:
        yield temporary
        finish(temporary, final, note or {})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def begin(final: Path) -> Path:
    """An empty temporary folder beside `final`, to be filled, by several processes if need be."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(final)
    temporary.mkdir()
    return temporary


def finish(
    temporary: Path, final: Path, note: dict[str, Any], known: Mapping[str, Record] | None = None
) -> None:
    """Make a filled folder appear as `final`; `known` are files that their writers have `vouched` for."""
    write_manifest(temporary, note, known)
    replace_folder(temporary, final)
    sync(final.parent)


def beside(path: Path, mark: str = TEMPORARY) -> Path:
    """A name that nobody has, in the same folder as `path`, and that `sweep` knows."""
    return path.with_name(f"{path.name}{mark}{uuid.uuid4().hex[:8]}")


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; a folder that was there is moved aside first and removed last.

    A crash between the two renames leaves the old folder aside, from where `sweep` brings it back.
    """
    if not final.exists():
        os.rename(new, final)
        return
    aside = beside(final, ASIDE)
    os.rename(final, aside)
    try:
        os.rename(new, final)
    except BaseException:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a published folder: from the first instant it is gone, whatever interrupts the rest."""
    temporary = beside(folder)
    os.rename(folder, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Undo what interrupted calls left in `folder`: drop the temporary, bring back what was moved aside."""
    for path in sorted(folder.glob(f"*{TEMPORARY}*")):
        final = path.with_name(path.name.partition(TEMPORARY)[0])
        if ASIDE in path.name and not final.exists():
            os.rename(path, final)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_manifest(folder: Path, note: dict[str, Any], known: Mapping[str, Record] | None = None) -> None:
    """Flush everything below `folder` that is not `known`, then write the manifest that vouches for all."""
    files = {path.relative_to(folder).as_posix(): path for path in contents(folder)}
    records = {name: (known or {}).get(name) or vouched(path) for name, path in files.items()}
    for directory in (path for path in folder.rglob("*") if path.is_dir()):
        sync(directory)
    write_text(folder / MANIFEST, manifest_text(note, records))


def vouched(path: Path) -> Record:
    """What a manifest says of a file, once it is flushed to the disk."""
    sync(path)
    return [path.stat().st_size, digest(path)]


def manifest_text(note: dict[str, Any], files: dict[str, Record]) -> str:
    """The one spelling of a manifest; it carries a fingerprint of itself, so no byte of it can change."""
    body = {"note": note, "files": files}
    return json.dumps({**body, "fingerprint": fingerprint(body)}, indent=2, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder, or None where it is missing or not as it was written."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        untouched = text == manifest_text(manifest["note"], manifest["files"])
        typed = isinstance(manifest["note"], dict) and all(
            isinstance(size, int) and isinstance(code, str) for size, code in manifest["files"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return manifest if untouched and typed else None


def damage(folder: Path) -> str | None:
    """What is wrong with a published folder, in a few words, or None if every byte is as written."""
    return misplaced(folder) or changed(folder)


def misplaced(folder: Path) -> str | None:
    """As `damage`, by the names and sizes of the files alone."""
    if not folder.is_dir():
        return "there is no such folder"
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    recorded: dict[str, Record] = manifest["files"]
    found = {path.relative_to(folder).as_posix() for path in contents(folder)}
    for name in sorted(found ^ set(recorded)):
        return f"{name} is {'not in the manifest' if name in found else 'missing'}"
    return next(filter(None, (resized(folder, name, size) for name, (size, _) in recorded.items())), None)


def resized(folder: Path, name: str, size: int) -> str | None:
    """What is wrong with the size of one file of a folder."""
    try:
        actual = (folder / name).stat().st_size
    except OSError:
        return f"{name} is missing"
    return None if actual == size else f"{name} has {actual:,} bytes instead of {size:,}"


def changed(folder: Path, names: Iterable[str] | None = None) -> str | None:
    """As `damage`, of these files alone, or of all in the manifest: where many read a folder, each a part."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    recorded: dict[str, Record] = manifest["files"]
    names = sorted(recorded if names is None else names)
    for name in names:
        if name not in recorded:
            return f"{name} is not in the manifest"
        if problem := resized(folder, name, recorded[name][0]):
            return problem
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, actual in zip(names, pool.map(digest, [folder / name for name in names]), strict=True):
            if actual != recorded[name][1]:
                return f"{name} does not match the digest in {MANIFEST}"
    return None
