"""Which trainings are compared: the full set of techniques, the set without one, none of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from hasten.core import config
from hasten.core.allocator import allocator_environment
from hasten.ledger.techniques import TECHNIQUES, Technique
from hasten.recipe import Recipe
from hasten.report.frame import Words

Kind = Literal["full", "without", "with", "plain", "stair"]


@dataclass(frozen=True)
class Arm:
    """One way to train: with the techniques `on`, without those `off`; others stay as the recipe has them."""

    name: str
    kind: Kind
    on: tuple[str, ...]
    off: tuple[str, ...]
    technique: str | None = None  # that it differs in from the full set, or from the step below it
    learns: bool = False  # something else from the same steps than the full set does

    @property
    def overrides(self) -> list[str]:
        """Settings of the recipe."""
        chosen = [word for name in self.on for word in TECHNIQUES[name].on]
        # What is on speaks last: fp8 asks for a precision that being without bf16 would take back.
        return [word for name in self.off for word in TECHNIQUES[name].off] + chosen

    @property
    def patches(self) -> list[str]:
        """Techniques that are taken out inside the process."""
        return list(self.off)

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The variables of its process: what it is without is switched off, all else is on."""
        switches = {name for entry in TECHNIQUES.values() for name in entry.environment}
        own = {key: value for name in self.off for key, value in TECHNIQUES[name].environment.items()}
        kept = {k: v for k, v in given.items() if k not in switches or k == "OMP_NUM_THREADS"}
        return allocator_environment({**kept, **own})

    def recipe(self, base: Recipe, overrides: Iterable[str]) -> Recipe:
        """The recipe of one trial of this arm."""
        data = base.model_dump(mode="json")
        return config.parse(
            Recipe, config.override(data, [*self.overrides, *overrides]), f"bench, {self.name}"
        )


def missing(chosen: Mapping[str, Technique], recipe: Recipe, device: torch.device) -> dict[str, Words]:
    """The techniques that can't be had here, and why."""
    reasons = {name: entry.missing(recipe, device) for name, entry in chosen.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def make_arms(names: Iterable[str], device: torch.device, staircase: bool = False) -> list[Arm]:
    """The arms for the techniques `names`, which are all to be had here.

    First the full set, then without each of its members, then with each that is not one, then the plain arm
    without any; with `staircase` also the plain arm with one more technique at a time, in the table's order.
    """
    have = tuple(names)
    extra = tuple(name for name in have if TECHNIQUES[name].by_choice(device))
    full = tuple(name for name in have if name not in extra)
    base = tuple(name for name in full if TECHNIQUES[name].plain)
    arms = [Arm("full", "full", full, extra)]
    arms += [Arm(f"without {n}", "without", less(full, n), (*extra, n), n) for n in full]
    arms += [Arm(f"with {n}", "with", (*full, n), less(extra, n), n) for n in extra]
    if less(full, *base):
        arms.append(Arm("plain", "plain", base, less(have, *base)))
    arms += stairs(full, base, extra) if staircase else []
    return [replace(arm, learns=learners(arm.on) != learners(full)) for arm in arms]


def stairs(full: tuple[str, ...], base: tuple[str, ...], extra: tuple[str, ...]) -> Iterator[Arm]:
    """From the plain arm upwards; the last step leads to the full set, which is an arm already."""
    steps = less(full, *base)
    for number, name in enumerate(steps[:-1], start=1):
        yield Arm(f"stair {name}", "stair", (*base, *steps[:number]), (*extra, *steps[number:]), name)


def learners(names: Iterable[str]) -> set[str]:
    """Those that change what a step learns."""
    return {name for name in names if TECHNIQUES[name].learns}


def less(names: tuple[str, ...], *gone: str) -> tuple[str, ...]:
    """`names` without those `gone`."""
    return tuple(name for name in names if name not in gone)
