"""From the repeats of every system to figures and ratios: pure functions, tested on made-up repeats."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from peers.systems import DEFAULTS, HASTEN

DISTURBED_CORES = 0.15
"""A repeat during which others used more cores than this is kept and not counted."""

Entry = dict[str, Any]


def repeat_of(turn: Mapping[str, Any], number: int) -> Entry:
    """A turn as it is written into a result."""
    return {
        "round": number,
        "steps": turn["steps"],
        "step_seconds": turn["seconds"] / turn["steps"],
        "others": turn["others"],
        "disturbed": turn["others"] > DISTURBED_CORES,
    }


def counted(repeats: Sequence[Entry]) -> list[Entry]:
    """The quiet repeats, or all where none was quiet."""
    return [repeat for repeat in repeats if not repeat["disturbed"]] or list(repeats)


def peak_of(readings: Sequence[Mapping[str, Any]]) -> Entry:
    """The matrix peak, FLOP/s: the median over the quiet readings of the best rate over all sizes."""
    best = [max(reading["rates"].values()) for reading in counted_readings(readings)]
    return {
        "flops_per_second": median(best),
        "low": min(best),
        "high": max(best),
        "how": "bf16 products; a reading is the best rate over sizes and repeats; median of the readings",
        "readings": [{"rates": r["rates"], "others": r["others"]} for r in readings],
    }


def counted_readings(readings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The quiet readings, or all where none was quiet."""
    return [r for r in readings if r["others"] <= DISTURBED_CORES] or list(readings)


def speed(repeats: Sequence[Entry], *, batch_tokens: int, flops_per_token: int, peak: float) -> Entry:
    """Median step, its spread, tokens/s and MFU; flops in model FLOPs, peak in FLOP/s."""
    seconds = [repeat["step_seconds"] for repeat in counted(repeats)]
    step = median(seconds)
    return {
        "step_seconds": step,
        "step_seconds_low": min(seconds),
        "step_seconds_high": max(seconds),
        "spread": (max(seconds) - min(seconds)) / step,
        "tokens_per_second": batch_tokens / step,
        "mfu": batch_tokens * flops_per_token / step / peak,
        "quiet_repeats": quiet(repeats),
    }


def quiet(repeats: Sequence[Entry]) -> int:
    """How many repeats were undisturbed."""
    return sum(not repeat["disturbed"] for repeat in repeats)


def ratio(ours: Entry, theirs: Entry) -> Entry:
    """How many times as fast as `theirs` is `ours`: the median over the rounds that both ran in.

    Rounds are pairs in time, so what slows the machine down for a while does not matter.
    """
    pairs = {repeat["round"]: repeat["step_seconds"] for repeat in counted(theirs["repeats"])}
    mine = {repeat["round"]: repeat["step_seconds"] for repeat in counted(ours["repeats"])}
    by_round = [pairs[number] / mine[number] for number in sorted(pairs.keys() & mine.keys())]
    of_medians = theirs["step_seconds"] / ours["step_seconds"]
    return {
        "peer": theirs["name"],
        "ratio": median(by_round) if by_round else of_medians,
        "by_round": by_round,
        "of_medians": of_medians,
        "memory": ours["peak_bytes"] / theirs["peak_bytes"],
    }


def verdict(systems: Sequence[Entry]) -> Entry:
    """Ratios to the best peer, to Trainer's defaults, to the best peer with our allocator; memory."""
    named = {entry["name"]: entry for entry in systems}
    peers = [entry for entry in systems if not entry["ours"]]
    if HASTEN not in named or not peers:
        return {}
    ours, plain = named[HASTEN], [peer for peer in peers if not peer["tuned_allocator"]]
    tuned = [peer for peer in peers if peer["tuned_allocator"]]
    lighter = [peer["name"] for peer in plain if peer["peak_bytes"] < ours["peak_bytes"]]
    found: Entry = {
        "peers_with_less_memory": lighter,
        "memory_above_any_peer": bool(lighter),
        "ratios": {peer["name"]: ratio(ours, peer)["ratio"] for peer in peers},
    }
    if plain:
        found["to_best_peer"] = hardest(ours, plain)
    if DEFAULTS in named:
        found["to_trainer_defaults"] = ratio(ours, named[DEFAULTS])
    if tuned:
        found["to_best_peer_with_our_allocator"] = hardest(ours, tuned)
    return found


def hardest(ours: Entry, peers: Sequence[Entry]) -> Entry:
    """The ratio to the peer that is hardest to beat."""
    return min((ratio(ours, peer) for peer in peers), key=lambda found: found["ratio"])
