"""The planner's answer in words, and as JSON."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hasten.plan.advice import enough_devices, what_would_help
from hasten.plan.block import block, keys
from hasten.plan.drawing import as_text, timeline
from hasten.plan.search import Choice, Plan

SHOWN_REFUSALS = 8
COLUMNS: list[tuple[str, Callable[[Choice], str]]] = [
    ("layout", lambda c: str(c.layout)),
    ("devices", lambda c: f"{c.layout.devices:,}"),
    ("GB", lambda c: f"{c.memory.total / 1e9:,.1f}"),
    ("step s", lambda c: figure(c.time.total)),
    ("tokens/s", lambda c: f"{c.tokens_per_second:,.0f}"),
    ("MFU", lambda c: f"{c.mfu:.0%}"),
    ("bubble", lambda c: f"{c.time.bubble / c.time.total:.0%}"),
    ("days", lambda c: "?" if c.days is None else figure(c.days)),
    ("cost $", lambda c: "?" if c.cost is None else f"{c.cost:,.0f}"),
]


def figure(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_words(plan: Plan, top: int) -> str:
    """The whole answer as text."""
    parts = [heading(plan)]
    parts.append(table(plan.ranked[:top]) if plan.ranked else nothing_fits(plan))
    if plan.best:
        parts += [
            spent(plan.best),
            held(plan.best),
            f"the first in a recipe:\n{block(plan.best)}",
            helping(plan),
        ]
    parts += [refusals(plan)]
    return "\n\n".join(part for part in parts if part)


def heading(plan: Plan) -> str:
    """What was asked."""
    question = plan.question
    cluster, device = question.cluster, question.cluster.device
    price = device.price if question.price is None else question.price
    paid = "an assumption; give price=" if question.price is None else "as given"
    between = f", {cluster.across.name} between nodes" if cluster.nodes > 1 else ""
    return (
        f"{question.work.parameters / 1e9:,.3g} B parameters, steps of {question.rows:,} rows of"
        f" {question.row_tokens:,} tokens in {question.precision}\n"
        f"{cluster.devices:,} x {device.name}, {cluster.nodes:,} node(s) of {cluster.per_node},"
        f" {cluster.inside.name} inside{between}; ${price:g} per device-hour ({paid})\n"
        f"{plan.tried:,} layouts tried, {plan.fitting:,} fit, {len(plan.too_large):,} are too large;"
        " the best of each split; published runs were met within about 15%"
    )


def table(choices: list[Choice]) -> str:
    """One line a layout, the fastest first."""
    cells = [[title for title, _ in COLUMNS], *([show(c) for _, show in COLUMNS] for c in choices)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def spent(choice: Choice) -> str:
    """Where the best layout's time goes."""
    time = choice.time
    names = ("compute", "tensor", "context", "gather", "exchange", "bubble", "gradients", "optimizer")
    shares = [f"{name} {getattr(time, name) / time.total:.1%}" for name in names if getattr(time, name) > 0]
    return f"time of the first: {', '.join(shares)}"


def held(choice: Choice) -> str:
    """What fills its memory."""
    memory = choice.memory
    names = ("weights", "gradients", "optimizer", "gathered", "activations", "logits", "overhead")
    parts = [f"{name} {getattr(memory, name) / 1e9:,.2f} GB" for name in names if getattr(memory, name) > 0]
    return f"memory of its stage {memory.stage}: {', '.join(parts)}"


def helping(plan: Plan) -> str:
    """What would make it faster."""
    helps = what_would_help(plan)
    if not helps:
        return ""
    return "what would help:\n" + "\n".join(
        f"  {help_.change}: {help_.gain:+.0%} tokens/s" for help_ in helps
    )


def nothing_fits(plan: Plan) -> str:
    """What to do where nothing fits."""
    cluster = enough_devices(plan.question) if plan.too_large else None
    hint = f"; it fits on hardware={cluster.name}" if cluster else ""
    return f"no layout fits{hint}"


def refusals(plan: Plan) -> str:
    """Why the others do not do, with an example each."""
    if not plan.refused:
        return ""
    shown = [
        f"  {refusal.count:>6,}  {refusal.reason}; such as {refusal.example}"
        for refusal in plan.refused[:SHOWN_REFUSALS]
    ]
    more = sum(refusal.count for refusal in plan.refused[SHOWN_REFUSALS:])
    rest = [f"  {more:>6,}  for {len(plan.refused) - SHOWN_REFUSALS} more reasons"] if more else []
    return "refused, with an example each:\n" + "\n".join([*shown, *rest])


def as_data(plan: Plan, top: int) -> dict[str, Any]:
    """The answer for programs: bytes, seconds, dollars."""
    question = plan.question
    return {
        "hardware": question.cluster.name,
        "devices": question.cluster.devices,
        "parameters": question.work.parameters,
        "row_tokens": question.row_tokens,
        "rows": question.rows,
        "precision": question.precision,
        "tried": plan.tried,
        "fitting": plan.fitting,
        "recipe": keys(plan.best) if plan.best else None,
        "layouts": [choice_data(choice) for choice in plan.ranked[:top]],
        "refused": [
            {"reason": r.reason, "count": r.count, "example": r.example.state(), "missing_bytes": r.missing}
            for r in plan.refused
        ],
        "would_help": [asdict(each) for each in what_would_help(plan)],
    }


def choice_data(choice: Choice) -> dict[str, Any]:
    """One layout for programs; `layout` is what a recipe's `parallel:` holds."""
    return {
        "layout": choice.layout.state(),
        "devices": choice.layout.devices,
        "memory_bytes": {**asdict(choice.memory), "total": choice.memory.total},
        "seconds": {**asdict(choice.time), "total": choice.time.total},
        "tokens_per_second": choice.tokens_per_second,
        "mfu": choice.mfu,
        "days": choice.days,
        "device_hours": choice.device_hours,
        "dollars": choice.cost,
    }


def schedule_text(choice: Choice) -> str:
    """The pipeline of a layout, drawn in letters; empty without one."""
    if choice.layout.pipeline == 1:
        return "no pipeline in this layout: every device has all layers"
    return as_text(timeline(choice.layout, choice.time.micro_batches))
