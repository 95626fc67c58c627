"""Files from strangers: JSON that says one thing only, and names that stay inside their folder.

What is read here may have been made to harm: every size is bounded before anything is allocated for it.
"""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from hasten.core.errors import CheckpointError, HastenError

MAX_JSON_BYTES = 64 << 20
"""The largest index of published weights is below 10 MB."""
MAX_NAME = 1000
"""Characters of a key."""
MAX_DIGITS = 20
"""Of a whole number: enough for 64 bits."""


class NotJsonError(ValueError):
    """What is wrong with a JSON text, in a few words."""


def read_json(path: Path, what: str = "a Hugging Face folder has it") -> dict[str, Any]:
    """The mapping in a JSON file of a stranger; `what` ends the complaint that it is not there."""
    try:
        if not path.is_file():
            raise FileNotFoundError(2, "there is no such file")
        large = path.stat().st_size > MAX_JSON_BYTES  # asked first: a read takes the memory that it may need
        data = b"" if large else path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {what}") from None
    if large:
        raise CheckpointError(f"{path}: has more than {MAX_JSON_BYTES >> 20} MiB, which none of its kind has")
    return mapping(data, str(path))


def mapping(data: bytes, where: str, kind: type[HastenError] = CheckpointError) -> dict[str, Any]:
    """The mapping that `data` spells; anything else is an error of `kind` that begins with `where`."""
    try:
        values = parse(data)
    except NotJsonError as error:
        raise kind(f"{where}: is not JSON ({error}); fetch it again from its source") from None
    if not isinstance(values, dict):
        raise kind(f"{where}: should hold a mapping, got {type(values).__name__}")
    return values


def parse(data: bytes) -> Any:
    """JSON without keys given twice, numbers beyond 64 bits, NaN, infinities and bottomless nesting."""
    try:
        values = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=no_constant,
            parse_int=whole,
            parse_float=finite,
        )
        if b"\\u" in data:  # only an escape can spell half of a pair
            json.dumps(values, ensure_ascii=False).encode()
        return values
    except NotJsonError:
        raise
    except UnicodeDecodeError:
        raise NotJsonError("it is not UTF-8 text") from None
    except UnicodeEncodeError:
        raise NotJsonError("it holds half of a surrogate pair") from None
    except RecursionError:
        raise NotJsonError("it is nested too deeply") from None
    except ValueError as error:
        raise NotJsonError(str(error)) from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose keys are there once: of two, readers disagree on which one counts."""
    values = dict(pairs)
    if any(len(name) > MAX_NAME for name in values):
        raise NotJsonError(f"a key has more than {MAX_NAME:,} characters")
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise NotJsonError(f"the key {twice[:80]!r} is given twice")
    return values


def no_constant(word: str) -> NoReturn:
    """Refuse `NaN`, `Infinity`, `-Infinity`, which JSON does not have."""
    raise NotJsonError(f"{word} is no number of JSON")


def whole(digits: str) -> int:
    """A whole number of at most 64 bits."""
    if len(digits) > MAX_DIGITS:
        raise NotJsonError(f"a number has {len(digits)} digits")
    return int(digits)


def finite(digits: str) -> float:
    """A number that a float can hold."""
    value = float(digits)
    if not math.isfinite(value):
        raise NotJsonError(f"the number {digits[:MAX_DIGITS]} is beyond what a float can hold")
    return value


def file_inside(folder: Path, name: str, named_by: str) -> Path:
    """The file `name` of `folder`, refused where it leads outside, by its name or as a link.

    In the hub's cache (`models--owner--name/snapshots/REVISION`) files are links into `blobs` beside
    `snapshots`, and that far they may lead.  `named_by` begins the complaint.
    """
    if not name or name in (".", "..") or Path(name).name != name or set(name) & set("/\\\0"):
        raise CheckpointError(f"{named_by}: names {name[:200]!r}, which is not a file of this folder")
    return confined(folder / name, folder, named_by)


def confined(path: Path, folder: Path, named_by: str) -> Path:
    """`path`, an existing file below `folder`; refused where a link on its way leads outside."""
    try:
        real, root = path.resolve(), folder.resolve()
        present = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # names too long, links in a circle
        raise CheckpointError(f"{named_by}: {path.name[:200]!r} cannot be looked up ({error})") from None
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        root = root.parent.parent
    if not real.is_relative_to(root):
        raise CheckpointError(
            f"{path}: is a link that leads out of its folder; put the file itself there if you trust it"
        )
    if not present:
        raise CheckpointError(f"{path}: there is no such file; fetch the folder again")
    return path
