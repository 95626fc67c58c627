"""What would make a plan faster, and how many devices would do where nothing fits."""

from dataclasses import dataclass, replace
from typing import Any

from hasten.plan.hardware import Cluster
from hasten.plan.rates import NARROW
from hasten.plan.search import Plan, Question, search
from hasten.plan.time import Clockwork


@dataclass(frozen=True)
class Help:
    """One change, and how much faster the best layout would be with it."""

    change: str
    gain: float  # of tokens per second: 0.1 is a tenth more


def what_would_help(plan: Plan) -> list[Help]:
    """Changes to the hardware or the batch, the most useful first."""
    question, best = plan.question, plan.best
    if best is None:
        return []
    now, rows, cluster = best.time.total, question.rows, question.cluster
    network = replace(cluster.across, bandwidth=2 * cluster.across.bandwidth)
    tries = {"a network between nodes of twice the bandwidth": replace(cluster, across=network)}
    changes = {
        name: clock(question, cluster=other).step(best.layout, rows).total for name, other in tries.items()
    }
    device = replace(cluster.device, bandwidth=2 * cluster.device.bandwidth)
    streaming = clock(question, cluster=replace(cluster, device=device))
    changes["memory of twice the bandwidth"] = streaming.step(best.layout, rows).total
    changes["a batch of twice the rows"] = question.clockwork.step(best.layout, 2 * rows).total / 2
    if question.precision not in NARROW and "fp8" in cluster.device.peaks:
        changes["products in fp8"] = clock(question, precision="fp8").step(best.layout, rows).total
    roomier = [layout for layout, memory in plan.too_large if memory.total <= 2 * cluster.device.memory]
    if roomier:
        fastest = min(question.clockwork.step(layout, rows).total for layout in roomier)
        changes["twice the memory on each device"] = min(fastest, now)
    gains = [Help(change, now / seconds - 1) for change, seconds in changes.items()]
    return sorted((each for each in gains if each.gain > 0.005), key=lambda each: -each.gain)


def enough_devices(question: Question, most: int = 4096) -> Cluster | None:
    """The smallest cluster, by doubling nodes, on which something fits; None up to `most` times as many."""
    times = 2
    while times <= most:
        cluster = replace(question.cluster, nodes=question.cluster.nodes * times)
        if search(replace(question, cluster=cluster)).best:
            return cluster
        times *= 2
    return None


def clock(question: Question, **changed: Any) -> Clockwork:
    """The question's clockwork with something else in it."""
    return replace(question, **changed).clockwork
