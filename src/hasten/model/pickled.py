"""Weights that PyTorch pickled, read only where somebody asks for it, and then without running any of it.

A pickle is a program.  Three walls stand between it and us: the archive is checked (nothing compressed, no
byte more than the file has); the program is read as data and refused for any function but the few that
rebuild a plain tensor; and `torch.load`, of torch 2.6 or later, gets `weights_only=True` (CVE-2025-32434).
"""

import pickletools
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError

FIRST_TORCH = (2, 6)
MAX_PROGRAM_BYTES = 64 << 20
"""A tensor takes about 200 bytes of the pickle."""
ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in "Float Half BFloat16 Double Long Int Short Char Byte Bool".split()),
}
"""What a pickle of plain tensors calls; sparse, quantized and subclassed tensors call more."""
REFUSED_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
"""Other ways to name or call something, which `torch.save` does not write."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` file, on the CPU; `CheckpointError` for all else that it may hold."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < FIRST_TORCH:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot unpickle safely; install torch 2.6 or later, or take"
            " the safetensors of this model"
        )
    sizes = check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of typed storages, which old files name
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises whatever the file makes it raise
        reason = str(error).strip().partition("\n")[0][:200]
        raise CheckpointError(f"{path}: does not unpickle to tensors ({reason}); take safetensors") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise CheckpointError(f"{path}: holds no mapping of names to tensors; take safetensors")
    for name, value in values.items():
        if problem := strangeness(value):
            raise CheckpointError(f"{path}: {name[:80]!r} {problem}; take the safetensors of this model")
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values.values()}
    if not Counter(held.values()) <= sizes + Counter({0: len(held)}):
        raise CheckpointError(f"{path}: a tensor claims more numbers than its entry has; fetch it again")
    return dict(values)


def strangeness(value: Any) -> str | None:
    """What keeps `value` from being a plain tensor whose numbers are in the file, or None."""
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(value).__name__} and no tensor"
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        return f"is no dense tensor but {value.layout} on {value.device}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"claims {value.numel():,} numbers, more than the file holds of it"
    return None


def check_archive(path: Path) -> Counter[int]:
    """Refuse an archive that unpacks to more than it is, and a program that calls what it should not.

    Returns the sizes of the entries, each of which holds the numbers of one storage.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            check_entries(path, entries)
            programs = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM_BYTES:
                raise CheckpointError(
                    f"{path}: holds {len(programs)} data.pkl, or a huge one; fetch it again"
                )
            program = archive.read(programs[0])
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError):
        raise CheckpointError(
            f"{path}: is no archive of torch.save since torch 1.6; load and save it anew where it came from,"
            " or take safetensors"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    check_program(path, program)
    return Counter(entry.file_size for entry in entries if "/data/" in entry.filename)


def check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Every entry is stored as it is, and together they are no larger than the file."""
    total = 0
    for entry in entries:
        total += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(
                f"{path}: {entry.filename[:80]!r} is compressed, which torch.save never does"
            )
    if total > path.stat().st_size:
        raise CheckpointError(f"{path}: its entries claim {total:,} bytes, more than the file has")


def check_program(path: Path, program: bytes) -> None:
    """Read a pickle as data and refuse any name but those of `ALLOWED`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a damaged text
            for opcode, argument, _ in pickletools.genops(program):
                check_opcode(path, opcode.name, argument)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}: its pickle is damaged ({error}); fetch it again") from None


def check_opcode(path: Path, name: str, argument: Any) -> None:
    """Refuse one step of a pickle that plain weights do not take."""
    if name == "GLOBAL" and argument not in ALLOWED:
        raise CheckpointError(
            f"{path}: its pickle calls {str(argument)[:80].replace(' ', '.')}, which plain weights do not;"
            " take the safetensors of this model"
        )
    if name in REFUSED_OPCODES:
        raise CheckpointError(
            f"{path}: its pickle uses {name}, which torch.save does not write; take the safetensors of this"
            " model"
        )
