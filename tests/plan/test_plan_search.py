"""The search: what it ranks fits and divides, more hardware never hurts, 100,000 devices are few layouts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.model.config import ModelConfig
from hasten.plan.advice import enough_devices, what_would_help
from hasten.plan.hardware import parse_hardware
from hasten.plan.layout import Layout, misfit
from hasten.plan.memory import bound
from hasten.plan.search import Question, candidates, memory_of, search
from hasten.plan.work import Work

WORKS = {name: Work.of(ModelConfig(preset=name)) for name in ("gpt2", "llama3-8b", "llama3-70b", "gpt3-175b")}
MOST_LAYOUTS = 200_000


def question(model="llama3-8b", hardware="h100x8", row_tokens=4096, rows=256, **rest) -> Question:
    """A question with usual answers."""
    return Question(WORKS[model], parse_hardware(hardware), row_tokens, rows, **rest)


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from(sorted(WORKS)),
    hardware=st.sampled_from(["4090x2", "a100x8", "h100x4", "h200x8x3", "h100x8x5", "gb200x64", "l4x8x2"]),
    rows=st.sampled_from([1, 6, 48, 64, 250]),
    row_tokens=st.sampled_from([1000, 2048, 16_384]),
)
def test_every_layout_is_ranked_or_refused_for_a_true_reason(model, hardware, rows, row_tokens):
    asked = question(model, hardware, row_tokens, rows)
    plan = search(asked)
    limit = asked.cluster.device.memory
    for choice in plan.ranked:
        layout = choice.layout
        assert layout.devices <= asked.cluster.devices
        assert layout.tensor <= asked.cluster.per_node
        assert misfit(layout, asked.work, row_tokens, rows) is None
        assert choice.memory.total <= limit
        assert layout.micro_batches(rows) * layout.micro_batch * layout.replicas == rows
        assert 0 < choice.mfu < 1
    assert [c.rank for c in plan.ranked] == sorted(c.rank for c in plan.ranked)
    for layout, memory in plan.too_large:
        assert memory.total > limit
        assert memory == memory_of(asked, layout)
    assert plan.tried == sum(1 for _ in candidates(asked))
    assert sum(r.count for r in plan.refused) + plan.fitting == plan.tried
    assert (plan.fitting > 0) == bool(plan.ranked)


@settings(max_examples=15, deadline=None)
@given(
    model=st.sampled_from(sorted(WORKS)),
    device=st.sampled_from(["a100", "h100", "h200"]),
    nodes=st.integers(0, 5),
    rows=st.sampled_from([64, 256, 1024]),
)
def test_more_devices_never_take_a_layout_away_nor_make_the_best_slower(model, device, nodes, rows):
    few = search(question(model, f"{device}x8x{2**nodes}", rows=rows))
    many = search(question(model, f"{device}x8x{2 ** (nodes + 1)}", rows=rows))
    for choice in few.ranked:
        again = memory_of(many.question, choice.layout)
        assert again.total <= many.question.cluster.device.memory
        assert misfit(choice.layout, many.question.work, 4096, rows) is None
    if few.best:
        assert many.best is not None
        assert many.best.rank[0] <= few.best.rank[0] * 1.001


def test_more_memory_keeps_what_fits():
    small, large = search(question(hardware="a100-40x8")), search(question(hardware="a100x8"))
    assert len(large.too_large) < len(small.too_large)
    kept = {layout for layout, _ in large.too_large}
    assert kept <= {layout for layout, _ in small.too_large}


def test_a_hundred_thousand_devices_are_few_layouts():
    plan = search(
        Question(
            Work.of(ModelConfig(preset="llama3.1-405b")),
            parse_hardware("h100x8x12500"),
            8192,
            16_384,
            tokens=1e13,
        )
    )
    assert plan.question.cluster.devices == 100_000
    assert plan.tried < MOST_LAYOUTS
    assert plan.best is not None
    assert plan.best.layout.devices > 50_000
    assert plan.best.cost == pytest.approx(plan.best.device_hours * 3.0)
    assert plan.best.device_hours == pytest.approx(plan.best.days * 24 * 100_000)


def test_one_device_has_one_way():
    plan = search(question("gpt2", "4090", 1024, 64))
    assert {choice.layout.devices for choice in plan.ranked} == {1}
    assert plan.best.layout.recompute == "none"


def test_the_simplest_of_equals_wins():
    best = search(question(hardware="h100x8x2", row_tokens=8192, rows=128)).best
    assert (best.layout.shard, best.layout.axes) == (16, 0)


def test_what_is_given_is_kept_and_the_rest_is_searched():
    asked = question(hardware="h100x8x4", fixed={"tensor": 4, "pipeline": 2, "recompute": "full"})
    plan = search(asked)
    found = {(c.layout.tensor, c.layout.pipeline, c.layout.recompute) for c in plan.ranked}
    assert found == {(4, 2, "full")}
    assert {c.layout.shard for c in search(question(fixed={"shard": 2, "data": 2})).ranked} == {2}


def test_where_nothing_fits_it_says_what_is_missing_and_how_many_devices_would_do():
    asked = question("llama3-70b", "h100x8")
    plan = search(asked)
    assert plan.best is None
    nearest = min(refusal.missing for refusal in plan.refused if "GB or more" in refusal.reason)
    assert nearest == pytest.approx(plan.too_large[0][1].total - asked.cluster.device.memory)
    enough = enough_devices(asked)
    assert search(question("llama3-70b", enough.name)).best is not None
    half = f"h100x8x{enough.nodes // 2}"
    assert search(question("llama3-70b", half)).best is None
    assert what_would_help(plan) == []
    assert {bound(memory) for _, memory in plan.too_large} == {"states", "activations"}


def test_what_would_help_names_the_bottleneck():
    fixed = {"tensor": 1, "pipeline": 1, "context": 1, "shard": 32}
    slow = Question(WORKS["llama3-8b"], parse_hardware("h100x8x4", "eth1"), 2048, 32, fixed=fixed)
    from_network = what_would_help(search(slow))
    assert from_network[0].change == "a network between nodes of twice the bandwidth"
    assert from_network == sorted(from_network, key=lambda each: -each.gain)
    changes = {each.change for each in what_would_help(search(question(rows=8)))}
    assert "products in fp8" in changes
    assert "products in fp8" not in {e.change for e in what_would_help(search(question(precision="fp8")))}


@pytest.mark.parametrize(
    ("layout", "rows", "reason"),
    [
        (Layout(tensor=5), 8, "tensor 5 does not divide 32 heads"),
        (Layout(tensor=16), 8, None),
        (Layout(context=3), 8, "twice context 3 does not divide rows of 4,096 tokens"),
        (Layout(pipeline=16, interleave=3), 16, "pipeline 16 x 3 is more than 32 layers"),
        (Layout(data=3), 8, "3 replicas x 1 rows do not divide a batch of 8 rows"),
        (Layout(pipeline=4, interleave=2), 6, "an interleaved pipeline of 4 does not divide 6 micro-batches"),
        (Layout(tensor=8, sequence_parallel=True), 8, None),
    ],
)
def test_what_does_not_divide_is_said(layout, rows, reason):
    assert misfit(layout, WORKS["llama3-8b"], 4096, rows) == reason
