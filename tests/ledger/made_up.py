"""A ledger of made-up trials whose every ratio is known."""

from typing import Any

import torch

from hasten.ledger.arms import make_arms
from hasten.ledger.figures import make_rows

CPU = torch.device("cpu")
NAMES = ("bf16", "kernels", "compile", "attention", "prefetch", "muon", "block")
SLOWER = {
    "full": 1.0,
    "without bf16": 2.1,
    "without kernels": 1.5,
    "with compile": 0.97,
    "without attention": 1.3,
    "without prefetch": 1.004,
    "without muon": 0.95,
    "without block": 1.1,
    "plain": 3.2,
    "stair bf16": 1.9,
    "stair kernels": 1.6,
    "stair attention": 1.4,
    "stair prefetch": 1.3,
    "stair muon": 1.1,
}
LEARNING = {"full": 1.0, "without muon": 2.5, "without block": 1.4, "plain": 4.0}
DRIFT = (1.0, 0.8, 1.25)
"""How fast the machine was in each round: it must cancel."""
FULL_PACE = 10_000.0


def curve(slower: float, drift: float) -> list[list[float]]:
    """A loss that falls from 8 by 1 every 10 s, on a machine and with a method so much slower."""
    seconds = [10 * n * slower / drift for n in range(5)]
    return [[second, 8.0 - n] for n, second in enumerate(seconds) if second <= 41 / drift]


def trials(repeats: int = 3) -> list[dict[str, Any]]:
    """Trials of every arm in `repeats` rounds; one in ten of an arm's own noise, the same up and down."""
    found = []
    for number in range(repeats):
        noise = (1.0, 1.05, 1 / 1.05)[number]
        for arm, slower in SLOWER.items():
            own = noise if arm != "full" else 1.0
            pace = FULL_PACE * DRIFT[number] / (slower * own)
            paces = [[1, pace / 9], [2, pace / 2], [3, pace], [4, pace * 0.9], [5, pace * 1.1]]
            memory = int(5e8 * slower)
            result = {"paces": paces, "peak_memory": memory, "validation": []}
            kind = "learning" if arm in LEARNING and arm not in ("full", "plain") else "pace"
            found.append(record(arm, kind, number, result | learned(arm, number)))
            if arm in ("full", "plain"):
                found.append(record(arm, "learning", number, result | learned(arm, number)))
    return found


def learned(arm: str, number: int) -> dict[str, Any]:
    """What a trial adds where it is one of learning."""
    return {"validation": curve(LEARNING[arm], DRIFT[number])} if arm in LEARNING else {}


def record(arm: str, purpose: str, number: int, result: dict[str, Any]) -> dict[str, Any]:
    """One trial as ledger.json has it."""
    return {
        "arm": arm,
        "purpose": purpose,
        "round": number,
        "seed": number,
        "seconds": 9.0,
        "cores_used_by_others": 0.02,
        "result": result,
    }


def ledger(repeats: int = 3, busy: float = 0.02) -> dict[str, Any]:
    """All that ledger.json holds."""
    arms = make_arms(NAMES, CPU, staircase=True)
    made = trials(repeats)
    made[0]["cores_used_by_others"] = busy
    gigabytes = {f"{what}_{who}": 2e10 for what in ("copy", "read") for who in ("one_thread", "all_threads")}
    return {
        "environment": {
            "hasten": "0.1.0",
            "commit": "abc1234",
            "torch": "2.13.0+cpu",
            "processor": "AMD EPYC <9R14>",
            "gpu": None,
        },
        "machine": {
            "device": "cpu",
            "cores": 2,
            "threads": 2,
            "memory": 8 * 10**9,
            "peak": {"fp32": 1.7e11, "bf16": 4.2e11, "int8": 8.4e11},
            "bandwidth": gigabytes,
            "cores_used_by_others": 0.01,
        },
        "recipe": {},
        "arms": [],
        "missing": {"fp8": ("needs a GPU", "需要 GPU")},
        "failed": {"without allocator": "Killed <by> the kernel"},
        "rows": make_rows(arms, made),
        "trials": made,
    }
