"""The part of docs/benchmarks.md on smaller models: small integers, pruning, students, drafts."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

from page_words import Words
from task_pages import table

Result = dict[str, Any]
Machine = Callable[[Result, Words], str]


def small_integers(result: Result, words: Words, machine: Machine) -> str:
    """Writing with integers of eight and four bits, case by case."""
    parts = [machine(result["environment"], words)]
    for case in result["results"]:
        speeds: Result = case["decode_tokens_per_second"]
        rows = [integers_row(case, name) for name in sorted(speeds, key=lambda name: -speeds[name])]
        header = [words[name] for name in ("system", "decode", "over_peer", "over_own", "read")]
        parts += [words["at_once"].format(**case), table(header, rows)]
    parts += [words["not_run"].format(name, why) for name, why in result["missing"].items()]
    return "\n\n".join(parts)


def integers_row(case: Result, name: str) -> list[str]:
    """An arm's line; ours stand out."""
    over = case["decode_over"].get(name, {})
    peer = next((other for other in over if other.startswith("llama.cpp")), None)
    own = over.get("hasten bf16")
    return [
        f"**{name}**" if name.startswith("hasten") else name,
        f"{case['decode_tokens_per_second'][name]:,.1f}",
        "" if peer is None else f"{over[peer]:.2f}× ({peer.removeprefix('llama.cpp ')})",
        "" if own is None else f"{own:.2f}×",
        f"{case['read_tokens_per_second'][name]:,.0f}",
    ]


def compression(result: Result, words: Words, machine: Machine) -> str:
    """Quality against size, the smallest last."""
    arms: Result = result["arms"]
    rows = [
        [
            name if name.startswith("llama.cpp") else f"**{name}**",
            f"{arm['megabytes']:,.1f}",
            f"{arm['bits_per_weight']:.2f}",
            f"{arm['perplexity']:.2f} ({arm['perplexity_over_original'] - 1:+.1%})",
            f"{arm['rise']['mean']:.4f} ± {1.96 * arm['rise']['standard_error']:.4f}",
            f"{arm['divergence_per_token']:.4f}",
        ]
        for name, arm in sorted(arms.items(), key=lambda item: -item[1]["megabytes"])
    ]
    header = [words[name] for name in ("weights", "megabytes", "bits_per_weight", "perplexity", "rise", "kl")]
    given = result["arguments"]
    lead = words["windows"].format(machine(result["environment"], words), **given)
    return f"{lead}\n\n{table(header, rows)}"


def pruned(result: Result, words: Words, machine: Machine) -> str:
    """How much of the saved arithmetic is saved time."""
    rows = [
        [
            name,
            f"{found['parameters'] / 1e6:.1f} M",
            f"{found['median_seconds'] * 1e3:.1f}",
            f"{found['saved_flops']:.1%}",
            f"{found['saved_time']:.1%}",
            "" if found["saved_time_of_flops"] is None else f"{found['saved_time_of_flops']:.0%}",
        ]
        for name, found in result["models"].items()
    ]
    header = [
        words[name]
        for name in ("model", "parameters", "milliseconds", "saved_flops", "saved_time", "of_saved")
    ]
    return f"{machine(result['environment'], words)}\n\n{table(header, rows)}"


def students(result: Result, words: Words, machine: Machine) -> str:
    """What a teacher is worth on text, and on sentences with classes."""
    parts = [machine(result["environment"], words)]
    if "text" in result:
        parts.append(students_of_text(result["text"], words))
    if "regained" in result:
        parts.append(words["regained"].format(**regained(result["regained"])))
    if "classes" in result:
        parts.append(words["halved"].format(**result["classes"]))
    return "\n\n".join(parts)


def students_of_text(found: Result, words: Words) -> str:
    """The teacher's loss, and each kind of student's."""
    rows = [[words["teacher"], f"{found['teacher']['validation_loss']:.3f}", "", ""]]
    for name, arm in found["students"].items():
        losses = ", ".join(f"{loss:.3f}" for loss in arm["losses"])
        closed = "" if "closed" not in arm else f"{arm['closed']:.0%}"
        p = arm.get("p_paired")
        rows.append(
            [words[name], f"{arm['validation_loss']:.3f} ({losses})", closed, "" if p is None else f"{p:.2g}"]
        )
    header = [words[name] for name in ("model", "loss", "closed", "p")]
    return table(header, rows)


def regained(found: Result) -> Result:
    """What is told of layers that went: the means over seeds."""
    losses = {name: fmean(loss) if isinstance(loss, list) else loss for name, loss in found["losses"].items()}
    return {**found, **losses, "gone": found["layers"][0] - found["layers"][1]}


def guessed(result: Result, words: Words, machine: Machine) -> str:
    """Writing with a draft that guesses ahead."""
    rows = [
        [
            f"{case['threads']}",
            f"{case['temperature']:g}",
            f"{way['ahead']}",
            f"{way['accepted']:.0%}",
            f"{case['alone']['tokens_per_second']:,.0f}",
            f"{way['tokens_per_second']:,.0f}",
            f"{way['times_as_fast']:.2f}×",
        ]
        for case in result["results"]
        for way in case["with_draft"]
    ]
    header = [
        words[name]
        for name in ("threads", "temperature", "ahead", "accepted", "alone", "with_draft", "faster")
    ]
    return f"{machine(result['environment'], words)}\n\n{table(header, rows)}"
