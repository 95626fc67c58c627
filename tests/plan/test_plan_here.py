"""What is said of a training on this machine: laws that fit, counts that add up, bytes that are there."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.runtime import Runtime
from hasten.model.config import ModelConfig
from hasten.parallel.config import ParallelConfig
from hasten.plan import here, machine
from hasten.plan.kernels import KERNELS, product, stream, timed
from hasten.plan.law import fit_law, seconds_of
from hasten.plan.machine import Machine
from hasten.plan.step import Call, exchange_calls, pass_calls, update_calls
from hasten.train.footprint import Workload, footprint
from hasten.train.transfer import orthogonal_flops

CPU = Runtime(torch.device("cpu"))
SHAPES: dict[str, dict[str, Any]] = {
    "gpt": {"activation": "gelu", "position": "learned", "norm": "layer", "tied": True},
    "llama": {"activation": "swiglu", "num_kv_heads": 2},
    "encoder": {"kind": "encoder", "norm_place": "after", "dropout": 0.1},
    "window": {"sliding_window": 16},
}


def work(shape: str = "llama", **given: Any) -> Workload:
    """A process's step."""
    model = ModelConfig(vocab_size=1000, dim=64, num_layers=4, num_heads=4, max_positions=64, **SHAPES[shape])
    return Workload(**{"model": model, "micro_rows": 4, "row_tokens": 64, "kernels": True, **given})


def flops(calls: list[Call]) -> float:
    """Of products, attention and loss, one way and back, which takes twice as many."""
    return sum(
        call.features.get("flops", 0.0) * (1 if call.law == "loss" else call.forward + 2 * call.back)
        for call in calls
    )


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_law_is_found_from_what_it_says(law):
    sizes = [(64, 64, 64), (512, 64, 64), (64, 512, 64), (64, 64, 512), (512, 512, 512), (32, 700, 900)]
    names = ("flops", "in", "weight")
    features = [{name: product(*size)[name] for name in names} for size in sizes]
    true = dict(zip(names, (1e-12 * law[0], 1e-9 * law[1], 1e-9 * law[2]), strict=True))
    seconds = [seconds_of(true, each) for each in features]
    if min(seconds) < 1e-8:
        return
    found = fit_law(features, seconds)
    for each, wanted in zip(features, seconds, strict=True):
        assert seconds_of(found, each) == pytest.approx(wanted, rel=0.02)
    assert min(found.values()) >= 0


def test_nothing_makes_a_kernel_faster():
    law = fit_law([stream(n) for n in (1, 2, 3)], [3.0, 2.0, 1.0])
    assert law["numbers"] == 0
    assert law["once"] > 0


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_can_be_timed(name):
    kernel = KERNELS[name]
    smallest = min(kernel.sizes, key=lambda size: sum(kernel.features(*size).values()))
    forward, back = timed(kernel, smallest, torch.bfloat16)
    assert forward > 0
    assert back >= 0
    assert len({tuple(kernel.features(*size)) for size in kernel.sizes}) == 1
    assert len(kernel.sizes) > len(kernel.features(*smallest)) - 1


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "window"])
def test_operations_of_a_pass_are_those_of_the_model(shape):
    step = work(shape)
    expected = step.model.flops_per_token(64) * 4 * 64
    assert flops(list(pass_calls(step))) == pytest.approx(expected, rel=0.02)


def test_seq2seq_counts_both_sides():
    model = ModelConfig(kind="seq2seq", vocab_size=1000, dim=64, num_layers=2, num_heads=4, max_positions=64)
    step = Workload(model, 4, 64, kernels=True)
    assert flops(list(pass_calls(step))) == pytest.approx(model.flops_per_token(64) * 4 * 64, rel=0.02)


def test_a_teacher_reads_once_and_nothing_comes_back():
    teacher = work().model.model_copy(update={"dim": 128, "num_layers": 6})
    both, alone = (flops(list(pass_calls(work(teacher=t)))) for t in (teacher, None))
    assert both - alone == pytest.approx(teacher.flops_per_token(64) * 4 * 64 / 3, rel=0.02)


def test_a_window_and_documents_are_seen_less():
    whole = flops(list(pass_calls(work())))
    assert flops(list(pass_calls(work(document_tokens=8)))) < whole
    narrow = [call for call in pass_calls(work("window")) if call.law == "attention"]
    assert narrow[0].features["scores"] == 4 * 64 * 16 * 4


def test_what_is_made_again_is_counted_again():
    def forward(**given: Any) -> float:
        calls = pass_calls(work(**given))
        return sum(call.features["flops"] * call.forward for call in calls if call.law == "product")

    plain = forward()
    assert forward(recompute="selective") == plain
    assert forward(recompute="full") == pytest.approx(2 * plain)
    assert forward(recompute="full", recompute_layers=1) == pytest.approx(1.25 * plain)
    norms = {mode: sum(c.forward for c in pass_calls(work(recompute=mode)) if c.law == "norm")
             for mode in ("none", "selective")}  # fmt: skip
    assert norms["selective"] == norms["none"] + 8


def test_matrices_are_dealt_out_and_take_turns():
    def orthogonal(**given: Any) -> float:
        calls = update_calls(work(optimizer="muon", **given))
        return sum(call.features["flops"] for call in calls if call.law == "orthogonal")

    assert orthogonal() == pytest.approx(orthogonal_flops(work().model))
    assert orthogonal(turns=4) == pytest.approx(orthogonal() / 4)
    parallel = {"degrees": {"data": 2}, "parallel": ParallelConfig(data=2)}
    assert orthogonal(**parallel) == pytest.approx(orthogonal() / 2)


@pytest.mark.parametrize(
    ("degrees", "laws"),
    [
        ({}, set()),
        ({"data": 2}, {"reduce"}),
        ({"shard": 2}, {"gather", "scatter"}),
        ({"data": 2, "shard": 2}, {"reduce", "gather", "scatter"}),
        ({"tensor": 2}, {"gather", "scatter"}),
        ({"context": 2}, {"reduce", "send"}),
        ({"pipeline": 2}, {"send"}),
    ],
)
def test_what_is_sent_depends_on_the_axes(degrees, laws):
    calls = list(exchange_calls(work(degrees=degrees, parallel=ParallelConfig(**degrees))))
    assert {call.law for call in calls} == laws
    if degrees == {"data": 2}:
        assert calls[0].features["numbers"] == pytest.approx(work().model.num_parameters)


def machine_of(seconds: float) -> Machine:
    """A machine on which every call of everything takes so long."""
    names = [*KERNELS, "reduce", "gather", "scatter", "send"]
    features = {name: KERNELS[name].features(*KERNELS[name].sizes[0]) for name in KERNELS}
    laws = {}
    for name in names:
        law = dict.fromkeys(features.get(name, stream(1)), 0.0) | {"once": seconds}
        laws[name] = law, law
    return Machine(laws, "of the test")


def test_a_step_is_the_sum_of_its_calls():
    one = here.step_parts(work(), machine_of(1.0))
    two = here.step_parts(work(micro_batches=2), machine_of(1.0))
    once = sum(call.forward + call.back for call in pass_calls(work()))
    updates = sum(call.forward for call in update_calls(work()))
    assert sum(one.values()) == pytest.approx(once + updates)
    assert sum(two.values()) == pytest.approx(2 * once + updates + 1)
    pipeline = {"degrees": {"pipeline": 2}, "parallel": ParallelConfig(pipeline=2), "micro_batches": 4}
    assert here.step_parts(work(**pipeline), machine_of(1.0))["bubble"] > 0


def test_a_prediction_is_for_json(monkeypatch):
    monkeypatch.setattr(here, "this_machine", lambda *_, measure: machine_of(1e-3) if measure else None)
    said = here.predict(work(), CPU, base_bytes=3e8)
    assert json.loads(json.dumps(said.state()))["step_seconds"] == pytest.approx(sum(said.parts.values()))
    assert said.peak_bytes > 3e8 + footprint(work()).total
    unmeasured = here.predict(work(), CPU, base_bytes=3e8, measure=False)
    assert unmeasured.step_seconds is None
    assert unmeasured.peak_bytes == said.peak_bytes


def test_a_machine_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "machine_file", lambda: tmp_path / "cache" / "machine.json")
    measured = []

    def laws(runtime: Runtime, precision: str) -> dict[str, Any]:
        measured.append(precision)
        return {name: ({"once": 1.0}, {"once": 2.0}) for name in KERNELS}

    monkeypatch.setattr(machine, "measure_laws", laws)
    assert machine.this_machine(CPU, "bf16", measure=False) is None
    first = machine.this_machine(CPU, "bf16")
    again = machine.this_machine(CPU, "bf16")
    assert first == again
    assert machine.this_machine(CPU, "fp32") is not None
    assert measured == ["bf16", "fp32"]
    (tmp_path / "cache" / "machine.json").write_text("{broken")
    assert machine.this_machine(CPU, "bf16", measure=False) is None
    assert machine.this_machine(CPU, "bf16") == first


def test_a_run_is_a_layout_to_the_clockwork():
    parallel = ParallelConfig(shard=2, tensor=2, stage=2)
    step = work(degrees={"shard": 2, "tensor": 2}, parallel=parallel, recompute="full")
    layout = here.layout_of(step)
    assert (layout.shard, layout.tensor, layout.stage, layout.recompute) == (2, 2, 2, "full")
    assert layout.sequence_parallel
    assert layout.micro_batch == 4
