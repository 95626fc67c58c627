"""docs/benchmarks.md says what the result files say, in both languages, and how to get the files."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from benchmarks import SECTIONS, page  # noqa: E402
from page_words import COMMANDS, WORDS  # noqa: E402

ENVIRONMENT = {"processor": "A Chip", "threads": 2, "torch": "2.13.0", "commit": "abc1234"}
TIMES = {"step_seconds_low": 0.9, "step_seconds_high": 1.25, "first_step_seconds": 3.0}
OURS = {"name": "hasten", "ours": True, "step_seconds": 1.0, "tokens_per_second": 4096.0, "mfu": 0.81}
THEIRS = {"name": "litgpt", "ours": False, "step_seconds": 1.5, "tokens_per_second": 2731.0, "mfu": 0.54}
RATIO = {"peer": "litgpt", "ratio": 1.48, "by_round": [1.41, 1.48, 1.55]}
COMPARED = {
    "environment": ENVIRONMENT,
    "peers": {"python": "3.11.7", "litgpt": "0.5.9"},
    "peak": {"flops_per_second": 0.42e12, "low": 0.41e12, "high": 0.43e12},
    "systems": [{**THEIRS, **TIMES, "peak_bytes": 2**31}, {**OURS, **TIMES, "peak_bytes": 2**30}],
    "verdict": {"ratios": {"litgpt": 1.48}, "to_best_peer": RATIO, "peers_with_less_memory": []},
    "missing": {"lightning": "No module named 'lightning'"},
    "failed": {"trainer": "its last words"},
}
CASE = {
    "shape": "110m",
    "rows": 1,
    "read_gigabytes_per_second": 30.0,
    "bound_tokens_per_second": 137.0,
    "decode_tokens_per_second": {"llama.cpp bf16": 90.0, "hasten auto": 110.5},
    "of_bound": {"llama.cpp bf16": 0.66, "hasten auto": 0.81},
    "hasten_over": {"llama.cpp bf16": 1.23},
    "read_tokens_per_second": {"llama.cpp bf16": 800.0, "hasten auto": 900.0},
    "peak_bytes": {"llama.cpp bf16": 2**29, "hasten auto": 2**28},
}
RUN = {"journey_seconds": 300.0, "tokens": 2_000_000, "test_loss": 3.5, "test_bits_per_byte": 1.5}
LEARNED = {
    "validation_loss": 3.55,
    "bits_per_byte": 1.7,
    "seconds": 240.0,
    "tokens": 1_000_000,
    "losses": [3.6, 3.5],
}
MADE_UP = {
    "compare-s": COMPARED,
    "generate": {"environment": ENVIRONMENT, "results": [CASE], "missing": {"llama.cpp f16": "no wheel"}},
    "time-to-loss": {
        "environment": ENVIRONMENT,
        "baseline": LEARNED,
        "hasten": [{**LEARNED, "seconds": 80.0, "ratio": 3.0, "p": 0.0021}],
        "ratio": 3.0,
    },
    "demo": {"environment": ENVIRONMENT, "repeats": [{**RUN, "lzma_bits_per_byte": 2.0}]},
    "quantized": {
        "environment": ENVIRONMENT,
        "results": [
            {
                "shape": "110m",
                "rows": 1,
                "decode_tokens_per_second": {"llama.cpp q4_0": 164.0, "hasten int4": 246.0},
                "read_tokens_per_second": {"llama.cpp q4_0": 1300.0, "hasten int4": 900.0},
                "decode_over": {"hasten int4": {"llama.cpp q4_0": 1.5, "hasten bf16": 2.5}},
            }
        ],
        "missing": {"llama.cpp q8_0": "no binding"},
    },
    "compression": {
        "environment": ENVIRONMENT,
        "arguments": {"windows": 8, "length": 512},
        "arms": {
            name: {
                "megabytes": size,
                "bits_per_weight": 8.6,
                "perplexity": 31.4,
                "perplexity_over_original": 1.0168,
                "rise": {"mean": 0.0017, "standard_error": 0.001},
                "divergence_per_token": 0.0098,
            }
            for name, size in (("int4", 91.7), ("llama.cpp Q8_0", 144.8))
        },
    },
    "pruning": {
        "environment": ENVIRONMENT,
        "models": {
            "depth": {
                "parameters": 19_000_000,
                "median_seconds": 0.0756,
                "saved_flops": 0.25,
                "saved_time": 0.24,
                "saved_time_of_flops": 0.96,
            }
        },
    },
    "distil": {
        "environment": ENVIRONMENT,
        "text": {
            "teacher": {"validation_loss": 4.0},
            "students": {
                "labels": {"validation_loss": 5.0, "losses": [5.1, 4.9]},
                "layers": {"validation_loss": 4.4, "losses": [4.5, 4.3], "closed": 0.6, "p_paired": 0.004},
            },
        },
        "regained": {
            "layers": [12, 9],
            "losses": {"whole": 4.0, "cut": 5.0, "taught": [4.1, 4.3], "scratch": [7.0, 7.2]},
            "regained": 0.8,
        },
        "classes": {
            "teacher": {"accuracy": 0.9},
            "student": {"accuracy": 0.882},
            "kept": 0.98,
            "faster": 1.91,
        },
    },
    "speculative": {
        "environment": ENVIRONMENT,
        "results": [
            {
                "threads": 2,
                "temperature": 0.8,
                "alone": {"tokens_per_second": 150.0},
                "with_draft": [
                    {"ahead": 4, "accepted": 0.71, "tokens_per_second": 210.0, "times_as_fast": 1.4}
                ],
            }
        ],
    },
}


@pytest.fixture
def results(tmp_path):
    """Made-up results; that of compare-m is missing."""
    for stem, result in MADE_UP.items():
        (tmp_path / f"{stem}.json").write_text(json.dumps(result))
    return tmp_path


@pytest.mark.parametrize("name", WORDS)
def test_the_page_is_made_from_the_results(name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == page(name), "run python bench/benchmarks.py"


@pytest.mark.parametrize("name", WORDS)
def test_without_results_each_section_names_its_command(name, tmp_path):
    text = page(name, tmp_path)
    for stem in SECTIONS:
        assert WORDS[name]["absent"].format(command=COMMANDS[stem]) in text


@pytest.mark.parametrize("name", WORDS)
def test_figures_stand_in_the_page(name, results):
    text = page(name, results)
    assert "| **hasten** | 4,096 | 1.000 (0.900–1.250) | 81% | 1,024 | 3.0 |  |" in text
    assert "| litgpt | 2,731 | 1.500 (0.900–1.250) | 54% | 2,048 | 3.0 | 1.48× |" in text
    assert text.index("| **hasten** | 4,096") < text.index("| litgpt | 2,731"), "the fastest first"
    assert "1.41–1.55" in text
    assert WORDS[name]["lightest"] in text
    assert "0.420 TFLOP/s" in text
    assert "| **hasten auto** | 110.5 | 81% |  | 900 | 256 |" in text
    assert "| llama.cpp bf16 | 90.0 | 66% | 1.23× | 800 | 512 |" in text
    assert "| AdamW GPT-2 | 240 | 1,000,000 | 3.550 (3.500, 3.600) | 1.700 |  |  |" in text
    assert "| **hasten** | 80 | 1,000,000 | 3.550 (3.500, 3.600) | 1.700 | 3.00× | 0.0021 |" in text
    assert WORDS[name]["sooner"].format(3.0, 3.55) in text


@pytest.mark.parametrize("name", WORDS)
def test_figures_of_smaller_models_stand_in_the_page(name, results):
    text = page(name, results)
    assert "| **hasten int4** | 246.0 | 1.50× (q4_0) | 2.50× | 900 |\n| llama.cpp q4_0 | 164.0 |" in text
    assert text.index("| llama.cpp Q8_0 | 144.8 |") < text.index("| **int4** | 91.7 | 8.60 | 31.40 (+1.7%) |")
    assert "| 0.0017 ± 0.0020 | 0.0098 |" in text
    assert "| depth | 19.0 M | 75.6 | 25.0% | 24.0% | 96% |" in text
    assert f"| {WORDS[name]['layers']} | 4.400 (4.500, 4.300) | 60% | 0.004 |" in text
    assert "88.2%" in text and "98.0%" in text and "1.91" in text
    assert "4.200" in text and "80%" in text and "7.100" in text, "means over the seeds"
    assert "| 2 | 0.8 | 4 | 71% | 150 | 210 | 1.40× |" in text


@pytest.mark.parametrize("name", WORDS)
def test_what_was_not_measured_is_named_with_its_reason(name, results):
    text = page(name, results)
    for what, why in (
        ("lightning", "No module"),
        ("trainer", "its last words"),
        ("llama.cpp f16", "no wheel"),
        ("llama.cpp q8_0", "no binding"),
    ):
        assert re.search(f"^.*{re.escape(what)}.*{why}", text, re.M)
    assert WORDS[name]["absent"].format(command=COMMANDS["compare-m"]) in text


def test_a_baseline_that_is_never_beaten_is_said_to_be(results):
    never = {**MADE_UP["time-to-loss"], "ratio": None}
    (results / "time-to-loss.json").write_text(json.dumps(never))
    assert WORDS["benchmarks.md"]["slower"] in page("benchmarks.md", results)


def test_peers_with_less_memory_are_named(results):
    lighter = {**COMPARED["verdict"], "peers_with_less_memory": ["litgpt"]}
    (results / "compare-m.json").write_text(json.dumps({**COMPARED, "verdict": lighter}))
    assert WORDS["benchmarks.md"]["lighter"].format("litgpt") in page("benchmarks.md", results)


def test_both_languages_have_the_same_words_tables_and_commands(results):
    english, chinese = WORDS.values()
    assert english.keys() == chinese.keys()
    pages = [page(name, results) for name in WORDS]
    for pattern in (r"^#+", r"^\|(?: \S+ \|)?", r"^python .*"):
        first, second = (re.findall(pattern, text, re.M) for text in pages)
        assert len(first) == len(second) > 0


@pytest.mark.parametrize("stem", COMMANDS)
def test_the_command_that_is_named_saves_the_file_that_is_read(stem):
    program, *words = COMMANDS[stem].removeprefix("python ").split()
    assert words[-2:] == ["--save", f"bench/results/{stem}.json"]
    assert program.startswith("bench/")
    assert stem in SECTIONS
