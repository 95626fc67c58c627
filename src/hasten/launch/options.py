"""What `hasten train` may be told about processes and machines, and how many processes that makes here."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from hasten.core.config import Config, override, parse
from hasten.core.errors import ConfigError
from hasten.parallel.config import ParallelConfig
from hasten.parallel.grid import degrees_of


class LaunchConfig(Config):
    """Words of `hasten train` and `hasten journey` that are about starting it, not about the run."""

    nodes: PositiveInt = Field(1, description="machines that take part; give the same command on each")
    meet: str | None = Field(
        None, description="HOST:PORT where machines find each other; HOST is one of them, seen by all"
    )
    processes: PositiveInt | None = Field(
        None, description="to start on each machine; by default one a GPU, or as the degrees say"
    )
    restarts: NonNegativeInt = Field(
        3, description="in a row that bring no new checkpoint, before it gives up"
    )
    stopped: Annotated[int, Field(ge=0, le=255)] = Field(
        0,
        description="exit code of a training that was asked to stop and saved: a scheduler may want another",
    )


def split_words(words: Sequence[str]) -> tuple[LaunchConfig, list[str]]:
    """The launch settings among a command's words, and the other words.

    Raises ConfigError where machines have no place to meet.
    """
    own = [word for word in words if word.partition("=")[0] in LaunchConfig.model_fields and "=" in word]
    config = parse(LaunchConfig, override({}, [quoted(word) for word in own]), "hasten train")
    if config.nodes > 1 and config.meet is None:
        raise ConfigError(
            "nodes is more than 1 and meet is missing; write meet=HOST:29400 with the name or address of one"
            " of the machines, the same on all"
        )
    if config.meet is not None:
        check_address(config.meet)
    return config, [word for word in words if word not in own]


def quoted(word: str) -> str:
    """`meet=10.0.0.1:29400` as YAML text: a host is no number."""
    key, _, value = word.partition("=")
    return f'{key}="{value}"' if key == "meet" else word


def check_address(meet: str) -> None:
    """Refuse what is not HOST:PORT."""
    host, _, port = meet.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"meet is '{meet}'; write HOST:PORT with a port from 1 to 65535: meet=10.0.0.1:29400"
        )


def gpus_here(device: str) -> int:
    """GPUs that processes of this machine can have, one each; 0 where they are to run on the CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return 0
    return 1 if device.startswith("cuda:") else torch.cuda.device_count()


def processes_here(parallel: ParallelConfig, options: LaunchConfig, gpus: int) -> int:
    """How many processes this machine is to start: one a GPU, or as many as the degrees make up.

    Raises ConfigError where the degrees do not fit the machines and their GPUs.
    """
    number = options.processes or by_degrees(parallel, options.nodes, gpus)
    degrees_of(parallel, number * options.nodes)
    if gpus and number > gpus:
        raise ConfigError(
            f"parallel: {number} processes on each machine need as many GPUs and there"
            f" {'is' if gpus == 1 else 'are'} {gpus}; lower the degrees, add machines (nodes=), or write"
            " device=cpu"
        )
    return number


def by_degrees(parallel: ParallelConfig, nodes: int, gpus: int) -> int:
    """Processes on each machine where nobody says: all GPUs for `data: auto`, on CPUs what is needed."""
    if parallel.data == "auto":
        return gpus or -(-parallel.model_devices // nodes)
    total = parallel.data * parallel.model_devices
    if total % nodes:
        raise ConfigError(
            f"parallel: {total} processes cannot be shared equally by {nodes} machines; change the degrees,"
            " or nodes"
        )
    return total // nodes
