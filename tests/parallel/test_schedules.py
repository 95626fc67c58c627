"""Pipeline schedules: bubbles and memory equal the published formulas exactly, and nothing deadlocks."""

import itertools
from fractions import Fraction

import pytest

from hasten.core.errors import ConfigError
from hasten.parallel.schedules import (
    DeadlockError,
    Op,
    bubble_share,
    forwards,
    program,
    reader_of,
    simulate,
    source_of,
)


def unit(op: Op) -> int:
    """Backward costs twice a forward."""
    return 1 if op.kind == "forward" else 2


@pytest.mark.parametrize("stages", range(2, 9))
@pytest.mark.parametrize("order", ["gpipe", "1f1b"])
def test_bubbles_are_those_of_the_formula(order, stages):
    for micro_batches in range(stages, 33):
        line = simulate(program(order, stages, micro_batches), unit)
        assert (
            line.bubble == Fraction(stages - 1, micro_batches) == bubble_share(order, stages, micro_batches)
        )


@pytest.mark.parametrize("stages", range(2, 9))
@pytest.mark.parametrize("interleave", [1, 2, 3, 4])
def test_interleaving_divides_the_bubble(stages, interleave):
    for micro_batches in range(stages, 33, stages):
        line = simulate(program("interleaved", stages, micro_batches, interleave), unit)
        assert line.bubble == Fraction(stages - 1, interleave * micro_batches)


@pytest.mark.parametrize("stages", range(2, 9))
def test_no_schedule_deadlocks_with_one_place_in_every_channel(stages):
    for micro_batches in range(stages, 33):
        orders = [("gpipe", 1), ("1f1b", 1)]
        orders += [("interleaved", v) for v in (2, 3)] if micro_batches % stages == 0 else []
        for order, interleave in orders:
            line = simulate(program(order, stages, micro_batches, interleave), unit, channel=1)
            ran = [span.op for spans in line.stages for span in spans]
            assert len(ran) == len(set(ran)) == 2 * stages * micro_batches * interleave


@pytest.mark.parametrize("stages", range(2, 9))
def test_a_place_in_every_channel_is_enough_not_to_wait(stages):
    """Where all stages take as long, senders wait for no reader."""
    for order, interleave in (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3)):
        operations = program(order, stages, 3 * stages, interleave)
        assert simulate(operations, unit, channel=1).makespan == simulate(operations, unit).makespan


def sent_and_read(operations, chunks, kind, stage):
    """What a stage makes for the next one in the direction of `kind`, and what that one reads, in order."""
    step = 1 if kind == "forward" else -1
    reader = operations[(stage + step) % len(operations)]
    sent = [reader_of(op, chunks) for op in operations[stage] if op.kind == kind]
    return [op for op in sent if op], [op for op in reader if op.kind == kind and source_of(op, chunks)]


@pytest.mark.parametrize("stages", range(2, 9))
def test_stages_read_in_the_order_in_which_their_neighbours_send(stages):
    """So one channel for each direction serves all chunks."""
    for micro_batches in range(stages, 33):
        orders = [("gpipe", 1), ("1f1b", 1)]
        orders += [("interleaved", v) for v in (2, 3)] if micro_batches % stages == 0 else []
        for order, interleave in orders:
            operations = program(order, stages, micro_batches, interleave)
            for kind, stage in itertools.product(("forward", "backward"), range(stages)):
                sent, read = sent_and_read(operations, stages * interleave, kind, stage)
                assert sent == read
        for interleave in (1, 2, 3):
            operations = [forwards(stage, stages, micro_batches, interleave) for stage in range(stages)]
            for stage in range(stages):
                sent, read = sent_and_read(operations, stages * interleave, "forward", stage)
                assert sent == read


@pytest.mark.parametrize("stages", range(2, 9))
@pytest.mark.parametrize("interleave", [1, 2, 3])
def test_forwards_alone_wait_for_the_first_ones_only(stages, interleave):
    for micro_batches in range(1, 33):
        operations = [forwards(stage, stages, micro_batches, interleave) for stage in range(stages)]
        line = simulate(operations, unit, channel=1)
        ran = [span.op for spans in line.stages for span in spans]
        assert len(ran) == len(set(ran)) == stages * micro_batches * interleave
        if micro_batches % stages == 0:
            assert line.bubble == bubble_share("1f1b", stages, micro_batches, interleave)


@pytest.mark.parametrize("stages", range(2, 9))
def test_activations_in_flight_are_those_of_the_formula(stages):
    for micro_batches in range(stages, 33):
        gpipe = simulate(program("gpipe", stages, micro_batches), unit)
        ours = simulate(program("1f1b", stages, micro_batches), unit)
        for stage in range(stages):
            assert gpipe.peak_in_flight(stage) == micro_batches
            assert ours.peak_in_flight(stage) == min(micro_batches, stages - stage)
    for interleave in (2, 3):
        line = simulate(program("interleaved", stages, 4 * stages, interleave), unit)
        share = Fraction(line.peak_in_flight(0), interleave * stages)
        assert share == 1 + Fraction(stages - 1, stages * interleave)


def test_a_full_channel_holds_its_sender_up():
    """Of a stage three times as slow: it reads at 1, 4, 7, and from 5 to 7 a third result finds no room."""
    line = simulate(program("gpipe", 2, 6), lambda op: 1 if op.chunk == 0 else 3, channel=2)
    assert [span.start for span in line.stages[0]][:6] == [0, 1, 2, 3, 4, 7]


def test_operations_wait_for_what_they_read():
    line = simulate(program("interleaved", 4, 8, 2), unit, transfer=1)
    ends = {span.op: span.end for spans in line.stages for span in spans}
    for spans in line.stages:
        for before, after in itertools.pairwise(spans):
            assert before.end <= after.start
        for span in spans:
            step = -1 if span.op.kind == "forward" else 1
            source = span.op._replace(chunk=span.op.chunk + step)
            if source in ends:
                assert span.start >= ends[source] + 1
            if span.op.kind == "backward":
                assert span.start >= ends[span.op._replace(kind="forward")]


def test_a_schedule_that_waits_for_itself_is_named():
    stages = program("1f1b", 2, 2)
    stages[1] = [Op("backward", 0, 1), Op("forward", 0, 1), Op("forward", 1, 1), Op("backward", 1, 1)]
    with pytest.raises(DeadlockError, match=r"the schedule deadlocks: stage 0 for .*stage 1 for"):
        simulate(stages, unit)


def test_interleaving_needs_whole_rounds():
    with pytest.raises(ConfigError, match="takes a multiple of 4 micro-batches, not 6"):
        program("interleaved", 4, 6, 2)
    with pytest.raises(ConfigError, match="at least"):
        program("1f1b", 0, 6)
