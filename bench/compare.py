"""Train one decoder with hasten and with other libraries, in turn, and compare speed and memory.

    make bench-peers                                              an environment with the other libraries
    python bench/compare.py --shape S --save bench/results/compare-s.json
    python bench/compare.py --shape M --systems 'hasten*' 'trainer llama*'

Every system has a process of its own, started one after the other with empty caches of compiled code,
warmed up, and then told over a pipe to do a few steps in turn with the others: a busy or slow moment of the
machine meets them alike.  All do the same work: the same random tokens, batch and model FLOPs, AdamW,
clipping at 1.0, no dropout.  A turn's time covers data, forward, backward, clipping and update.  Repeats
during which other processes used more than 0.15 cores are kept in the result and left out of the medians.
Where not all fit into memory at once, they come in heats, with hasten in each.

The last line is one JSON object.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from peers.comparison import Comparison, Member, Terms, say
from peers.figures import peak_of, speed, verdict
from peers.shapes import SHAPES, Shape
from peers.systems import all_systems, chosen

from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.model.config import ModelConfig

PEERS = Path(__file__).parents[1] / ".venv-peers/bin/python"


def flops_per_token(shape: Shape) -> int:
    """Model FLOPs of a step per token, for all systems: two matrices of 4 dim in the feed-forward layer."""
    config = ModelConfig(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        activation="relu_squared",
    )
    return config.flops_per_token(shape.context)


def entry(member: Member, shape: Shape, peak: float) -> dict[str, Any]:
    """Everything about one system."""
    system, hello = member.system, member.worker.hello
    work = {"batch_tokens": shape.batch_tokens, "flops_per_token": flops_per_token(shape)}
    return {
        "name": system.name,
        "ours": system.ours,
        "tuned_allocator": system.tuned_allocator,
        "options": system.options,
        "parameters": hello["parameters"],
        **speed(member.repeats, **work, peak=peak),
        **member.costs,
        "baseline_bytes": hello["baseline_bytes"],
        "first_step_seconds": member.first_step_seconds,
        "seconds_to_first_update": member.seconds_to_first_update,
        "repeats": member.repeats,
    }


def result_of(comparison: Comparison) -> dict[str, Any]:
    """The JSON."""
    peak, shape = peak_of(comparison.readings), SHAPES[comparison.terms.shape]
    measured = [member for member in comparison.members.values() if member.costs and member.repeats]
    systems = [entry(member, shape, peak["flops_per_second"]) for member in measured]
    versions = [member.worker.hello["versions"] for member in measured if member.system.peer]
    return {
        "bench": "compare",
        "shape": {"name": comparison.terms.shape, **vars(shape), "batch_tokens": shape.batch_tokens},
        "flops_per_token": flops_per_token(shape),
        "peak": peak,
        "verdict": verdict(systems),
        "missing": comparison.missing,
        "failed": comparison.failed,
        "systems": systems,
        "peers": versions[0] if versions else {},
        "environment": environment(),
    }


def table(result: dict[str, Any]) -> str:
    """One line a system, fastest first."""
    lines = [
        f"{system['name']:<40} {system['step_seconds']:7.3f} s +-{system['spread'] / 2:4.0%}"
        f" {system['tokens_per_second']:8.0f} tokens/s  MFU {system['mfu']:4.0%}"
        f" {system['peak_bytes'] / 2**20:6.0f} MiB  first step {system['first_step_seconds']:5.1f} s"
        for system in sorted(result["systems"], key=lambda system: system["step_seconds"])
    ]
    return "\n".join([f"matrix peak {result['peak']['flops_per_second'] / 1e12:.3f} TFLOP/s", *lines])


def main() -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES], default="S")
    parser.add_argument("--repeats", type=int, default=5, help="quiet turns of each system")
    parser.add_argument("--steps", type=int, default=6, help="most steps of a turn")
    parser.add_argument("--minutes", type=float, default=12, help="turns are made shorter to keep to this")
    parser.add_argument("--systems", nargs="*", default=[], help="names or patterns; all by default")
    parser.add_argument("--peers", default=str(PEERS) if PEERS.exists() else None, help="their python")
    parser.add_argument(
        "--peers-allocator", action="store_true", help="peers once more with hasten's allocator"
    )
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    terms = Terms(options.shape, options.repeats, options.steps, 60 * options.minutes, options.peers)
    systems = chosen(all_systems(with_allocator=options.peers_allocator), options.systems)
    with tempfile.TemporaryDirectory(prefix="hasten-compare-") as folder:
        comparison = Comparison(systems, terms, Path(folder))
        comparison.run()
    result = result_of(comparison)
    say(table(result))
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.save, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
