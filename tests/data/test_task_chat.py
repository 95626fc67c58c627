"""Conversations and preferences as examples: the loss where it belongs, at lengths that fit."""

import gzip
import json
from pathlib import Path

import pytest

from hasten.core.batch import IGNORE
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.chat import ChatConfig
from hasten.data.tasks.dialogues import KEEP
from hasten.data.tasks.preferences import PreferencesConfig
from hasten.data.tasks.protocol import Setting
from hasten.tokenizer.conversation import conversation_ids

SHARED = Path(__file__).parents[2] / "../shared/data"
END = "<|im_end|>"
ROW = {"instruction": "Say it.", "input": "", "output": "It."}


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    return byte_tokenizer("<|im_start|>", END)


def encoding(tokenizer, config, row_tokens=512, base=None):
    return config.open(Setting(tokenizer, "decoder", row_tokens, base))


def said(tokenizer, example):
    """The text of all targets."""
    return tokenizer.decode([target for target in example.targets if target != IGNORE], special=True)


def read(tokenizer, example):
    return tokenizer.decode(list(example.tokens), special=True)


def test_what_is_read_is_the_conversation_and_what_is_said_the_answer_with_its_end(tokenizer):
    config = ChatConfig(template="chatml")
    [[(example,)]] = encoding(tokenizer, config).units([config.record(ROW)])
    assert said(tokenizer, example) == f"It.{END}"
    assert read(tokenizer, example) == f"<|im_start|>user\nSay it.{END}\n<|im_start|>assistant\nIt."
    for place, target in enumerate(example.targets[:-1]):  # each target is the next id
        assert target in (IGNORE, example.tokens[place + 1])


def test_a_model_without_a_template_reads_the_plain_format(tokenizer, tmp_path):
    [[(example,)]] = encoding(tokenizer, ChatConfig(), base=tmp_path).units([ChatConfig().record(ROW)])
    assert read(tokenizer, example) + END == f"{END}Q: Say it.\nA: It.{END}"
    assert said(tokenizer, example) == f" It.{END}"


def test_the_base_model_s_template_is_taken_and_given_on(tokenizer, tmp_path):
    source = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(source)
    opened = encoding(tokenizer, ChatConfig(), base=tmp_path)
    assert opened.template == source
    assert ChatConfig().identity(tmp_path) == source
    [[(example,)]] = opened.units([ChatConfig().record(ROW)])
    assert said(tokenizer, example) == f"<|im_start|>It.{END}"


@pytest.mark.parametrize("config", [ChatConfig(template="chatml"), PreferencesConfig(template="chatml")])
def test_the_prompt_is_what_generation_reads_and_what_the_answer_is_learnt_behind(tokenizer, config):
    row = {"prompt": "Say it 霜.", "completion": "It.", "chosen": "It.", "rejected": "No."}
    record = config.record(row)
    opened = encoding(tokenizer, config)
    prompt = opened.prompt_ids(record)
    assert prompt == conversation_ids(tokenizer, opened.spoken.template.text, record["messages"][:1])
    [[unit]] = opened.units([record])
    for example in unit:
        first = next(place for place, target in enumerate(example.targets) if target != IGNORE)
        assert list(example.tokens[: first + 1]) == prompt


def test_a_long_prompt_to_answer_keeps_both_ends(tokenizer):
    config = ChatConfig(template="plain")
    record = config.record({"prompt": "a" * 100 + "b" * 100, "completion": "c"})
    opened = encoding(tokenizer, config)
    whole, cut = opened.prompt_ids(record), opened.prompts([record], most=41)[0]
    assert cut == whole[:21] + whole[-20:]


@pytest.mark.parametrize(("learn", "expected"), [("answers", f"a{END}c{END}"), ("last", f"c{END}")])
def test_all_answers_or_the_last_are_learnt(tokenizer, learn, expected):
    config = ChatConfig(template="chatml", learn=learn)
    turns = [
        ("user", "q"),
        ("assistant", "a"),
        ("user", "q"),
        ("assistant", "b"),
        ("user", "q"),
        ("assistant", "c"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[3]["weight"] = 0
    [[(example,)]] = encoding(tokenizer, config).units([config.record({"messages": messages})])
    assert said(tokenizer, example) == expected


def test_an_answer_without_words_is_left_out_by_its_rule(tokenizer):
    config, pair = ChatConfig(template="chatml"), PreferencesConfig(template="chatml")
    rows = [{**ROW, "output": " \n"}, ROW]
    assert encoding(tokenizer, config).units([config.record(row) for row in rows])[0] == "empty answer"
    records = [pair.record({"prompt": "p", "chosen": "x", "rejected": other}) for other in ("", "x", "y")]
    outcomes = encoding(tokenizer, pair).units(records)
    assert outcomes[:2] == ["empty answer", "equal answers"]
    assert len(outcomes[2]) == 1


def test_a_template_that_writes_nothing_leaves_every_conversation_out(tokenizer, tmp_path):
    file = tmp_path / "nothing.jinja"
    file.write_text("{% for m in messages %}{% endfor %}")
    config = ChatConfig(template=str(file))
    assert encoding(tokenizer, config).units([config.record(ROW)]) == ["no text"]
    pair = PreferencesConfig(template=str(file))
    record = pair.record({"prompt": "p", "chosen": "x", "rejected": "y"})
    assert encoding(tokenizer, pair).units([record]) == ["equal answers"]  # both render as nothing


LONG = {"prompt": "begin " + "x" * 300 + " end", "completion": "the answer"}


def test_a_conversation_longer_than_a_row_stops_with_its_length(tokenizer):
    config = ChatConfig(template="plain")
    record = config.record({**LONG, "id": "row 9"})
    tokens = len(encoding(tokenizer, config, 1_000).units([record])[0][0][0].tokens)
    message = f"'row 9': has {tokens} tokens, more than the 100 of a row; write data.row_tokens={tokens}"
    with pytest.raises(DataError, match=message):
        encoding(tokenizer, config, 100).units([record])
    assert isinstance(encoding(tokenizer, config, tokens).units([record])[0], list)


def test_a_conversation_longer_than_a_row_is_left_out_if_the_recipe_says_so(tokenizer):
    config = ChatConfig(template="plain", too_long="drop")
    records = [config.record(LONG), config.record(ROW)]
    long, short = encoding(tokenizer, config, 100).units(records)
    assert long == "too long"
    assert isinstance(short, list)


@pytest.mark.parametrize("row_tokens", [60, 61, 100])
def test_a_cut_takes_the_middle_of_what_is_asked_and_nothing_of_the_answer(tokenizer, row_tokens):
    config = ChatConfig(template="plain", too_long="cut")
    [[(example,)]] = encoding(tokenizer, config, row_tokens).units([config.record(LONG)])
    assert len(example.tokens) == row_tokens
    assert said(tokenizer, example) == f" the answer{END}"
    text = read(tokenizer, example)
    assert text.startswith(f"{END}Q: begin")
    assert text.endswith("end\nA: the answer")


def test_an_answer_that_fits_no_row_is_left_out_and_never_cut(tokenizer):
    config = ChatConfig(template="plain", too_long="cut")
    record = config.record({"prompt": "p" * 200, "completion": "y" * (100 - KEEP)})
    assert encoding(tokenizer, config, 100).units([record]) == ["too long"]


def test_of_several_turns_the_longest_passage_without_loss_is_cut(tokenizer):
    config = ChatConfig(template="chatml", too_long="cut")
    turns = [("user", "first " + "x" * 150), ("assistant", "one"), ("user", "second"), ("assistant", "two")]
    record = config.record({"messages": [{"role": role, "content": content} for role, content in turns]})
    [[(example,)]] = encoding(tokenizer, config, 128).units([record])
    assert said(tokenizer, example) == f"one{END}two{END}"
    assert "second" in read(tokenizer, example)


@pytest.mark.parametrize("row_tokens", [150, 151])
def test_both_sides_of_a_pair_are_cut_alike(tokenizer, row_tokens):
    config = PreferencesConfig(template="plain", too_long="cut")
    record = config.record(
        {"prompt": "begin " + "x" * 300 + " end", "chosen": "good answer", "rejected": "bad"}
    )
    [[(chosen, rejected)]] = encoding(tokenizer, config, row_tokens).units([record])
    assert row_tokens - 1 <= len(chosen.tokens) + len(rejected.tokens) <= row_tokens
    prompts = [
        list(e.tokens[: e.targets.index(next(t for t in e.targets if t != IGNORE)) + 1])
        for e in (chosen, rejected)
    ]
    assert prompts[0] == prompts[1]
    assert [said(tokenizer, e) for e in (chosen, rejected)] == [f" good answer{END}", f" bad{END}"]


@pytest.mark.parametrize("config", [ChatConfig(), PreferencesConfig()])
def test_models_that_do_not_write_are_refused(tokenizer, config):
    with pytest.raises(ConfigError, match="give the sources source_field and target_field"):
        config.open(Setting(tokenizer, "seq2seq", 64))
    with pytest.raises(ConfigError, match=r"write model\.kind: decoder"):
        config.open(Setting(tokenizer, "encoder", 64))


def test_a_conversation_that_the_template_refuses_is_named(tokenizer, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no systems here') }}")
    config = ChatConfig()
    with pytest.raises(
        DataError, match=r"begins 'Say it.': the chat template .* refuses it: .*no systems here"
    ):
        encoding(tokenizer, config, base=tmp_path).units([config.record(ROW)])


def test_questions_asked_twice_have_one_key_and_texts_hold_everything():
    config, pair = ChatConfig(), PreferencesConfig()
    one, other = (config.record({"question": "q ", "answer": [a, "b"]}) for a in "xy")
    assert config.key(one) == config.key(other) == "q"
    assert config.texts(one) == ["q ", "x", "b"]
    record = pair.record({"question": "q", "chosen": "x", "rejected": "y"})
    assert (pair.key(record), pair.texts(record)) == ("q", ["q", "x", "y"])


FILES = [
    "instruction/alpaca_en_dev.jsonl.gz",
    "instruction/alpaca_zh_translated_dev.jsonl.gz",
    "instruction/lima.jsonl.gz",
    "instruction/oasst_zh.jsonl.gz",
    "qa/gsm8k_dev.jsonl.gz",
    "preference/dpo_zh_300.jsonl.gz",
    "preference/hh_harmless_train.jsonl.gz",
    "preference/oasst_rm_zh.jsonl.gz",
]


@pytest.mark.parametrize("name", FILES)
def test_real_files_are_read_whole_and_every_answer_comes_back(tokenizer, name):
    """As many targets as the answers' bytes and ends, whatever is written in them."""
    if not (SHARED / name).exists():
        pytest.skip(f"shared/data/{name} is not here")
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[:200]
    config = (PreferencesConfig if "preference" in name else ChatConfig)(template="chatml")
    records = [config.record(json.loads(line)) for line in lines if line]
    outcomes = encoding(tokenizer, config, 10**6).units(records)
    for record, outcome in zip(records, outcomes, strict=True):
        if outcome == "equal answers":
            continue
        sides = [record["chosen"], record["rejected"]] if "chosen" in record else [record["messages"]]
        for example, turns in zip(outcome[0], sides, strict=True):
            answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
            assert said(tokenizer, example) == "".join(answer + END for answer in answers)
