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
    """Seconds of the loop and of the process until the score was `score`; None where no look found it.

    Between two looks, the score is taken to change in proportion to time.
    """
    sign, before = 1 if higher else -1, (0.0, run.get("base_score"))
    for look in run["looks"]:
        if sign * look["score"] >= sign * score:
            seconds = between(before, (look["seconds"], look["score"]), score)
            return {"loop": seconds, "process": run["startup_seconds"] + seconds}
        before = look["seconds"], look["score"]
    return None


def between(before: tuple[float, float | None], after: tuple[float, float], score: float) -> float:
    """When the line through two (seconds, score) is at `score`; at `after` where nothing was seen before."""
    if before[1] is None or before[1] == after[1]:
        return after[0]
    return before[0] + (after[0] - before[0]) * (score - before[1]) / (after[1] - before[1])


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
