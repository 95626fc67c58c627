"""Everything that can be compared: a name, the worker that runs it, and its settings."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import torch

from hasten.train.engine import choose_compile

HOUR = 3600.0


@dataclass(frozen=True)
class System:
    """One arm of the comparison."""

    name: str
    family: str  # the worker is peers/with_FAMILY.py
    options: dict[str, Any]
    tuned_allocator: bool = False  # a peer with the allocator settings that hasten gives itself

    @property
    def ours(self) -> bool:
        """Whether it is hasten."""
        return self.family == "hasten"

    @property
    def peer(self) -> bool:
        """Whether it is another library, in the peers' environment."""
        return self.family not in ("hasten", "peak")


HASTEN, DEFAULTS = "hasten", "trainer gpt2 fp32"
"""The arm that ratios are of, and the one that is a Trainer with nothing set."""

PEAK = System("matrix peak", "peak", {}, tuned_allocator=True)


def ours(compiles: bool) -> list[System]:
    """hasten as `hasten train` would run for an hour; the other engine; its default optimizer, Muon."""
    other = "hasten eager" if compiles else "hasten compile"
    return [
        System(HASTEN, "hasten", {"optimizer": "adamw", "compiled": compiles}),
        System(other, "hasten", {"optimizer": "adamw", "compiled": not compiles}),
        System("hasten muon", "hasten", {"optimizer": "muon", "compiled": compiles}),
    ]


def trainer(model: str) -> list[System]:
    """transformers' Trainer: its defaults, and its settings for speed."""
    settings = {"fp32": (False, False), "bf16": (True, False), "bf16 compile": (True, True)}
    return [
        System(f"trainer {model} {name}", "trainer", {"model": model, "bf16": bf16, "compiled": compiled})
        for name, (bf16, compiled) in settings.items()
    ]


PEERS = [
    *trainer("gpt2"),
    *trainer("llama"),
    System("litgpt bf16 compile", "litgpt", {"precision": "bf16-mixed", "compiled": True}),
    System("lightning gpt2 bf16 compile", "lightning", {"precision": "bf16-mixed", "compiled": True}),
]


def all_systems(*, with_allocator: bool) -> list[System]:
    """Every arm there is; `with_allocator` adds the quick peers once more with our allocator settings."""
    compiles, _ = choose_compile("auto", torch.device("cpu"), HOUR)
    tuned = [
        replace(peer, name=f"{peer.name} +allocator", tuned_allocator=True)
        for peer in PEERS
        if "bf16" in peer.name
    ]
    return [*ours(compiles), *PEERS, *(tuned if with_allocator else [])]


def chosen(systems: list[System], patterns: Iterable[str]) -> list[System]:
    """Those whose name fits one of the patterns, in the order of the table; all without a pattern."""
    wanted = list(patterns)
    unknown = [p for p in wanted if not any(fnmatch(s.name, p) for s in systems)]
    if unknown:
        names = ", ".join(f"'{system.name}'" for system in systems)
        raise SystemExit(f"--systems: no system is called {unknown[0]!r}; there are {names}")
    return [s for s in systems if not wanted or any(fnmatch(s.name, p) for p in wanted)]
