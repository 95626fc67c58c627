"""When a training reached a score, and how much sooner than another: pure functions, tested on made-up runs.

A run is {"startup_seconds": from the process's start to the first step, "looks": [{"seconds": of the training
loop until then, "score"}], "loop_seconds", "peak_bytes"}, what the looks took left out of all.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Run = Mapping[str, Any]
WANTED = 2 / 3
"""Of a peer's time."""


def best(run: Run, *, higher: bool) -> float:
    """The best score of a run's looks."""
    return float((max if higher else min)(look["score"] for look in run["looks"]))


def reached(run: Run, score: float, *, higher: bool) -> dict[str, float] | None:
    """Seconds of the loop and of the process until a look found at least `score`; None where none did."""
    for look in run["looks"]:
        if look["score"] >= score if higher else look["score"] <= score:
            return {"loop": look["seconds"], "process": run["startup_seconds"] + look["seconds"]}
    return None


def beside(ours: Run, theirs: Run, *, higher: bool) -> dict[str, Any]:
    """The time to the best score that both reach, ours over theirs."""
    scores = best(ours, higher=higher), best(theirs, higher=higher)
    target = (min if higher else max)(scores)
    us, them = (reached(run, target, higher=higher) for run in (ours, theirs))
    assert us is not None and them is not None, "both reach the worse of their best scores"
    return {
        "target": target,
        "hasten_best": scores[0],
        "peer_best": scores[1],
        "hasten_seconds": us["process"],
        "peer_seconds": them["process"],
        "ratio": us["process"] / them["process"],
        "loop_ratio": us["loop"] / them["loop"],
    }


def verdict(rounds: Sequence[Mapping[str, Run]], *, higher: bool) -> dict[str, dict[str, Any]]:
    """Of each peer: every round's comparison, the median ratio, and whether it is at most two thirds."""
    found = {}
    for name in (name for name in rounds[0] if name != "hasten"):
        each = [beside(run["hasten"], run[name], higher=higher) for run in rounds]
        ratio = median(one["ratio"] for one in each)
        found[name] = {
            "ratio": ratio,
            "loop_ratio": median(one["loop_ratio"] for one in each),
            "within_two_thirds": ratio <= WANTED,
            "memory_ratio": median(run["hasten"]["peak_bytes"] / run[name]["peak_bytes"] for run in rounds),
            "by_round": each,
        }
    return found


def spread(places: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of `places`, evenly, the last one among them."""
    if len(places) <= count:
        return list(places)
    return [places[(len(places) * k + count - 1) // count - 1] for k in range(1, count + 1)]
