"""Rows of every layout in use become the same record; anything else is told with what to write."""

import json

import pytest

from hasten.data.tasks.chat import ChatConfig
from hasten.data.tasks.preferences import PreferencesConfig
from hasten.data.tasks.protocol import RowError

USER, ANSWER = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
RECORD = {"messages": [USER, ANSWER], "references": ["2"]}
SHAREGPT = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]


def chat(row, **settings):
    return ChatConfig(**settings).record(row)


ROWS = {
    "messages": {"messages": [USER, ANSWER]},
    "messages in a cell": {"messages": json.dumps([USER, ANSWER])},
    "parts of text": {"messages": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}, ANSWER]},
    "sharegpt": {"conversations": SHAREGPT},
    "sharegpt under messages": {"messages": SHAREGPT},
    "alpaca": {"instruction": "1+1?", "input": "", "output": "2"},
    "alpaca without input": {"instruction": "1+1?", "output": "2", "source": "x"},
    "prompt and completion": {"prompt": "1+1?", "completion": "2"},
    "prompt and response": {"prompt": "1+1?", "response": "2"},
    "messages on both sides": {"prompt": [USER], "completion": [ANSWER]},
    "question and answer": {"question": "1+1?", "answer": "2"},
    "a number": {"question": "1+1?", "answer": 2},
    "query and response": {"query": "1+1?", "response": "2"},
    "input and output": {"input": "1+1?", "output": "2"},
    "source and target": {"source": "1+1?", "target": "2"},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_layout_gives_the_same_record(row):
    assert chat(row) == RECORD


def test_an_id_is_kept():
    assert chat({"id": 7, **ROWS["alpaca"]})["id"] == "7"


def test_alpaca_s_input_and_history_come_before_the_answer():
    row = {"instruction": "Add.", "input": "1, 1", "output": "2", "history": [["Hi", "Hello"]]}
    assert [m["content"] for m in chat(row)["messages"]] == ["Hi", "Hello", "Add.\n\n1, 1", "2"]
    assert chat({**row, "history": json.dumps([["Hi", "Hello"]])}) == chat(row)


def test_a_context_is_read_with_its_question():
    row = {
        "context": "Two.",
        "question": "How many?",
        "answers": {"text": ["2", "two", "2"], "answer_start": [0]},
    }
    record = chat(row)
    assert record["messages"][0]["content"] == "Two.\n\nHow many?"
    assert record["references"] == ["2", "two"]


def test_json_in_an_answer_stays_text():
    assert chat({"question": "list?", "answer": '["a", {"b": 1}]'})["references"] == ['["a", {"b": 1}]']
    assert chat({"prompt": '[{"x": 1}]', "completion": "2"})["messages"][0]["content"] == '[{"x": 1}]'


@pytest.mark.parametrize("note", [{"weight": 0}, {"train": False}, {"weight": 0.0}])
def test_a_message_can_be_taken_out_of_the_loss(note):
    record = chat({"messages": [USER, {**ANSWER, **note}, USER, ANSWER]})
    assert [m.get("weight", 1) for m in record["messages"]] == [1, 0, 1, 1]


def test_a_system_s_message_is_added_where_there_is_none():
    system = {"role": "system", "content": "Be brief."}
    assert chat(ROWS["alpaca"], system="Be brief.")["messages"] == [system, USER, ANSWER]
    own = {"role": "system", "content": "own"}
    assert chat({"messages": [own, USER, ANSWER]}, system="Be brief.")["messages"][0] == own
    assert chat({"conversations": SHAREGPT, "system": "own"})["messages"][0] == own


def test_any_columns_make_a_question_and_its_answers():
    settings = {"prompt": "Summarise {{short}}:\n{dialogue} ({n})", "answer": "{summary}"}
    row = {"dialogue": "A: hi\nB: {hi}", "n": 3, "summary": ["They greet.", "A greeting."]}
    record = chat(row, **settings)
    assert record["messages"][0]["content"] == "Summarise {short}:\nA: hi\nB: {hi} (3)"
    assert record["messages"][1]["content"] == "They greet."
    assert record["references"] == ["They greet.", "A greeting."]


WRONG = {
    "no layout": ({"text": "x"}, {}, r"columns: text; known: messages .* data.task.prompt"),
    "nothing answered": ({"messages": [USER]}, {}, "ends with a message of 'user'"),
    "no messages": ({"messages": []}, {}, "has no messages"),
    "not messages": ({"messages": "hello"}, {}, "messages should be a list of messages .* got str"),
    "odd role": (
        {"messages": [{"role": "asistant", "content": "x"}]},
        {},
        "message 1 .* Did you mean 'assistant'",
    ),
    "no role": ({"messages": [{"content": "x"}]}, {}, "message 1 of messages is by 'None'"),
    "no words": (
        {"messages": [USER, {"role": "assistant", "content": None}]},
        {},
        "message 2 .* got NoneType",
    ),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]},
        {},
        "holds image; only text is read",
    ),
    "tools": ({"messages": [{**ANSWER, "tool_calls": [{}]}]}, {}, "calls tools"),
    "half a weight": ({"messages": [{**ANSWER, "weight": 0.5}]}, {}, "has the weight 0.5; .* write 1 or 0"),
    "history": (
        {"instruction": "x", "output": "y", "history": [["one"]]},
        {},
        r"history should be \[\[question",
    ),
    "no answer in a list": ({"question": "x", "answers": []}, {}, "answers holds no answer"),
    "a truth": ({"question": "x", "answer": True}, {}, "answer should be text, got bool"),
    "no column": (
        {"dialog": "x", "summary": "y"},
        {"prompt": "{dialogue}", "answer": "{summary}"},
        "has no column 'dialogue'. Did you mean 'dialog'. It has: dialog, summary",
    ),
    "an empty cell": (
        {"dialogue": None, "summary": "y"},
        {"prompt": "{dialogue}", "answer": "{summary}"},
        "has nothing in the column 'dialogue'",
    ),
}


@pytest.mark.parametrize(("row", "settings", "message"), WRONG.values(), ids=WRONG)
def test_a_row_that_holds_no_conversation_is_told(row, settings, message):
    with pytest.raises(RowError, match=message):
        chat(row, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "{a}"}, "prompt and answer belong together"),
        ({"prompt": "{a.b}", "answer": "{c}"}, "nothing but names of columns in braces"),
        ({"prompt": "{a[0]}", "answer": "{c}"}, "nothing but names of columns in braces"),
        ({"prompt": "{a!r}", "answer": "{c}"}, "nothing but names of columns in braces"),
        ({"prompt": "{}", "answer": "{c}"}, "nothing but names of columns in braces"),
        ({"prompt": "{a}", "answer": "c"}, "names no column"),
        ({"prompt": "{a", "answer": "{c}"}, "cannot be read"),
    ],
    ids=["one", "attribute", "index", "conversion", "number", "constant", "open"],
)
def test_columns_are_names_in_braces_and_nothing_more(settings, message):
    with pytest.raises(ValueError, match=message):
        ChatConfig(**settings)


BETTER, WORSE = {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}
PREFERENCE = {"messages": [USER], "chosen": [BETTER], "rejected": [WORSE], "references": ["2"]}
HUMAN = "\n\nHuman: 1+1?\n\nAssistant:"
PAIRS = {
    "messages and texts": {"messages": [USER], "chosen": "2", "rejected": "3"},
    "prompt and texts": {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
    "explicit messages": {"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]},
    "implicit messages": {"chosen": [USER, BETTER], "rejected": [USER, WORSE]},
    "a prompt beside whole conversations": {
        "prompt": "1+1?",
        "chosen": [USER, BETTER],
        "rejected": [USER, WORSE],
    },
    "transcripts": {"chosen": f"{HUMAN} 2", "rejected": f"{HUMAN} 3"},
    "a transcript as the prompt": {"prompt": HUMAN, "chosen": " 2".strip(), "rejected": "3"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "1+1?"}],
        "chosen": {"from": "gpt", "value": "2"},
        "rejected": {"from": "gpt", "value": "3"},
    },
    "instruction": {"instruction": "1+1?", "input": "", "chosen": "2", "rejected": "3"},
    "question": {"question": "1+1?", "chosen": "2", "rejected": "3"},
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_every_layout_of_preferences_gives_the_same_record(row):
    assert PreferencesConfig().record(row) == PREFERENCE


def test_preferences_of_any_columns():
    config = PreferencesConfig(prompt="{q}", chosen="{good}", rejected="{bad}")
    assert config.record({"q": "1+1?", "good": "2", "bad": "3"}) == PREFERENCE
    with pytest.raises(ValueError, match="give all three, or none"):
        PreferencesConfig(prompt="{q}")


def test_transcripts_that_part_early_share_what_comes_before():
    one, other = f"{HUMAN} 2\n\nHuman: sure?\n\nAssistant: yes", f"{HUMAN} 2\n\nHuman: sure?\n\nAssistant: no"
    record = PreferencesConfig().record({"chosen": one, "rejected": other})
    assert [m["content"] for m in record["messages"]] == ["1+1?", "2", "sure?"]
    assert [record[side][0]["content"] for side in ("chosen", "rejected")] == ["yes", "no"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "rejected": "y"}, "has no column 'chosen'"),
        ({"chosen": "x", "rejected": "y"}, "nothing that it answers"),
        ({"messages": [USER, ANSWER], "chosen": "x", "rejected": "y"}, "messages should end with a question"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER, USER]}, "rejected should begin and end"),
    ],
    ids=["no chosen", "no prompt", "answered already", "open end"],
)
def test_a_row_that_holds_no_preference_is_told(row, message):
    with pytest.raises(RowError, match=message):
        PreferencesConfig().record(row)
