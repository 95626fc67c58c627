"""Files and folders that are whole or absent: what a crash at any instant must leave behind.

A folder is built under a temporary name beside its final place; every file is flushed to the disk;
a manifest with the size and SHA-256 of each file is written last; then one rename publishes it.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader sees the old content or the new, never half."""
    temporary = path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

    The manifest holds `note` (any JSON) and {relative path: [bytes, sha256]} of each file.  If the
    block raises, the temporary folder is removed and nothing else has changed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f"{final.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        write_manifest(temporary, note or {})
        replace_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(final.parent)


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; a folder that was there is moved aside first and removed last."""
    aside = final.with_name(f"{final.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")
    if final.exists():
        os.rename(final, aside)
    os.rename(new, final)
    shutil.rmtree(aside, ignore_errors=True)


def write_manifest(folder: Path, note: dict[str, Any]) -> None:
    """Flush every file below `folder`, then write the manifest that vouches for them."""
    files = {}
    for path in contents(folder):
        sync(path)
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, sha256(path)]
    for directory in {path.parent for path in contents(folder)}:
        sync(directory)
    write_text(folder / MANIFEST, manifest_text(note, files))


def manifest_text(note: dict[str, Any], files: dict[str, list[Any]]) -> str:
    """The one spelling of a manifest; it carries a fingerprint of itself, so no byte of it can change."""
    body = {"note": note, "files": files}
    return json.dumps({**body, "fingerprint": fingerprint(body)}, indent=2, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder, or None where it is missing or not as it was written."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        untouched = text == manifest_text(manifest["note"], manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return manifest if untouched else None


def damage(folder: Path) -> str | None:
    """What is wrong with a published folder, in a few words, or None if every byte is as written."""
    if not folder.is_dir():
        return "there is no such folder"
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    found = {path.relative_to(folder).as_posix() for path in contents(folder)}
    for name in sorted(found ^ set(manifest["files"])):
        return f"{name} is {'not in the manifest' if name in found else 'missing'}"
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if sha256(path) != digest:
            return f"{name} does not match its SHA-256"
    return None


def sweep(folder: Path) -> None:
    """Remove what interrupted `publish` and `write_text` calls left in `folder`."""
    for path in folder.glob(f"*{TEMPORARY}*") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
