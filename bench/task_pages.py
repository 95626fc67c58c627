"""The part of docs/benchmarks.md on fine-tuning: what recipes score, and how much sooner than others."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from page_words import TASKS_COMMAND, Words
from tasks import TASKS

MIB = 2**20
Result = dict[str, Any]
SCORES = (
    ("fall", "fell"),
    ("f1", "found"),
    ("bleu", "translated"),
    ("metric", "wrote"),
    ("margin", "preferred"),
    ("accuracy", "classified"),
)
"""By a figure that only one kind of task has: the words that say its score."""
PEER_COLUMNS = (
    "task",
    "peer",
    "settings",
    "both_reach",
    "hasten_seconds",
    "peer_seconds",
    "share",
    "best",
    "memories",
)


def task_scores(folder: Path, words: Words) -> str:
    """The score of each task that was measured, or how to measure them."""
    found = {name: folder / f"{name}.json" for name in TASKS}
    results = [json.loads(path.read_text(encoding="utf-8")) for path in found.values() if path.exists()]
    if not results:
        return words["absent"].format(command=TASKS_COMMAND)
    columns = (
        "task", "recipe", "score", "asked_for", "threads", "train_seconds", "whole_seconds", "memory",
    )  # fmt: skip
    rows = table([words[name] for name in columns], [task_row(one, words) for one in results])
    return f"{machines(results, words)}\n\n{rows}"


def machines(results: Sequence[Result], words: Words) -> str:
    """Where results come from that were measured at several commits of one machine's time."""
    commits: dict[tuple[str, str], dict[str, None]] = {}
    for environment in (result["environment"] for result in results):
        commits.setdefault((environment["processor"], environment["torch"]), {})[environment["commit"]] = None
    return " ".join(
        words["machines"].format(processor=processor, torch=torch, commits=", ".join(some))
        for (processor, torch), some in commits.items()
    )


def task_row(result: Result, words: Words) -> list[str]:
    """A task's line."""
    asked = result["asked_for"]
    return [
        result["task"],
        f"`{result['recipe']}`",
        score(result, words),
        "" if asked is None else f"{asked:g}",
        str(result["environment"]["threads"]),
        f"{result['training_seconds']:,.0f}",
        f"{result['seconds']:,.0f}",
        f"{result['peak_memory'] / MIB:,.0f}",
    ]


def score(result: Result, words: Words) -> str:
    """What was measured, with what it has to be above."""
    form = next(form for figure, form in SCORES if figure in result)
    text = words[form].format(**result)
    baseline = result.get("baseline") if form == "wrote" else None
    return text + (words["above"].format(**baseline) if baseline else "")


def task_peers(result: Result, words: Words, machine: Callable[[Result, Words], str]) -> str:
    """Each job beside each peer."""
    jobs = result["jobs"].values()
    machines = dict.fromkeys(machine(job["environment"], words) for job in jobs)
    versions = {name: version for job in jobs for name, version in job["peers"].items() if name != "python"}
    facts = [*machines, words["versions"].format(", ".join(f"{k} {v}" for k, v in versions.items()))]
    header = [words[name] for name in PEER_COLUMNS]
    rows = [
        peer_row(name, peer, job)
        for name, job in result["jobs"].items()
        for peer in sorted(job["verdict"], key=lambda peer: -job["verdict"][peer]["ratio"])
    ]
    notes = [words["not_run"].format(peer, why) for job in jobs for peer, why in job["failed"].items()]
    return "\n\n".join([" ".join(facts), table(header, rows), *notes])


def peer_row(name: str, peer: str, job: Result) -> list[str]:
    """A peer's line: medians over the rounds."""
    found, settings = job["verdict"][peer], job["settings"][peer]

    def middle(figure: str) -> float:
        return median(one[figure] for one in found["by_round"])

    memory = [median(run[system]["peak_bytes"] for run in job["rounds"]) for system in ("hasten", peer)]
    each = ", ".join(f"{one['ratio']:.2f}" for one in found["by_round"])
    rows = f"{settings['batch_rows']} × {settings.get('accumulate', 1)}"
    return [
        name,
        peer,
        f"{settings['learning_rate']:g}, {rows}, {'bf16' if settings['bf16'] else 'fp32'}",
        f"{job['unit']} {middle('target'):.3f}",
        f"{middle('hasten_seconds'):,.0f}",
        f"{middle('peer_seconds'):,.0f}",
        f"{found['ratio']:.2f} ({each})",
        f"{middle('hasten_best'):.3f} / {middle('peer_best'):.3f}",
        " / ".join(f"{size / MIB:,.0f}" for size in memory),
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
