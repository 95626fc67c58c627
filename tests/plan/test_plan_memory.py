"""Memory of a layout against the published formulas, written out, and a worked example."""

import pytest

from hasten.model.config import ModelConfig
from hasten.model.presets import PRESETS
from hasten.parallel.schedules import program, simulate, split_layers
from hasten.plan.layout import Layout
from hasten.plan.memory import (
    FRAGMENTS,
    HALF_GRADIENTS,
    MASTER,
    OURS,
    Keeping,
    in_flight,
    layer_activations,
    muon,
    overhead,
    parameters_on,
    peak_memory,
    stage_layers,
)
from hasten.plan.work import Work

ROW, DIM, HEADS = 2048, 12_288, 96
GPT3 = Work.of(ModelConfig(preset="gpt3-175b", vocab_size=51_200, dropout=0.1))
SCORES = Keeping(scores=True)


def bytes_of(**degrees) -> float:
    """Of one layer of GPT-3 and one row, with the attention's square stored."""
    return layer_activations(GPT3, Layout(**degrees), ROW, SCORES)


@pytest.mark.parametrize(
    ("degrees", "per_number"),
    [
        ({}, 34 + 5 * HEADS * ROW / DIM),
        ({"tensor": 8}, 10 + 24 / 8 + 5 * HEADS * ROW / (DIM * 8)),
        ({"tensor": 8, "sequence_parallel": True}, (34 + 5 * HEADS * ROW / DIM) / 8),
        ({"tensor": 8, "recompute": "selective"}, 10 + 24 / 8),
        ({"tensor": 8, "sequence_parallel": True, "recompute": "selective"}, 34 / 8),
    ],
)
def test_a_classic_layer_keeps_what_korthikanti_counts(degrees, per_number):
    assert bytes_of(**degrees) == pytest.approx(ROW * DIM * per_number, rel=1e-12)


def test_the_worked_example_of_gpt3():
    """Megabytes a layer, and gigabytes of stage 0 with twelve layers and eight micro-batches in flight."""
    layout = {"tensor": 8, "pipeline": 8, "data": 16}
    assert bytes_of(tensor=8) / 1e6 == pytest.approx(578.8, abs=0.05)
    assert bytes_of(tensor=8, sequence_parallel=True) / 1e6 == pytest.approx(358.6, abs=0.05)
    assert bytes_of(tensor=8, sequence_parallel=True, recompute="selective") / 1e6 == pytest.approx(
        107, abs=0.05
    )
    assert 12 * 8 * bytes_of(tensor=8) / 1e9 == pytest.approx(55.6, abs=0.05)
    assert in_flight(Layout(**layout), 0, 96) == 8
    assert in_flight(Layout(**layout, interleave=3), 0, 96) / 8 == pytest.approx(1.29, abs=0.005)
    full = peak_memory(GPT3, Layout(**layout, recompute="full"), ROW, 1536, scheme=MASTER, keeping=SCORES)
    assert stage_layers(GPT3, Layout(**layout), ROW) == [12] * 8
    mean, first = GPT3.parameters / 64, 12 * (GPT3.matrix_parameters / 8 + GPT3.norm_parameters)
    assert mean / 1e9 == pytest.approx(2.728, abs=0.001)
    assert 18 * mean / 1e9 == pytest.approx(49.1, abs=0.05)
    assert full.states == pytest.approx(18 * (first + GPT3.input_parameters / 8))  # it has the embedding too
    ids = ROW * (2 * DIM + 8)
    assert full.activations == pytest.approx(96 * 2 * ROW * DIM + bytes_of(tensor=8) + ids)


def test_a_gated_layer_keeps_the_sum_of_its_parts():
    work = Work.of(ModelConfig(preset="llama3-8b"))
    gamma, phi = 8 / 32, 14_336 / 4096
    kept = layer_activations(work, Layout(micro_batch=2), ROW)
    assert kept == pytest.approx(2 * ROW * 4096 * (14 + 6 * gamma + 8 * phi))
    gathered = Keeping(gathered=True)
    split = layer_activations(work, Layout(micro_batch=2, tensor=4, sequence_parallel=True), ROW, gathered)
    assert split == pytest.approx(kept / 4 + 4 * 2 * ROW * 4096)


@pytest.mark.parametrize(
    ("scheme", "stage", "per_parameter"),
    [
        (MASTER, 1, 6 + 12 / 4),
        (MASTER, 2, 2 + 16 / 4),
        (OURS, 3, 16 / 4),
        (HALF_GRADIENTS, 1, 4 + 12 / 4),
        (HALF_GRADIENTS, 2, 2 + 14 / 4),
        (HALF_GRADIENTS, 3, 16 / 4),
    ],
)
def test_states_are_shared_as_zero_says(scheme, stage, per_parameter):
    work = Work.of(ModelConfig(preset="gpt2"))
    memory = peak_memory(work, Layout(shard=4, stage=stage), 1024, 64, scheme=scheme)
    assert memory.states == pytest.approx(per_parameter * work.parameters)
    assert (memory.gathered > 0) == (stage == 3)
    assert memory.overhead == pytest.approx(overhead(memory.tensors, Layout(shard=4)))
    assert memory.overhead > FRAGMENTS * memory.tensors


def test_muon_saves_one_moment_of_the_matrices():
    model = ModelConfig(preset="gpt2")
    work = Work.of(model)
    memory = peak_memory(work, Layout(), 1024, 8, scheme=muon(work))
    assert memory.states == pytest.approx(model.state_bytes("muon"))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters_and_activations_are_those_of_the_model(preset):
    model = (
        ModelConfig(preset=preset) if "hasten" not in preset else ModelConfig(preset=preset, vocab_size=8192)
    )
    work = Work.of(model)
    assert parameters_on(work, 1, 0, 1, work.layers) == pytest.approx(model.num_parameters)
    memory = peak_memory(work, Layout(micro_batch=2), 256, 8)
    ours = model.activation_bytes(2, 256) + 2 * 512 * model.dim
    assert memory.activations + memory.logits == pytest.approx(ours)


@pytest.mark.parametrize("interleave", [1, 2, 3])
def test_what_is_in_flight_is_what_the_schedule_holds(interleave):
    for stages in range(2, 7):
        line = simulate(program("1f1b", stages, 4 * stages, interleave), lambda op: 1)
        layout = Layout(pipeline=stages, interleave=interleave)
        for stage in range(stages):
            assert in_flight(layout, stage, 4 * stages) * interleave == line.peak_in_flight(stage)


def test_layers_are_split_so_that_the_dearest_stage_costs_least():
    assert split_layers(24, 4, 0.0) == (6, 6, 6, 6)
    assert split_layers(24, 4, 2.4) == (7, 7, 6, 4)
    assert split_layers(2, 4, 0.0) == (0, 1, 1, 0)
    for layers in range(1, 30):
        for chunks in range(1, layers + 1):
            for head in (0.0, 0.3, 1.7, 5.0):
                split = split_layers(layers, chunks, head)
                assert sum(split) == layers
                assert len(split) == chunks
                cost = max(*split[:-1], split[-1] + head) if chunks > 1 else layers + head
                assert cost < (layers + head) / chunks + 1 + head
