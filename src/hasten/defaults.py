"""What a recipe that fine-tunes gets where it says nothing: rules that need no tuning, written out.

They are filled in before a recipe is checked, so the recipe that a run's folder keeps has them all.  Sources:
Devlin et al. 2019, A.3 (three epochs, a falling rate, Adam's own betas); Schulman et al. 2025, "LoRA Without
Regret" (ten times the rate for pairs beside all matrices, small batches); Rafailov et al. 2023, B (one epoch
and a tenth of the rate for preferences).
"""

from collections.abc import Mapping
from typing import Any

from hasten.train.config import HORIZONS

CROSS_ENTROPY, DISTILLATION = "cross_entropy", "distillation"
OBJECTIVES = {"spans": "spans", "preferences": "preference"}
"""Of each kind of task that does not learn by cross-entropy."""
EPOCHS = {"labelled": 3, "spans": 3, "chat": 2, "preferences": 1}
METRICS = {
    "labelled": "validation_accuracy",
    "spans": "validation_accuracy",
    "preferences": "validation_accuracy",
}
"""By which checkpoint is the best, where it is not the loss."""
DURING = 64
"""Examples that are scored while training goes on, where that says which checkpoint is the best."""
OPTIMIZER = {"kind": "adamw", "learning_rate": "auto", "weight_decay": 0.01, "betas": [0.9, 0.999]}
SCHEDULE = {"kind": "linear", "warmup_steps": 20}


def filled(recipe: dict[str, Any]) -> dict[str, Any]:
    """The mapping of a recipe with what follows from its task and from the model that it begins with."""
    task, result = kind_of(recipe), dict(recipe)
    objective = result.get("objective", {})
    if isinstance(objective, Mapping):
        result["objective"] = {"kind": OBJECTIVES.get(task or "", CROSS_ENTROPY), **objective}
    train, evaluate = result.get("train", {}), result.get("evaluate", {})
    if isinstance(train, Mapping) and (task or recipe.get("base")):
        result["train"] = trained(dict(train), task, continues(recipe, task))
    if isinstance(train, Mapping) and train.get("metric") == "score" and isinstance(evaluate, Mapping):
        result["evaluate"] = {"during_training": DURING, **evaluate}
    return result


def continues(recipe: Mapping[str, Any], task: str | None) -> bool:
    """Whether a training goes on with a trained model: a student of some of its layers begins anew."""
    return bool(recipe.get("base")) and (task is not None or not recipe.get("layers"))


def kind_of(recipe: Mapping[str, Any]) -> str | None:
    """The kind of the recipe's task, None without one; what is no recipe at all has none either."""
    data = recipe.get("data")
    task = data.get("task") if isinstance(data, Mapping) else None
    kind = task.get("kind") if isinstance(task, Mapping) else None
    return kind if isinstance(kind, str) else None


def trained(train: dict[str, Any], task: str | None, goes_on: bool) -> dict[str, Any]:
    """The recipe's `train`, filled in."""
    if not any(train.get(name) is not None for name in HORIZONS):
        train["epochs"] = EPOCHS.get(task or "", 1)
    if task in METRICS:
        train.setdefault("metric", METRICS[task])
    if goes_on:
        train["optimizer"] = completed(train.get("optimizer", {}), OPTIMIZER)
        train["schedule"] = completed(train.get("schedule", {}), SCHEDULE)
    return train


def completed(given: Any, rule: Mapping[str, Any]) -> Any:
    """What a recipe says of a section, the rest by rule; another kind has rules of its own."""
    same = isinstance(given, Mapping) and given.get("kind", rule["kind"]) == rule["kind"]
    return {**rule, **given} if same else given
