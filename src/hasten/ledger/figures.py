"""From trials to the ledger's rows: ratios within a round, their median and range over rounds.

Arms are compared with the full set of the same round only: what the machine does in the meantime, and the
seed, then fall on both.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from hasten.ledger.arms import Arm

WARM_LINES = 2
"""Lines of a trial that are not counted, on a CPU a step each: caches and kernels are made in them."""

Record = Mapping[str, Any]


def make_rows(arms: Sequence[Arm], trials: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each arm that was measured.

    `tokens_per_second` and `peak_memory` are medians and ranges over repeats; `slower` is the time of the
    same tokens, relative to the full set; `time_to_loss` that of the same loss, and `reached` in how many of
    the repeats it was reached: where it was not, the time at the end stands in its place, as a lower bound.
    Arms that learn the same from the same steps need as much longer to a loss as for the same tokens.
    """
    rows = []
    for arm in arms:
        own = [trial for trial in trials if trial["arm"] == arm.name]
        if not own:
            continue
        slower = spread(ratios(trials, arm.name, lambda a, full: pace(full) / pace(a)))
        rows.append(
            {
                "arm": arm.name,
                "kind": arm.kind,
                "technique": arm.technique,
                "tokens_per_second": spread([pace(trial) for trial in preferred(own)]),
                "peak_memory": spread([trial["result"]["peak_memory"] for trial in preferred(own)]),
                "slower": slower,
                "time_to_loss": learning_times(trials, arm) if arm.learns else slower,
                "learns": arm.learns,
                "cores_used_by_others": highest([trial["cores_used_by_others"] for trial in own]),
            }
        )
    return rows


def preferred(trials: Sequence[Record]) -> list[Record]:
    """Those that were made for the pace, where there are any: learning trials validate in between."""
    return [trial for trial in trials if trial["purpose"] == "pace"] or list(trials)


def pace(trial: Record) -> float:
    """Tokens per second: the median over the steps after warm-up."""
    rates = [rate for _, rate in trial["result"]["paces"]]
    return median(rates[WARM_LINES:] or rates)


def ratios(
    trials: Sequence[Record], arm: str, figure: Callable[[Record, Record], float | None]
) -> list[float]:
    """`figure(arm's trial, full set's trial)` for each round and purpose in which both were made."""
    places = {(t["purpose"], t["round"]): t for t in trials if t["arm"] == "full"}
    pairs = [(t, places.get((t["purpose"], t["round"]))) for t in preferred_pairs(trials, arm)]
    found = [figure(trial, full) for trial, full in pairs if full is not None]
    return [value for value in found if value is not None]


def preferred_pairs(trials: Sequence[Record], arm: str) -> list[Record]:
    """The trials of an arm that its pace is told from."""
    return preferred([trial for trial in trials if trial["arm"] == arm])


def learning_times(trials: Sequence[Record], arm: Arm) -> dict[str, Any] | None:
    """How much longer the arm takes to the loss at which the plain arm of the same round ended."""
    learning = {
        (t["arm"], t["round"]): t["result"]["validation"] for t in trials if t["purpose"] == "learning"
    }
    found: list[float] = []
    reached = 0
    for number in sorted({number for _, number in learning}):
        curves = [learning.get((name, number)) for name in (arm.name, "full", "plain")]
        if not all(curves):
            continue
        own, full, plain = (curve for curve in curves if curve)
        target = plain[-1][1]
        theirs, ours = seconds_to(own, target), seconds_to(full, target)
        if ours:
            found.append((theirs or own[-1][0]) / ours)
            reached += theirs is not None
    summary = spread(found)
    return None if summary is None else {**summary, "reached": reached}


def seconds_to(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """When a curve of (seconds, loss) first comes down to `target`, on straight lines between its points."""
    for (before, above), (after, below) in pairwise(curve):
        if below <= target:
            share = (above - target) / (above - below) if above > target else 0.0
            return before + share * (after - before)
    return None


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Median and range; None for no values."""
    if not values:
        return None
    return {"median": median(values), "low": min(values), "high": max(values), "repeats": len(values)}


def highest(values: Sequence[float | None]) -> float | None:
    """The largest that is known."""
    return max((value for value in values if value is not None), default=None)
