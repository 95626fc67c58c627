"""Questions and contexts: the windows of `transformers`, answers that come back letter by letter."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import task_tokenizers

from hasten.core.batch import IGNORE
from hasten.core.config import parse
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.protocol import RowError, Setting
from hasten.data.tasks.spans import CUT_UP, MISPLACED, Reading, SpansConfig, SpansEncoding, placed
from hasten.tokenizer.tokenizer import Tokenizer

SHARED = Path(__file__).parents[2] / "../shared/data/qa"
CONTEXT = "the cat sat on the mat. 中国人 sat on a dog, don't!  the dog, 1990s-like, sat on the cat's mat."
QUESTION = "who sat on 中?"


def config(**fields: Any) -> SpansConfig:
    return parse(SpansConfig, {"kind": "spans", "stride_tokens": 6, **fields}, "recipe.yaml")


def row(answer: str | None = "1990", **fields: Any) -> dict[str, Any]:
    answers = [] if answer is None else [answer]
    starts = [CONTEXT.index(text) for text in answers]
    return {"question": QUESTION, "context": CONTEXT, "answers": answers, "answer_starts": starts, **fields}


def opened(make: str = "bert", width: int = 32, **fields: Any) -> SpansEncoding:
    return config(**fields).open(Setting(task_tokenizers.ours(make), "encoder", width))


def read(encoding: SpansEncoding, *rows: dict[str, Any]) -> list[Reading]:
    found = encoding.read([encoding.config.record(row) for row in rows])
    assert not any(isinstance(reading, str) for reading in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("stride", [0, 6, 13])
@pytest.mark.parametrize("make", ["bert", "roberta", "t5"])
def test_windows_are_those_of_transformers(make, stride):
    width = 40 if make == "bert" else 64
    (reading,) = read(opened(make, width, stride_tokens=stride), row())
    expected = task_tokenizers.theirs(make)(
        QUESTION,
        CONTEXT,
        truncation="only_second",
        max_length=width,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    assert [window.tokens for window in reading.windows] == expected["input_ids"]
    if make != "t5":  # which has no types, and gets some where windows follow
        assert [window.types for window in reading.windows] == expected["token_type_ids"]
    for number, window in enumerate(reading.windows):
        owners, offsets = expected.sequence_ids(number), expected["offset_mapping"][number]
        theirs = [offset for owner, offset in zip(owners, offsets, strict=True) if owner == 1]
        found = map(tuple, reading.offsets[window.first :][: window.length].tolist())
        # A token that is a blank alone stands for no character, wherever that is.
        assert [x for x in found if x[0] < x[1]] == [x for x in theirs if x[0] < x[1]]
        assert window.place == owners.index(1)


def test_every_token_of_a_context_is_in_a_window_and_neighbours_share_a_stride():
    for width in range(26, 60):
        (reading,) = read(opened(width=width), row())
        ends = [window.first + window.length for window in reading.windows]
        assert reading.windows[0].first == 0 and ends[-1] == len(reading.offsets)
        assert all(end - window.first == 6 for end, window in zip(ends, reading.windows[1:], strict=False))


def test_places_are_inclusive_and_the_first_token_where_the_answer_is_not_all_there():
    encoding = opened(width=36)
    task = encoding.config
    (units,) = encoding.units([task.record(row("a dog, don't"))])
    (reading,) = read(encoding, row())
    start = CONTEXT.index("a dog, don't")
    seen = 0
    for (example,), window in zip(units, reading.windows, strict=True):
        assert list(example.tokens) == window.tokens and set(example.targets) == {IGNORE}
        places = example.places["start"], example.places["end"]
        first, last = (reading.offsets[place - window.place + window.first] for place in places)
        if places == (0, 0):
            held = reading.offsets[window.first : window.first + window.length]
            assert held[0, 0] > start or held[-1, 1] < start + len("a dog, don't")
        else:
            seen += 1
            assert CONTEXT[first[0] : last[1]] == "a dog, don't"
    assert seen and seen < len(units)


def test_a_question_without_an_answer_points_at_the_first_token():
    encoding = opened()
    (units,) = encoding.units([encoding.config.record(row(None))])
    assert all(unit[0].places == {"start": 0, "end": 0} for unit in units)
    records = [encoding.config.record(each) for each in (row(None), row())]
    assert encoding.config.survey(records) == {"unanswerable": 1}


def test_an_answer_within_a_token_takes_the_whole_token_and_is_counted():
    encoding = opened("bert", 64)
    assert encoding.units([encoding.config.record(row("1990"))]) and encoding.tally["widened"] == 0
    rows = row("he ca")
    (units,) = encoding.units([encoding.config.record(rows)])
    assert encoding.tally["widened"] == 1
    (reading,) = read(encoding, rows)
    places = units[0][0].places
    first, last = (reading.offsets[places[end] - reading.windows[0].place] for end in ("start", "end"))
    assert CONTEXT[first[0] : last[1]] == "the cat"


def test_blanks_around_an_answer_are_no_part_of_it():
    record = config().record(row(" sat on a "))
    assert CONTEXT[slice(*placed(record))] == "sat on a"


def test_answers_that_are_not_where_the_row_says_are_left_out_by_name_and_another_one_is_taken():
    encoding = opened()
    record = encoding.config.record
    wrong = record(row(answers=["cat"], answer_starts=[5]))
    missing = record(row(answers=["cow"], answer_starts=[-1]))
    second = record(row(answers=["cow", "cat"], answer_starts=[-1, 4]))
    found = encoding.units([wrong, missing, second])
    assert found[:2] == [MISPLACED, MISPLACED]
    assert any(unit[0].places["start"] for unit in found[2])


LAYOUTS = {
    "flat": {"answers": ["cat", "mat"], "answer_starts": [4, 19]},
    "one": {"answers": "cat", "answer_starts": 4},
    "hub": {"answers": {"text": ["cat", "mat"], "answer_start": [4, 19]}},
    "official": {"answers": [{"text": "cat", "answer_start": 4}, {"text": "mat", "answer_start": 19}]},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_record(name):
    given = {"id": 7, "question": QUESTION, "context": CONTEXT, **LAYOUTS[name]}
    count = 1 if name == "one" else 2
    assert config().record(given) == {
        "id": "7",
        "question": QUESTION,
        "context": CONTEXT,
        "answers": ["cat", "mat"][:count],
        "starts": [4, 19][:count],
    }


def test_without_a_column_of_starts_the_first_occurrence_counts():
    given = {"question": QUESTION, "context": CONTEXT, "answers": ["sat", "cow"]}
    record = config(starts_field=None).record(given)
    assert record["starts"] == [CONTEXT.index("sat"), -1] and "id" not in record
    for empty in ([], {"text": [], "answer_start": []}):
        assert config().record({**given, "answers": empty})["answers"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": 3}, "a text in the column 'question', got 3"),
        ({"answers": ["cat"], "answer_starts": []}, "has 1 answers and 0 starts"),
        ({"answers": ["cat"], "answer_starts": ["4"]}, "has the start '4'; write whole numbers"),
        ({"answers": ["cat"], "answer_starts": [True]}, "has the start True"),
        (
            {"answers": [""], "answer_starts": [0]},
            r"has the answer ''; write a text, or no answer at all: \[\]",
        ),
        ({"answers": [3], "answer_starts": [0]}, "has the answer 3"),
        ({"answers": 3}, "answers and their starts as two lists, got 3"),
        ({"answers": {"text": ["cat"]}}, "no column 'answer_start'.* It has: text"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(changes, message):
    with pytest.raises(RowError, match=message):
        config().record(row(**changes))


def test_a_missing_column_of_starts_is_told_with_its_neighbour():
    bare = {"question": QUESTION, "context": CONTEXT, "answers": ["cat"], "answers_starts": [4]}
    with pytest.raises(RowError, match=r"no column 'answer_starts'\. Did you mean 'answers_starts'\?"):
        config().record(bare)


def test_questions_that_are_too_long_are_an_error_left_out_or_cut_as_the_recipe_says():
    long = row(question="the cat " * 20)
    with pytest.raises(DataError, match=r"has 40 tokens, and rows of 32 have room for 11; .*=cut or drop"):
        opened().read([config().record(long)])
    encoding = opened(too_long="drop")
    assert encoding.read([config().record(long)]) == ["question too long"]
    encoding = opened(too_long="cut")
    (reading,) = encoding.read([config().record(long)])
    assert isinstance(reading, Reading) and encoding.tally["cut"] == 1
    assert all(len(window.tokens) <= 32 for window in reading.windows)


def test_a_model_or_a_row_that_cannot_do_it_is_refused():
    tokenizer = task_tokenizers.ours("bert")
    for reads in ("decoder", "seq2seq"):
        with pytest.raises(ConfigError, match=f"a {reads} does not see what follows a place"):
            config().open(Setting(tokenizer, reads, 64))
    with pytest.raises(ConfigError, match=r"stride_tokens is 128 and data.row_tokens 200; write .*=66"):
        config(stride_tokens=128).open(Setting(tokenizer, "encoder", 200))
    with pytest.raises(ConfigError, match="leaves no room for a question"):
        config(stride_tokens=2).open(Setting(tokenizer, "encoder", 6))


def test_questions_about_one_context_stay_together():
    task = config()
    one, two = task.record(row()), task.record(row(None, question="the dog?"))
    assert task.key(one) == task.key(two)
    assert task.texts(one) == [CONTEXT, QUESTION]


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("squad_v1.1_dev", 0.99),
        ("squad_v2.0_dev", 0.98),
        ("xquad_zh_dev", 0.9),
        ("drcd_dev", 0.97),
        ("cmrc2018_trial", 0.97),
    ],
)
def test_answers_of_real_data_come_back_letter_by_letter(name, share):
    """Every answer that begins and ends with a token is found again by its places; few do otherwise."""
    models = Path(os.environ.get("HASTEN_MODELS") or "runs/models") / "all-MiniLM-L6-v2"
    if not models.is_dir() or not SHARED.is_dir():
        pytest.skip("needs all-MiniLM-L6-v2 (make models) and shared/data/qa")
    with gzip.open(SHARED / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:300]
    task = config(stride_tokens=64)
    encoding = task.open(Setting(Tokenizer.load(models), "encoder", 256))
    records = [task.record(row) for row in rows]
    exact = told = answered = 0
    for record, reading, units in zip(records, encoding.read(records), encoding.units(records), strict=True):
        if placed(record) is None:
            told += units == MISPLACED
            assert units == MISPLACED or not record["answers"]
            continue
        assert isinstance(reading, Reading)
        start, end = placed(record)
        answered += 1
        recovered = set()
        for (example,), window in zip(units if units != CUT_UP else [], reading.windows, strict=False):
            if example.places["start"]:
                at = window.first - window.place
                first, last = (reading.offsets[example.places[e] + at] for e in ("start", "end"))
                recovered.add(record["context"][first[0] : last[1]])
        if not recovered:  # longer than what windows have in common
            first, last = reading.tokens_of(start, end) or (0, 0)
            assert units == CUT_UP and last - first >= 64
            answered -= 1
            continue
        (text,) = recovered  # all windows with the answer agree
        exact += text == record["context"][start:end]
        assert record["context"][start:end] in text
    assert exact == answered - encoding.tally["widened"]
    assert exact >= share * answered
