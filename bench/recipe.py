"""A/B of the default recipe: arms that are one change away from it, with effect, seeds and p-value.

    python bench/recipe.py --seeds 3 --save bench/results/recipe.json
    python bench/recipe.py --only gelu swiglu

Every arm trains `hasten-tiny` at half its width (1.8M parameters) on equally many tokens, one seed after the
other; seeds change the weights, the order of the data and nothing else, and the validation text stays.  The
result file is written after each training, and a second call goes on from it.  Prints one JSON object last.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from training import Results, demo_text, train
from welch import p_value, paired_p_value

from hasten.core.runtime import environment
from hasten.ops import orthogonalize

MODEL = {"preset": "hasten-tiny", "dim": 128, "num_heads": 2}
BATCH_TOKENS = 1024
DEFAULT = "default"
DEFAULT_SEEDS = 4
"""Every arm is compared with the default: its mean is worth knowing best."""


@dataclass(frozen=True)
class Arm:
    """What differs from the default: fields of the sections, a factor on all rates, or a prototype."""

    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    ramp: tuple[tuple[float, int], ...] = ()
    quintics: int | None = None


def adamw(rate: float, **rest: Any) -> Arm:
    return Arm(optimizer={"kind": "adamw", "learning_rate": rate, **rest})


ARMS = {
    DEFAULT: Arm(),
    "rates x 0.5": Arm(scale=0.5),
    "rates x 2": Arm(scale=2.0),
    "AdamW 2e-3": adamw(2e-3),
    "AdamW 4e-3": adamw(4e-3),
    "AdamW 8e-3": adamw(8e-3),
    "AdamW 4e-3, roles' own rates": adamw(
        4e-3,
        embedding_learning_rate=0.1,
        head_learning_rate=0.008,
        vector_learning_rate=0.01,
        weight_decay=0.0,
    ),
    "gelu": Arm(model={"activation": "gelu"}),
    "swiglu, equal parameters": Arm(model={"activation": "swiglu", "ffn_dim": 341}),
    "no qk_norm": Arm(model={"qk_norm": False}),
    "no zero_init_outputs": Arm(model={"zero_init_outputs": False}),
    "no embedding_norm": Arm(model={"embedding_norm": False}),
    "no embedding_norm, rate 0.01": Arm(
        model={"embedding_norm": False}, optimizer={"embedding_learning_rate": 0.01}
    ),
    "tied, rate 0.008": Arm(model={"tied": True}, optimizer={"embedding_learning_rate": 0.008}),
    "tied, rate 0.03": Arm(model={"tied": True}, optimizer={"embedding_learning_rate": 0.03}),
    "learned positions": Arm(model={"position": "learned"}),
    "LayerNorm": Arm(model={"norm": "layer"}),
    "soft-cap 15": Arm(model={"logit_soft_cap": 15.0}),
    "z-loss 1e-4": Arm(objective={"z_loss": 1e-4}),
    "decay_share 0.3": Arm(schedule={"decay_share": 0.3}),
    "decay_share 0.7": Arm(schedule={"decay_share": 0.7}),
    "decay_share 1": Arm(schedule={"decay_share": 1.0}),
    "cosine to 0": Arm(schedule={"kind": "cosine", "final": 0.0}),
    "cosine to 10%": Arm(schedule={"kind": "cosine", "final": 0.1}),
    "warmup_steps 0": Arm(schedule={"warmup_steps": 0}),
    "warmup_steps 5": Arm(schedule={"warmup_steps": 5}),
    "warmup_steps 50": Arm(schedule={"warmup_steps": 50}),
    "momentum 0.8": Arm(optimizer={"momentum": 0.8}),
    "momentum 0.85": Arm(optimizer={"momentum": 0.85}),
    "momentum 0.9": Arm(optimizer={"momentum": 0.9}),
    "Muon weight_decay 0.1": Arm(optimizer={"weight_decay": 0.1}),
    "no clipping": Arm(training={"max_grad_norm": None}),
    "matrix rate x 0.5": Arm(optimizer={"learning_rate": 0.01}),
    "matrix rate x 2": Arm(optimizer={"learning_rate": 0.04}),
    "embedding rate x 0.3": Arm(optimizer={"embedding_learning_rate": 0.03}),
    "embedding rate x 3": Arm(optimizer={"embedding_learning_rate": 0.3}),
    "head rate x 0.5": Arm(optimizer={"head_learning_rate": 0.004}),
    "head rate x 2": Arm(optimizer={"head_learning_rate": 0.016}),
    "vector rate x 0.3": Arm(optimizer={"vector_learning_rate": 0.003}),
    "betas 0.9, 0.95": Arm(optimizer={"betas": (0.9, 0.95)}),
    "3 quintics": Arm(quintics=3),
    "4 quintics": Arm(quintics=4),
    "batch 512": Arm(training={"batch_tokens": 512}),
    "batch 512, rates x 0.7": Arm(training={"batch_tokens": 512}, scale=0.5**0.5),
    "batch 2048": Arm(training={"batch_tokens": 2048}),
    "batch 2048, rates x 1.4": Arm(training={"batch_tokens": 2048}, scale=2**0.5),
    "batch 4096, rates x 2": Arm(training={"batch_tokens": 4096}, scale=2.0),
    "batch warm-up from a quarter": Arm(ramp=((0.1, 1), (0.3, 2))),
}


@contextmanager
def fewer_quintics(count: int | None) -> Iterator[None]:
    """Muon with the first `count` polynomials only."""
    kept = orthogonalize.COEFFICIENTS
    orthogonalize.COEFFICIENTS = kept[:count]
    try:
        yield
    finally:
        orthogonalize.COEFFICIENTS = kept


def train_arm(prepared: Any, arm: Arm, seed: int, tokens: int) -> dict[str, Any]:
    """One training of one arm on so many tokens."""
    batch_tokens = arm.training.get("batch_tokens", BATCH_TOKENS)
    optimizer = {"kind": "muon", "base": None, **arm.optimizer}
    schedule = arm.schedule if "kind" in arm.schedule else {"kind": "wsd", **arm.schedule}
    training = {"batch_tokens": batch_tokens, "steps": tokens // batch_tokens, "seed": seed, **arm.training}
    sections = {**training, "optimizer": optimizer, "schedule": schedule}
    with fewer_quintics(arm.quintics):
        return train(
            prepared,
            {**MODEL, **arm.model},
            sections,
            objective=arm.objective,
            scale=arm.scale,
            ramp=arm.ramp,
        )


def compare(results: Results, names: Sequence[str]) -> dict[str, Any]:
    """Effect of each arm on the default's loss, in nats; a positive one is a loss.

    The effect is over the seeds that both have: equal seeds have equal data in equal order and, but where the
    arm is about them, equal first weights.  `p` is Welch's, of all seeds as two samples; `p_paired` that of
    the differences seed by seed.
    """
    base = losses(results, DEFAULT)
    table = {}
    for name in names:
        own = losses(results, name)
        table[name] = {
            "validation_loss": round(fmean(own.values()), 4),
            "effect": round(fmean(own[seed] - base[seed] for seed in own if seed in base), 4),
            "spread": round(stdev(own.values()), 4) if len(own) > 1 else None,
            "seeds": len(own),
            **({} if name == DEFAULT else significance(own, base)),
            "parameters": results.runs[f"{name} / {min(own)}"]["parameters"],
        }
    return table


def significance(own: Mapping[int, float], base: Mapping[int, float]) -> dict[str, float | None]:
    """The p-values to two digits, None where there are too few seeds for one."""
    both = sorted(own.keys() & base.keys())
    differences = [own[seed] - base[seed] for seed in both]
    welch = p_value([*own.values()], [*base.values()]) if min(len(own), len(base)) > 1 else None
    paired = paired_p_value(differences) if len(both) > 1 else None
    return {"p": two_digits(welch), "p_paired": two_digits(paired)}


def two_digits(p: float | None) -> float | None:
    """0.012345 as 0.012."""
    return None if p is None else float(f"{p:.2g}")


def losses(results: Results, name: str) -> dict[int, float]:
    """The losses of an arm by seed."""
    found = {}
    for key, run in results.runs.items():
        arm, _, seed = key.rpartition(" / ")
        if arm == name:
            found[int(seed)] = run["validation_loss"]
    return found


def main() -> None:
    """Train what is missing, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", metavar="ARM", help="these arms; the default is always there")
    parser.add_argument("--tokens", type=int, default=122_880, help="of each training; a --runs for each")
    parser.add_argument("--threads", type=int, help="losses do not depend on it")
    parser.add_argument("--cache", type=Path, default=Path("runs/data"), help="where the prepared text is")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/recipe.json"), help="figures of each training"
    )
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results, prepared = Results(arguments.runs), demo_text(arguments.cache)
    names = [DEFAULT, *(name for name in arguments.only or ARMS if name != DEFAULT)]
    for name in names:
        for seed in range(DEFAULT_SEEDS if name == DEFAULT else arguments.seeds):
            results.get(
                f"{name} / {seed}", lambda n=name, s=seed: train_arm(prepared, ARMS[n], s, arguments.tokens)
            )
    setting = {"model": MODEL, "batch_tokens": BATCH_TOKENS, "tokens": arguments.tokens}
    result = {
        "environment": environment(),
        "setting": setting,
        "arms": compare(results, names),
        "runs": results.runs,
    }
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["arms"]))


if __name__ == "__main__":
    main()
