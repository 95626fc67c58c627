"""Write docs/benchmarks.md and docs/benchmarks.zh-CN.md from bench/results/: python bench/benchmarks.py

The prose is in bench/pages/.  A section whose result file is not there says which command makes it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from page_words import COMMANDS, TASKS_COMMAND, WORDS, Words
from smaller_pages import compression, guessed, pruned, small_integers, students
from task_pages import table, task_peers, task_scores

ROOT = Path(__file__).parents[1]
PAGES, RESULTS, DOCS = ROOT / "bench/pages", ROOT / "bench/results", ROOT / "docs"
MIB = 2**20

Result = dict[str, Any]


def page(name: str, results: Path = RESULTS) -> str:
    """The whole page `name`."""
    commands = ["make setup", "make bench-peers", *COMMANDS.values(), TASKS_COMMAND]
    commands.append("python bench/benchmarks.py")
    slots = {stem: section(stem, results, WORDS[name]) for stem in SECTIONS}
    slots["tasks"] = task_scores(results / "tasks", WORDS[name])
    slots["commands"] = "\n".join(commands)
    prose = (PAGES / name).read_text(encoding="utf-8")
    return re.sub(r"^\{([a-z-]+)\}$", lambda slot: slots[slot[1]], prose, flags=re.M)


def section(stem: str, results: Path, words: Words) -> str:
    """What a result file says, or how to get it."""
    path = results / f"{stem}.json"
    if not path.exists():
        return words["absent"].format(command=COMMANDS[stem])
    return SECTIONS[stem](json.loads(path.read_text(encoding="utf-8")), words)


def training(result: Result, words: Words) -> str:
    """One comparison of steps."""
    verdict, peak = result["verdict"], result["peak"]
    entries = sorted(result["systems"], key=lambda entry: entry["step_seconds"])
    header = [words[name] for name in ("system", "rate", "step", "mfu", "memory", "first", "ratio")]
    rows = [step_row(entry, verdict.get("ratios", {}).get(entry["name"])) for entry in entries]
    facts = [
        machine(result["environment"], words),
        words["peak"].format(*(peak[name] / 1e12 for name in ("flops_per_second", "low", "high"))),
        words["versions"].format(", ".join(f"{k} {v}" for k, v in result["peers"].items() if k != "python")),
    ]
    notes = [words["not_run"].format(name, why) for name, why in absent(result)]
    return "\n\n".join([" ".join(facts), *claims(verdict, words), table(header, rows), *notes])


def step_row(entry: Result, ratio: float | None) -> list[str]:
    """A system's line; ours stand out."""
    name = f"**{entry['name']}**" if entry["ours"] else entry["name"]
    low, high = entry["step_seconds_low"], entry["step_seconds_high"]
    return [
        name,
        f"{entry['tokens_per_second']:,.0f}",
        f"{entry['step_seconds']:.3f} ({low:.3f}–{high:.3f})",
        f"{entry['mfu']:.0%}",
        f"{entry['peak_bytes'] / MIB:,.0f}",
        f"{entry['first_step_seconds']:.1f}",
        "" if ratio is None else f"{ratio:.2f}×",
    ]


def claims(verdict: Result, words: Words) -> list[str]:
    """The ratios that count, with the lowest and highest round."""
    lines = []
    for name in ("to_best_peer", "to_trainer_defaults", "to_best_peer_with_our_allocator"):
        if name in verdict:
            found = verdict[name]
            rounds = found["by_round"] or [found["ratio"]]
            lines.append(words[name].format(found["ratio"], found["peer"], min(rounds), max(rounds)))
    if "peers_with_less_memory" in verdict:
        lighter = verdict["peers_with_less_memory"]
        lines.append(words["lighter"].format(", ".join(lighter)) if lighter else words["lightest"])
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def absent(result: Result) -> list[tuple[str, str]]:
    """What could not be measured, and why."""
    return [*result["missing"].items(), *result["failed"].items()]


def time_to_loss(result: Result, words: Words) -> str:
    """The baseline, and hasten's budgets beside it."""
    header = [words[name] for name in ("recipe", "seconds", "tokens", "loss", "bits", "ratio_of_time", "p")]
    rows = [learned_row("AdamW GPT-2", result["baseline"])]
    rows += [learned_row("**hasten**", budget) for budget in result["hasten"]]
    ratio, target = result["ratio"], result["baseline"]["validation_loss"]
    claim = words["slower"] if ratio is None else words["sooner"].format(ratio, target)
    return "\n\n".join([machine(result["environment"], words), claim, table(header, rows)])


def learned_row(name: str, arm: Result) -> list[str]:
    """An arm at one length: means over its seeds, and every seed's loss."""
    p, ratio = arm.get("p"), arm.get("ratio")
    return [
        name,
        f"{arm['seconds']:,.0f}",
        f"{arm['tokens']:,}",
        f"{arm['validation_loss']:.3f} ({', '.join(f'{loss:.3f}' for loss in sorted(arm['losses']))})",
        f"{arm['bits_per_byte']:.3f}",
        "" if ratio is None else f"{ratio:.2f}×",
        "" if p is None else f"{p:.2g}",
    ]


def generation(result: Result, words: Words) -> str:
    """Writing, case by case."""
    parts = [machine(result["environment"], words)]
    for case in result["results"]:
        lead = words["case"].format(
            shape=case["shape"],
            rows=case["rows"],
            bandwidth=case["read_gigabytes_per_second"],
            bound=case["bound_tokens_per_second"],
        )
        header = [words[name] for name in ("system", "decode", "bound", "ratio", "read", "memory")]
        parts += [lead, table(header, [writing_row(case, name) for name in fastest_first(case)])]
    parts += [words["not_run"].format(name, why) for name, why in result["missing"].items()]
    return "\n\n".join(parts)


def fastest_first(case: Result) -> list[str]:
    """The arms of a case by speed."""
    speeds: dict[str, float] = case["decode_tokens_per_second"]
    return sorted(speeds, key=lambda name: -speeds[name])


def writing_row(case: Result, name: str) -> list[str]:
    """An arm's line; ours stand out."""
    over = case["hasten_over"].get(name)
    return [
        f"**{name}**" if name.startswith("hasten") else name,
        f"{case['decode_tokens_per_second'][name]:,.1f}",
        f"{case['of_bound'][name]:.0%}",
        "" if over is None else f"{over:.2f}×",
        f"{case['read_tokens_per_second'][name]:,.0f}",
        f"{case['peak_bytes'][name] / MIB:,.0f}",
    ]


def demo(result: Result, words: Words) -> str:
    """The demo's figures: median over the seeds."""
    repeats = result["repeats"]
    rows = [
        [words[name], form.format(median(repeat[name] for repeat in repeats))]
        for name, form in (
            ("journey_seconds", "{:,.0f}"),
            ("tokens", "{:,.0f}"),
            ("test_loss", "{:.3f}"),
            ("test_bits_per_byte", "{:.3f}"),
            ("lzma_bits_per_byte", "{:.3f}"),
        )
    ]
    lead = words["runs"].format(machine(result["environment"], words), len(repeats))
    return f"{lead}\n\n{table(['', ''], rows)}"


def kinds(result: Result, words: Words) -> str:
    """Steps of the three assemblies, and of what the literature builds of them."""
    header = [words[name] for name in ("kind", "parameters", "rate", "step_of", "flops", "to_decoder")]
    rows = [
        [
            kind,
            f"{found['parameters'] / 1e6:.1f} M",
            f"{found['tokens_per_second']:,}",
            f"{found['step_seconds']:.3f} ({min(found['all_seconds']):.3f}–{max(found['all_seconds']):.3f})",
            f"{found['flops_per_second'] / 1e9:,.0f}",
            f"{found['ratio']:.2f}",
        ]
        for kind, found in result["kinds"].items()
    ]
    return f"{machine(result['environment'], words)}\n\n{table(header, rows)}"


def translation(result: Result, words: Words) -> str:
    """The translator that the shipped recipe makes."""
    bleu, chrf = result["bleu"], result["chrf"]
    rows = [
        [words["bleu"].format(result["beams"]), f"{bleu['score']:.1f} ± {bleu['interval']:.1f}"],
        ["chrF", f"{chrf['score']:.1f} ± {chrf['interval']:.1f}"],
        [words["parameters"], f"{result['parameters']:,}"],
        [words["tokens"], f"{result['trained_tokens']:,}"],
        [words["journey_seconds"], f"{result['seconds']:,.0f}"],
        [words["translating"], f"{result['translating_tokens_per_second']:,.0f}"],
    ]
    return f"{machine(result['environment'], words)} `{bleu['signature']}`\n\n{table(['', ''], rows)}"


def interop(result: Result, words: Words) -> str:
    """How near models of others are to what they were, in and out."""
    header = [words[name] for name in ("model", "parameters", "coming_in", "going_out", "kept")]
    rows = [
        [
            name,
            f"{found['parameters']:,}",
            f"{found['import_difference']:.1e}" if "import_difference" in found else "",
            f"{found['export_difference']:.1e}",
            f"{found['tensors_kept_bit_for_bit']} / {found['tensors']}" if "tensors" in found else "",
        ]
        for name, found in {**result["families"], **result["checkpoints"]}.items()
    ]
    return f"{machine(result['environment'], words)}\n\n{table(header, rows)}"


def two_processes(result: Result, words: Words) -> str:
    """Two processes of one thread beside one of two, tokens for tokens."""
    rows = [
        [mesh, f"{ratio:.2f}", ", ".join(f"{one:.2f}" for one in result["by_round"][mesh])]
        for mesh, ratio in result["ratio"].items()
    ]
    header = [words[name] for name in ("mesh", "to_one", "rounds")]
    return f"{machine(result['environment'], words)}\n\n{table(header, rows)}"


def planned(result: Result, words: Words) -> str:
    """What was predicted of trainings, and what they came to."""
    header = [
        words[name] for name in ("training", "memory_predicted", "memory_held", "time_predicted", "time_took")
    ]
    rows = [
        [
            one["name"],
            f"{one['predicted_bytes'] / MIB:,.0f} ({one['memory_error']:+.0%})",
            f"{one['measured_bytes'] / MIB:,.0f}",
            f"{one['predicted_seconds']:.3f} ({one['time_error']:+.0%})",
            f"{one['measured_seconds']:.3f}",
        ]
        for one in result["examined"]
    ]
    claim = words["planned"].format(**result)
    return f"{machine(result['environment'], words)} {claim}\n\n{table(header, rows)}"


def machine(environment: Result, words: Words) -> str:
    """Where a result comes from."""
    return words["machine"].format(**environment, s="" if environment["threads"] == 1 else "s")


SECTIONS: dict[str, Callable[[Result, Words], str]] = {
    "compare-s": training,
    "compare-m": training,
    "time-to-loss": time_to_loss,
    "generate": generation,
    "kinds": kinds,
    "translate": translation,
    "interop": interop,
    "two-processes": two_processes,
    "planner-here": planned,
    "demo": demo,
    "task-peers": lambda result, words: task_peers(result, words, machine),
    "quantized": lambda result, words: small_integers(result, words, machine),
    "compression": lambda result, words: compression(result, words, machine),
    "pruning": lambda result, words: pruned(result, words, machine),
    "distil": lambda result, words: students(result, words, machine),
    "speculative": lambda result, words: guessed(result, words, machine),
}
"""What writes a section, by the stem of its result file."""


def main() -> None:
    """Write both pages."""
    for name in WORDS:
        (DOCS / name).write_text(page(name), encoding="utf-8")


if __name__ == "__main__":
    main()
