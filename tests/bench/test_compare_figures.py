"""What is said about a comparison follows from its repeats: medians of the quiet ones, ratios of pairs."""

import pytest
from compare import flops_per_token
from peers.figures import peak_of, ratio, repeat_of, speed, verdict
from peers.shapes import SHAPES
from peers.systems import DEFAULTS, PEERS, all_systems, chosen


def repeats(*seconds: float, others: float = 0.0, first: int = 0) -> list[dict]:
    """Turns of one step in consecutive rounds."""
    turns = [{"steps": 1, "seconds": s, "others": others} for s in seconds]
    return [repeat_of(turn, first + number) for number, turn in enumerate(turns)]


def system(name: str, *seconds: float, ours: bool = False, tuned: bool = False, peak: int = 100) -> dict:
    """An entry of a result."""
    measured = speed(repeats(*seconds), batch_tokens=10, flops_per_token=1, peak=1.0)
    return {
        "name": name,
        "ours": ours,
        "tuned_allocator": tuned,
        "peak_bytes": peak,
        "repeats": repeats(*seconds),
        **measured,
    }


def test_a_turns_seconds_are_divided_by_its_steps():
    assert repeat_of({"steps": 4, "seconds": 6.0, "others": 0.0}, 2)["step_seconds"] == 1.5


def test_disturbed_repeats_are_kept_and_not_counted():
    turns = repeats(1.0, 3.0, 2.0) + repeats(9.0, others=0.5, first=3)
    found = speed(turns, batch_tokens=100, flops_per_token=4, peak=1000.0)
    assert [turn["disturbed"] for turn in turns] == [False, False, False, True]
    assert (found["step_seconds"], found["step_seconds_low"], found["step_seconds_high"]) == (2.0, 1.0, 3.0)
    assert found["spread"] == 1.0
    assert found["quiet_repeats"] == 3


def test_all_repeats_count_where_none_was_quiet():
    found = speed(repeats(1.0, 3.0, others=1.0), batch_tokens=100, flops_per_token=4, peak=1000.0)
    assert found["step_seconds"] == 2.0
    assert found["quiet_repeats"] == 0


def test_mfu_is_model_flops_a_second_over_the_peak():
    found = speed(repeats(0.5), batch_tokens=100, flops_per_token=3, peak=1200.0)
    assert found["tokens_per_second"] == 200.0
    assert found["mfu"] == 0.5


def test_the_peak_is_the_median_of_the_best_rates_of_the_quiet_readings():
    readings = [
        {"rates": {"a": 3.0, "b": 5.0}, "others": 0.0},
        {"rates": {"a": 7.0, "b": 6.0}, "others": 0.1},
        {"rates": {"a": 6.0, "b": 2.0}, "others": 0.0},
        {"rates": {"a": 1.0, "b": 1.0}, "others": 2.0},
    ]
    found = peak_of(readings)
    assert (found["flops_per_second"], found["low"], found["high"]) == (6.0, 5.0, 7.0)
    assert len(found["readings"]) == 4


def test_a_ratio_is_the_median_over_the_rounds_that_both_ran_in():
    ours = system("hasten", 1.0, 2.0, 4.0, ours=True)
    theirs = system("peer", 3.0, 4.0, 6.0)
    theirs["repeats"][0]["disturbed"] = True
    found = ratio(ours, theirs)
    assert found["by_round"] == [2.0, 1.5]
    assert found["ratio"] == 1.75


def test_the_best_peer_is_the_one_that_is_hardest_to_beat():
    ours = system("hasten", 1.0, ours=True, peak=50)
    found = verdict([ours, system(DEFAULTS, 3.0), system("quick", 1.5, peak=40), system("middle", 2.0)])
    assert (found["to_best_peer"]["peer"], found["to_best_peer"]["ratio"]) == ("quick", 1.5)
    assert found["to_trainer_defaults"]["ratio"] == 3.0
    assert found["peers_with_less_memory"] == ["quick"]
    assert found["memory_above_any_peer"]


def test_peers_with_our_allocator_are_compared_apart():
    ours = system("hasten", 1.0, ours=True)
    tuned = system("quick +allocator", 1.2, tuned=True, peak=1)
    found = verdict([ours, system("quick", 1.5), tuned])
    assert found["to_best_peer"]["peer"] == "quick"
    assert found["to_best_peer_with_our_allocator"]["ratio"] == 1.2
    assert not found["memory_above_any_peer"]


def test_other_arms_of_hasten_count_as_no_peer():
    found = verdict(
        [system("hasten", 1.0, ours=True), system("hasten muon", 0.5, ours=True), system("p", 2.0)]
    )
    assert found["to_best_peer"]["peer"] == "p"
    assert "hasten muon" not in found["ratios"]


def test_without_peers_there_is_no_verdict():
    assert verdict([system("hasten", 1.0, ours=True)]) == {}


@pytest.mark.parametrize("name", ["S", "M"])
def test_flops_are_six_per_weight_and_the_causal_half_of_attention(name):
    shape = SHAPES[name]
    weights = 12 * shape.num_layers * shape.dim**2 + shape.vocab_size * shape.dim
    attention = 6 * shape.num_layers * shape.context * shape.dim
    assert flops_per_token(shape) == 6 * weights + attention


@pytest.mark.parametrize("name", ["S", "M"])
def test_gated_peers_have_no_more_work_than_the_others(name):
    shape = SHAPES[name]
    assert 0.97 < 3 * shape.gated_width / (8 * shape.dim) <= 1


def test_patterns_choose_systems_and_a_wrong_one_is_refused():
    systems = all_systems(with_allocator=True)
    assert [s.name for s in chosen(systems, ["litgpt*"])] == [
        "litgpt bf16 compile",
        "litgpt bf16 compile +allocator",
    ]
    assert chosen(systems, []) == systems
    with pytest.raises(SystemExit, match="no system is called 'nanogpt'"):
        chosen(systems, ["nanogpt"])


def test_names_of_systems_are_unique_and_the_defaults_are_among_the_peers():
    names = [system.name for system in all_systems(with_allocator=True)]
    assert len(names) == len(set(names))
    assert DEFAULTS in [peer.name for peer in PEERS]
