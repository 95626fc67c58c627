"""Step times: counted bytes of collectives against their formulas, and what must hold of any layout."""

from dataclasses import replace

import pytest

from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.presets import PRESETS
from hasten.parallel.schedules import program, simulate
from hasten.plan.hardware import DEVICES, LINKS, parse_hardware
from hasten.plan.layout import Layout
from hasten.plan.memory import parameters_on
from hasten.plan.rates import FIT, Software
from hasten.plan.time import Clockwork
from hasten.plan.work import Work

GPT3 = Work.of(ModelConfig(preset="gpt3-175b", vocab_size=51_200))
SLOW = {name: replace(link, latency=0.0) for name, link in LINKS.items()}


@pytest.fixture
def no_latency(monkeypatch):
    """Links without a start-up time, so that seconds are bytes over bandwidth."""
    monkeypatch.setattr("hasten.plan.hardware.LINKS", SLOW)


def megatron() -> Clockwork:
    """GPT-3 on 1024 A100 as in 2021."""
    software = Software(overlap_data=False, gradient_bytes=2, fused_attention=False)
    return Clockwork(GPT3, parse_hardware("a100x8x128"), 2048, precision="fp16", software=software)


@pytest.mark.usefixtures("no_latency")
def test_the_worked_example_of_gpt3_sends_what_the_formulas_count():
    clock, layout = megatron(), Layout(data=16, tensor=8, pipeline=8, recompute="full")
    time = clock.step(layout, 1536)
    assert time.micro_batches == 96
    assert time.tensor * 230e9 == pytest.approx(608.8e9, rel=1e-3)
    held = parameters_on(GPT3, 8, 0, 8, 12)
    network = 25e9 * FIT.network
    assert time.gradients * network == pytest.approx(2 * 15 / 16 * 2 * held)
    assert time.gradients * network == pytest.approx(10.2e9, rel=0.04)  # there without the embedding
    assert time.bubble / (time.compute + time.tensor + time.exchange) == pytest.approx(7 / 96)


@pytest.mark.usefixtures("no_latency")
def test_weights_that_cannot_hide_are_gathered_in_full():
    cluster = parse_hardware("h100x8x16", "eth1")
    clock = Clockwork(GPT3, cluster, 128, software=Software(gradient_bytes=2, rails=False))
    layout = Layout(shard=128)
    time, (once, back) = clock.step(layout, 128), clock.layer(layout)
    size = 127 / 128 * GPT3.matrix_parameters
    wire = 3 * 2 * size / (cluster.across.bandwidth * FIT.network)
    assert time.gather == pytest.approx(GPT3.layers * (wire - once - back))


def test_more_rows_hide_more():
    clock = Clockwork(Work.of(ModelConfig(preset="llama3-8b")), parse_hardware("h100x8x4"), 8192)
    shares = [clock.step(Layout(shard=32, micro_batch=b), 32 * b) for b in (1, 2, 4)]
    assert [time.gather / time.total for time in shares] == sorted(
        (time.gather / time.total for time in shares), reverse=True
    )


@pytest.mark.parametrize("preset", [name for name, shape in PRESETS.items() if "hasten" not in name])
def test_flops_are_those_of_the_model(preset):
    model = ModelConfig(preset=preset)
    assert Work.of(model).flops(1024) == pytest.approx(model.flops_per_token(1024), rel=1e-9)


def test_flops_are_those_of_the_paper_where_the_whole_square_counts():
    layers, dim, row, vocab = 96, 12_288, 2048, 51_200
    theirs = 72 * layers * dim**2 * (1 + row / (6 * dim) + vocab / (12 * layers * dim))
    square = 3 * 2 * row * dim * layers  # the half that a causal count leaves out
    assert GPT3.flops(row) + square == pytest.approx(theirs)


@pytest.mark.parametrize(("stages", "interleave"), [(2, 1), (4, 1), (4, 2), (8, 1)])
def test_the_bubble_of_equal_stages_is_the_simulated_one(stages, interleave):
    layout = Layout(tensor=8, pipeline=stages, interleave=interleave)
    time = megatron().step(replace(layout, data=4), 128)
    line = simulate(
        program("1f1b", stages, time.micro_batches, interleave), lambda op: 1 if op.kind == "forward" else 2
    )
    work = time.compute + time.tensor + time.exchange
    assert time.bubble / work == pytest.approx(float(line.bubble))


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_recomputed_takes_time(recompute):
    clock = megatron()
    plain = clock.step(Layout(tensor=8, pipeline=8, data=16), 1536)
    again = clock.step(Layout(tensor=8, pipeline=8, data=16, recompute=recompute), 1536)
    assert again.compute > plain.compute


def test_faster_hardware_is_never_slower():
    work = Work.of(ModelConfig(preset="llama3-70b"))
    layout = Layout(shard=8, tensor=8, pipeline=2, micro_batch=1)
    for name in DEVICES:
        cluster = parse_hardware(f"{name}x8x16") if DEVICES[name].node == 8 else parse_hardware(f"{name}x128")
        now = Clockwork(work, cluster, 4096).step(layout, 128).total
        faster = replace(cluster.device, bandwidth=2 * cluster.device.bandwidth)
        assert Clockwork(work, replace(cluster, device=faster), 4096).step(layout, 128).total <= now
        network = replace(cluster.across, bandwidth=2 * cluster.across.bandwidth)
        assert Clockwork(work, replace(cluster, across=network), 4096).step(layout, 128).total <= now


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("h100x8x16", ("h100", 8, 16)),
        ("H100x64", ("h100", 8, 8)),
        ("4090", ("4090", 1, 1)),
        ("a100-40x4", ("a100-40", 4, 1)),
        ("a100-80x8", ("a100", 8, 1)),
        ("gb200x64x4", ("gb200", 64, 4)),
    ],
)
def test_hardware_is_read(text, shape):
    cluster = parse_hardware(text)
    assert (cluster.device.name, cluster.per_node, cluster.nodes) == shape
    assert parse_hardware(cluster.name) == cluster


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h10x8", "there is no device 'h10'. Did you mean 'h100'?"),
        ("h100x16x2", "a node of h100 has at most 8"),
        ("h100x0", "has no devices"),
        ("h100 x 8", "is not written DEVICE"),
        ("", "is not written DEVICE"),
    ],
)
def test_hardware_that_is_none_is_refused(text, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse_hardware(text)
    with pytest.raises(ConfigError, match="there is no network 'eth11'"):
        parse_hardware("h100x8", "eth11")


def test_groups_that_leave_a_node_use_its_cards():
    cluster = parse_hardware("h100x8x4")
    assert cluster.link(8).bandwidth == cluster.inside.bandwidth
    assert cluster.link(4, 8).bandwidth == cluster.across.bandwidth
    assert cluster.link(32).bandwidth == min(8 * cluster.across.bandwidth, cluster.inside.bandwidth)
    assert cluster.link(32, rails=False).bandwidth == cluster.across.bandwidth


def test_a_device_without_a_precision_takes_the_next_wider():
    a100 = DEVICES["a100"]
    assert a100.peak("fp8") == a100.peak("bf16")
    assert DEVICES["h100"].peak("fp4") == DEVICES["h100"].peak("fp8")
    with pytest.raises(ConfigError, match="a100 has no int8"):
        a100.peak("int8")
