"""Which trainings the ledger compares, and that each differs from the full set in what its name says."""

import platform
from itertools import pairwise
from typing import Any

import pytest
import torch

from hasten.core.allocator import SWITCH, VARIABLE
from hasten.core.errors import ConfigError
from hasten.ledger import arms as arms_module
from hasten.ledger.arms import Arm, make_arms, missing
from hasten.ledger.techniques import TECHNIQUES, Technique, choose
from hasten.lookup import read
from hasten.model.presets import GPT
from hasten.recipe import Recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DEMO = read("demo", [])
ALL = tuple(TECHNIQUES)


def by_name(names: tuple[str, ...] = ALL, device: torch.device = CPU, **options: Any) -> dict[str, Arm]:
    return {arm.name: arm for arm in make_arms(names, device, **options)}


def test_every_technique_is_left_out_once_or_added_once() -> None:
    arms = by_name()
    for name, entry in TECHNIQUES.items():
        added = entry.by_choice(CPU)
        arm = arms[f"with {name}" if added else f"without {name}"]
        changed = set(arm.on) ^ set(arms["full"].on)
        assert changed == {name} and arm.technique == name and (name in arm.on) == added
        assert set(arm.on) | set(arm.off) == set(ALL) and not set(arm.on) & set(arm.off)


def test_the_plain_arm_has_only_what_pytorch_does_by_itself() -> None:
    assert by_name()["plain"].on == ("threads",)
    assert "plain" not in by_name(("threads",)), "without anything to leave out it would be the full set"


def test_the_staircase_goes_from_plain_to_full_one_at_a_time() -> None:
    arms = by_name(staircase=True)
    stairs = [arms["plain"], *(arm for arm in arms.values() if arm.kind == "stair"), arms["full"]]
    for below, above in pairwise(stairs):
        assert len(set(above.on) - set(below.on)) == 1 and not set(below.on) - set(above.on)
    assert all(arm.technique in arm.on for arm in stairs[1:-1])


def test_compiling_is_left_out_on_a_gpu_and_added_on_a_cpu() -> None:
    assert "with compile" in by_name() and "without compile" in by_name(device=GPU)


def test_arms_that_learn_otherwise_are_known() -> None:
    learning = {name for name, arm in by_name(staircase=True).items() if arm.learns}
    assert {"without muon", "without block", "with fp8", "plain", "stair bf16"} <= learning
    assert not learning & {"full", "without bf16", "without kernels", "without prefetch", "with compile"}
    assert not by_name(("bf16", "prefetch"))["plain"].learns


@pytest.mark.parametrize(
    "name, expected",
    [
        ("full", {"precision": "auto", "compile": "off", "optimizer.kind": "muon"}),
        ("without bf16", {"precision": "fp32"}),
        ("with fp8", {"precision": "fp8", "optimizer.kind": "muon"}),
        ("with compile", {"compile": "on"}),
        ("without muon", {"optimizer.kind": "adamw", "precision": "auto"}),
        ("plain", {"precision": "fp32", "compile": "off", "optimizer.kind": "adamw"}),
    ],
)
def test_an_arm_is_a_recipe(name: str, expected: dict[str, str]) -> None:
    train = by_name()[name].recipe(DEMO, []).train.model_dump()
    for key, value in expected.items():
        part, _, rest = key.partition(".")
        assert (train[part][rest] if rest else train[part]) == value


def test_without_the_modern_block_the_model_is_gpt2s_in_the_same_size() -> None:
    model = by_name()["without block"].recipe(DEMO, []).model
    for key, value in GPT.items():
        assert key == "vocab_size" or getattr(model, key) == value
    for key in ("dim", "num_layers", "num_heads", "max_positions", "vocab_size"):
        assert getattr(model, key) == getattr(DEMO.model, key)


def test_what_comes_later_wins_over_the_arm() -> None:
    recipe = by_name()["plain"].recipe(DEMO, ["train.minutes=null", "train.steps=7"])
    assert (recipe.train.steps, recipe.train.minutes, recipe.train.precision) == (7, None, "fp32")


def test_a_process_gets_the_switches_of_what_it_is_without_and_of_nothing_else() -> None:
    given = {"HOME": "/h", "HASTEN_KERNELS": "off", SWITCH: "off", "OMP_NUM_THREADS": "3"}
    full = by_name()["full"].environment(given)
    assert full["HOME"] == "/h" and full["OMP_NUM_THREADS"] == "3"
    assert "HASTEN_KERNELS" not in full and SWITCH not in full
    assert by_name()["without kernels"].environment(given)["HASTEN_KERNELS"] == "off"
    assert by_name()["without threads"].environment(given)["OMP_NUM_THREADS"] == "1"
    if platform.libc_ver()[0] == "glibc":
        assert "hugetlb" in full[VARIABLE]
        assert VARIABLE not in by_name()["without allocator"].environment(full)


def test_what_cannot_be_had_has_its_reason_in_both_languages() -> None:
    adamw = read("demo", ["train.optimizer={kind: adamw}", "train.precision=fp32", "model.position=learned"])
    reasons = missing(TECHNIQUES, adamw, CPU)
    assert {"bf16", "muon", "batched_muon", "block", "fp8"} <= reasons.keys()
    assert all(english and chinese for english, chinese in reasons.values())
    assert "attention" not in reasons


def test_a_reader_adds_a_technique_by_adding_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Technique(
        ("warm-up", "预热"), ("Begin slowly.", "缓慢开始。"), off=("train.schedule.warmup_steps=0",)
    )
    monkeypatch.setitem(TECHNIQUES, "warmup", entry)
    arm = {a.name: a for a in arms_module.make_arms(choose(["warmup"]), CPU)}["without warmup"]
    schedule = arm.recipe(DEMO, []).train.schedule
    assert schedule == replace_warmup(DEMO, 0)


def replace_warmup(recipe: Recipe, steps: int) -> Any:
    return recipe.train.schedule.model_copy(update={"warmup_steps": steps})


def test_an_unknown_technique_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"bench.techniques has no 'moun'\. Did you mean 'muon'\?"):
        choose(["moun"])


def test_every_entry_tells_in_two_languages_and_changes_something() -> None:
    for entry in TECHNIQUES.values():
        assert all(text for text in (*entry.title, *entry.does))
        changes = bool(entry.off or entry.environment or entry.without is not Technique.without or entry.on)
        assert changes, "without it nothing would be different"
