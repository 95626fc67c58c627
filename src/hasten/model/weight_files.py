"""Weights laid down as safetensors: in one file, or in several with an index."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from hasten.core.files import write_json
from hasten.model.weights import INDEX, WEIGHTS


def groups(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Names in order, cut into groups of at most `max_bytes`; a larger tensor is alone in its group."""
    result: list[list[str]] = [[]]
    room = max_bytes
    for name, size in sizes.items():
        if result[-1] and size > room:
            result.append([])
            room = max_bytes
        result[-1].append(name)
        room -= size
    return result


def write_shards(
    folder: Path,
    shards: list[list[str]],
    sizes: Mapping[str, int],
    tensor: Callable[[str], Tensor],
    on_tensor: Callable[[int, int], None],
) -> None:
    """One file, or several and an index; of the tensors only one file's are in memory at a time."""
    weight_map, done = dict[str, str](), 0
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            on_tensor(done, len(sizes))
            tensors[name], weight_map[name], done = tensor(name), file, done + 1
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(folder / INDEX, index)
