"""The weights in a Hugging Face folder: one file, or several with an index that is checked both ways."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.core.foreign import file_inside, read_json
from hasten.model.pickled import read_pickled
from hasten.model.safetensors_file import SafetensorsFile

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Weights(Mapping[str, Tensor]):
    """Tensors by name out of several files; those of a safetensors file are read when they are asked for."""

    def __init__(self, files: Mapping[Path, Mapping[str, Tensor]]) -> None:
        self.files = dict(files)
        self.holder: dict[str, Mapping[str, Tensor]] = {}
        for path, tensors in files.items():
            for name in tensors:
                if name in self.holder:
                    raise CheckpointError(f"{path}: holds '{name}', which another file of the folder has too")
                self.holder[name] = tensors

    @property
    def num_numbers(self) -> int:
        """How many numbers all tensors hold, which nothing is read for."""
        return sum(
            tensors.num_numbers
            if isinstance(tensors, SafetensorsFile)
            else sum(tensor.numel() for tensor in tensors.values())
            for tensors in self.files.values()
        )

    def __getitem__(self, name: str) -> Tensor:
        return self.holder[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.holder)

    def __len__(self) -> int:
        return len(self.holder)

    def __contains__(self, name: object) -> bool:
        return name in self.holder


def weights_in(folder: Path, pickle: bool = False) -> Weights:
    """All tensors of a folder; pickled ones only where there are no others and `pickle` says so."""
    if present(folder / WEIGHTS):
        path = file_inside(folder, WEIGHTS, str(folder))
        return Weights({path: SafetensorsFile(path)})
    if present(folder / INDEX):
        weight_map = read_index(folder, INDEX)
        files = {path: SafetensorsFile(path) for path in shards(folder, weight_map)}
        return checked(folder / INDEX, weight_map, files)
    name = next((name for name in (PICKLED, PICKLED_INDEX) if present(folder / name)), None)
    if name is None:
        raise CheckpointError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; hasten reads safetensors only")
    if not pickle:
        raise CheckpointError(
            f"{folder}: has its weights only in {name}, a pickle, which can hold a program; take the model's"
            " safetensors, or, if you trust whoever made it, `hasten import FOLDER pickle=true`"
        )
    if name == PICKLED:
        path = file_inside(folder, PICKLED, str(folder))
        return Weights({path: read_pickled(path)})
    weight_map = read_index(folder, PICKLED_INDEX)
    pickles = {path: read_pickled(path) for path in shards(folder, weight_map)}
    return checked(folder / name, weight_map, pickles)


def present(path: Path) -> bool:
    """Whether there is anything of that name, a link that leads nowhere included."""
    return path.exists() or path.is_symlink()


def read_index(folder: Path, name: str) -> dict[str, str]:
    """Which file holds which tensor."""
    path = file_inside(folder, name, str(folder))
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map; fetch the folder again")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{path}: '{tensor[:80]}' should be in a file, got {str(file)[:80]}")
    return weight_map


def shards(folder: Path, weight_map: dict[str, str]) -> list[Path]:
    """The files that an index names, each inside of the folder."""
    return [file_inside(folder, name, str(folder / INDEX)) for name in sorted(set(weight_map.values()))]


def checked(index: Path, weight_map: dict[str, str], files: Mapping[Path, Mapping[str, Tensor]]) -> Weights:
    """The tensors of `files`, which must be exactly where the index says."""
    held = {path.name: tensors for path, tensors in files.items()}
    for name, file in weight_map.items():
        if name not in held[file]:
            raise CheckpointError(
                f"{index}: says that {file} holds '{name}', which it does not; fetch them again"
            )
    for file, tensors in held.items():
        for name in tensors:
            if weight_map.get(name) != file:
                raise CheckpointError(f"{index}: does not name '{name}', which {file} holds; fetch it again")
    return Weights(files)
