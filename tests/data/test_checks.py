"""Seeded bad data sets, each caught by its name and by no other; good ones pass."""

import random
from dataclasses import replace

import pytest

from hasten.core.batch import IGNORE
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.chat import ChatConfig
from hasten.data.tasks.checks import Examples, example_findings
from hasten.data.tasks.findings import Part, Rows, check_waived, stop_unless_waived, told
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.likeness import near
from hasten.data.tasks.preferences import PreferencesConfig
from hasten.data.tasks.protocol import Example, Setting
from hasten.data.tasks.record_checks import is_slip, leaks, left_out, record_findings

WORDS = [f"word{n}" for n in range(997)]


def sentence(number, length=30):
    """A text of its own."""
    return " ".join(random.Random(number).choices(WORDS, k=length))


def chat_rows(start=0, count=40):
    return [
        {"prompt": f"Explain: {sentence(n)}", "completion": f"It is {sentence(n + 5_000, 8)}"}
        for n in range(start, start + count)
    ]


def labelled_rows(start=0, count=60):
    return [
        {"text": sentence(n), "label": ("positive", "negative")[n % 2]} for n in range(start, start + count)
    ]


def part(config, rows, name):
    return Part([f"{name}.jsonl:{n}" for n in range(1, len(rows) + 1)], [config.record(row) for row in rows])


def judge_rows(config, train, test=()):
    """The names of what is wrong with rows, and all findings by name."""
    parts = {"train": part(config, train, "train"), "test": part(config, test, "test")}
    found = record_findings(Rows(config, parts, config.survey(parts["train"].records)))
    return failed(found), {finding.name: finding for finding in found}


def failed(findings):
    return {finding.name for finding in findings if not finding.ok}


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    """Padding is a token of its own."""
    return byte_tokenizer("<|pad|>", "<|im_start|>", "<|im_end|>")


def judge_examples(tokenizer, config, rows, folder=None, *, change=None, row_tokens=2_048):
    opened = config.open(Setting(tokenizer, "decoder", row_tokens, folder))
    records = part(config, rows, "train")
    units = opened.units(records.records)
    if change is not None:
        units = [[tuple(map(change, unit)) for unit in outcome] for outcome in units]
    found = example_findings(
        Examples(config, {"train": replace(records, units=units)}, tokenizer, row_tokens, opened)
    )
    return failed(found), {finding.name: finding for finding in found}


@pytest.mark.parametrize("template", ["chatml", "plain", "alpaca"])
@pytest.mark.parametrize("learn", ["answers", "last"])
def test_a_good_data_set_passes_every_check(tokenizer, template, learn):
    config = ChatConfig(template=template, learn=learn)
    assert judge_rows(config, chat_rows(), chat_rows(1_000))[0] == set()
    names, found = judge_examples(tokenizer, config, chat_rows())
    assert names == set()
    assert set(found) == {"truncated", "no-loss", "end-unsupervised", "pad-is-end", "template-drift"}


def test_a_good_data_set_of_labels_or_preferences_passes_every_check(tokenizer):
    assert judge_rows(LabelledConfig(), labelled_rows(), labelled_rows(1_000))[0] == set()
    pairs = PreferencesConfig(template="chatml")
    rows = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No."} for row in chat_rows()]
    assert judge_rows(pairs, rows)[0] == set()
    assert judge_examples(tokenizer, pairs, rows)[0] == set()


# --- what became of rows


def test_all_masked(tokenizer):
    """A conversation of which every answer was taken out."""
    rows = chat_rows(count=5)
    masked = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    }
    names, found = judge_examples(tokenizer, ChatConfig(template="chatml"), [*rows, masked])
    assert names == {"no-loss"}
    assert "1 of 6 samples have no token that carries loss (train.jsonl:6)" in found["no-loss"].sentence


def test_missing_end(tokenizer, tmp_path):
    """A template that ends no answer."""
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.content }}{{ '\n' }}{% endfor %}"
    )
    names, found = judge_examples(tokenizer, ChatConfig(), chat_rows(count=5), tmp_path)
    assert names == {"end-unsupervised"}
    assert "5 of 5 samples never teach the model to stop" in found["end-unsupervised"].sentence
    assert "'<|im_end|>'" in found["end-unsupervised"].sentence


def test_missing_end_is_named_so_where_padding_is_the_end_too(byte_tokenizer, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.content }}{{ '\n' }}{% endfor %}"
    )
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>")
    assert judge_examples(tokenizer, ChatConfig(), chat_rows(count=5), tmp_path)[0] == {"end-unsupervised"}


def test_an_end_of_an_early_answer_is_missed_too(tokenizer, tmp_path):
    """Of the answers that the template gives to be learnt only the last one ends."""
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}: "
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' if loop.last else '' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(4)]
    names, _ = judge_examples(tokenizer, ChatConfig(), [{"messages": turns}], tmp_path)
    assert "end-unsupervised" in names
    unmarked = (
        (tmp_path / "chat_template.jinja")
        .read_text()
        .replace("{% generation %}", "")
        .replace("{% endgeneration %}", "")
    )
    (tmp_path / "chat_template.jinja").write_text(unmarked)
    # Found by difference, each answer is learnt as it stands when it is the last.
    assert (
        "end-unsupervised" not in judge_examples(tokenizer, ChatConfig(), [{"messages": turns}], tmp_path)[0]
    )


def test_padding_that_hides_the_end(byte_tokenizer):
    """Targets left out wherever they are the padding token, as collators of other libraries do."""
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>")
    pad = tokenizer.pad_id
    assert pad == tokenizer.eot_id

    def collated(example):
        targets = [IGNORE if target == pad else target for target in example.targets]
        return Example([*example.tokens, pad], [*targets, IGNORE])

    names, found = judge_examples(
        tokenizer, ChatConfig(template="chatml"), chat_rows(count=5), change=collated
    )
    assert names == {"pad-is-end"}
    assert "padding is '<|im_end|>', which ends an answer" in found["pad-is-end"].sentence
    assert judge_examples(tokenizer, ChatConfig(template="chatml"), chat_rows(count=5))[0] == set()


def test_template_drift(tokenizer, tmp_path):
    """What begins an answer is spelt otherwise than before the answers that are learnt."""
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ 'Bot' if m.role == 'assistant' else 'You' }}: "
        "{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>Assistant: {% endif %}"
    )
    names, found = judge_examples(tokenizer, ChatConfig(), chat_rows(count=5), tmp_path)
    assert names == {"template-drift"}
    assert "in 5 of 5 samples" in found["template-drift"].sentence
    assert "learnt behind" in found["template-drift"].sentence
    assert "<|im_start|>Assistant: ', read" not in found["template-drift"].sentence
    assert "Assistant: '" in found["template-drift"].sentence


def test_a_blank_at_the_end_of_a_prompt_that_the_answer_brings_along_is_drift(tokenizer, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ ' ' + m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:  {% endif %}"
    )
    assert judge_examples(tokenizer, ChatConfig(), chat_rows(count=5), tmp_path)[0] == {"template-drift"}


def test_rows_that_are_left_out_or_cut_are_told_and_stop_only_where_they_are_most(tokenizer):
    short, long = chat_rows(count=30), [{"prompt": "x" * 900, "completion": "y"}] * 10
    config = ChatConfig(template="plain", too_long="drop")
    names, found = judge_examples(tokenizer, config, short + long, row_tokens=400)
    assert names == {"truncated"}
    assert "10 of 40 rows are left out (too long 10: train.jsonl:31" in found["truncated"].sentence
    assert not found["truncated"].stops
    cut = config.model_copy(update={"too_long": "cut"})
    _, found = judge_examples(tokenizer, cut, short + long, row_tokens=400)
    assert "10 of 40 rows are cut to fit a row" in found["truncated"].sentence
    assert judge_examples(tokenizer, config, long, row_tokens=400)[1]["truncated"].stops


def test_a_conversation_that_was_cut_is_no_drift(tokenizer):
    config = ChatConfig(template="chatml", too_long="cut")
    rows = [*chat_rows(count=3), {"prompt": "x" * 900, "completion": "y"}]
    assert judge_examples(tokenizer, config, rows, row_tokens=400)[0] == {"truncated"}


# --- rows


def test_leaked_test_rows():
    """Word for word, but for case and signs."""
    test = [*labelled_rows(1_000, 20), {"text": sentence(3).upper().replace(" ", ", "), "label": "positive"}]
    names, found = judge_rows(LabelledConfig(), labelled_rows(), test)
    assert names == {"leak"}
    assert (
        "of 21 held-out rows training holds 1 equal in test (test.jsonl:21 is in train.jsonl:4)"
        in found["leak"].sentence
    )


@pytest.mark.parametrize(
    ("known", "leaked"),
    [
        (sentence(3, 40), "Well, " + sentence(3, 40).replace("word9", "changed", 1)),
        (
            "我们今天去北京参观了故宫博物院和天安门广场,晚上又在王府井吃了烤鸭,非常高兴。",
            "我们今天去北京参观了故宫博物院和天安门广场,晚上又在王府井吃了包子。",
        ),
    ],
    ids=["english", "chinese"],
)
def test_test_rows_leaked_with_a_light_edit(known, leaked):
    train = [*labelled_rows(), {"text": known, "label": "positive"}]
    names, found = judge_rows(
        LabelledConfig(), train, [{"text": leaked, "label": "negative"}, *labelled_rows(1_000, 5)]
    )
    assert names == {"leak"}
    assert "1 near in test (test.jsonl:1 is in train.jsonl:61)" in found["leak"].sentence


def test_a_short_test_row_that_stands_in_a_longer_one():
    """Films' reviews in the data sets that were made of them: sentences of one are rows of another."""
    known = "despite its title it is never heavy-handed . the jabs it employs are short ( and well placed ) ."
    train = [*labelled_rows(), {"text": known, "label": "positive"}]
    test = [
        "The jabs it employs are short -lrb- and well placed -rrb- .",
        "Despite its titles it is never so",
        "it is",
    ]
    names, found = judge_rows(LabelledConfig(), train, [{"text": text, "label": "positive"} for text in test])
    assert names == {"leak"}
    assert "holds 1 near in test (test.jsonl:1 is in train.jsonl:61);" in found["leak"].sentence


def test_what_all_rows_share_is_no_leak():
    """A long instruction before each text."""
    instruction = sentence(9_999, 40)
    rows = [{**row, "prompt": f"{instruction}\n{row['prompt']}"} for row in chat_rows()]
    other = [{**row, "prompt": f"{instruction}\n{row['prompt']}"} for row in chat_rows(1_000)]
    assert judge_rows(ChatConfig(), rows, other)[0] == set()


def test_short_questions_that_are_equal_are_no_leak():
    rows = [{"prompt": "你好", "completion": f"{sentence(n, 12)}"} for n in range(3)]
    assert judge_rows(ChatConfig(), chat_rows() + rows[:1], rows[1:])[0] == set()


def test_the_share_of_windows_is_counted_as_written_out():
    training = [sentence(1, 40), sentence(2, 40), sentence(1, 25) + " " + sentence(3, 25)]
    held_out = [sentence(1, 20) + " " + sentence(77, 20), sentence(2, 40), sentence(4, 12), sentence(5)]
    held_out += [" ".join(sentence(2, 40).split()[4:11]), sentence(3, 24)]

    def pieces(text, size):
        words = text.split()
        return {tuple(words[n : n + size]) for n in range(len(words) - size + 1)}

    def share(known, text):
        mine = pieces(text, size := min(13, len(text.split())))
        return len(pieces(known, size) & mine) / len(mine)

    shares = [
        (one, other, share(known, text))
        for one, known in enumerate(training)
        for other, text in enumerate(held_out)
    ]
    assert shares[1 * 6 + 4] == (1, 4, 1.0)  # seven words that stand in a longer text
    assert list(near(training, held_out)) == [found for found in shares if found[2] >= 0.3]
    assert list(near([], held_out)) == list(near(training, [])) == []


def test_every_training_row_that_leaks_is_told():
    """What has to go so that nothing is left."""
    config = LabelledConfig()
    train = part(
        config,
        [*labelled_rows(), {"text": sentence(1_003).title(), "label": "x"}, *labelled_rows(1_003, 2)],
        "train",
    )
    rows = Rows(config, {"train": train, "test": part(config, labelled_rows(1_000, 5), "test")})
    found = list(leaks(rows))
    assert [(each.held_out, each.training) for each in found] == [
        ("test.jsonl:4", "train.jsonl:61"),
        ("test.jsonl:4", "train.jsonl:62"),
        ("test.jsonl:5", "train.jsonl:63"),
    ]
    assert {each.kind for each in found} == {"equal"}


def test_a_label_with_a_typing_error():
    train = labelled_rows(count=200)
    train[7]["label"] = "postive"
    names, found = judge_rows(LabelledConfig(), train)
    assert names == {"labels"}
    assert (
        "'postive' (1 rows: train.jsonl:8) looks like a slip for 'positive' (100 rows)"
        in found["labels"].sentence
    )


def test_a_label_that_training_does_not_know():
    test = [*labelled_rows(1_000, 4), {"text": sentence(2_000), "label": "neutral"}]
    names, found = judge_rows(LabelledConfig(), labelled_rows(), test)
    assert names == {"labels"}
    assert "test has the label 'neutral', which training has not (test.jsonl:5)" in found["labels"].sentence


def test_the_distribution_of_labels_is_told():
    assert judge_rows(LabelledConfig(), labelled_rows())[1]["labels"].sentence == (
        "training: negative 50% (30), positive 50% (30)"
    )


@pytest.mark.parametrize(
    ("one", "other", "slip"),
    [
        ("Positive", "positive", True),
        (" positive", "positive", True),
        ("postive", "positive", True),
        ("psoitive", "positive", True),
        ("positives", "positive", True),
        ("pozitive", "positive", True),
        ("position", "positive", False),
        ("class 1", "class 2", False),
        ("pos", "pot", False),
        ("体育", "体操", False),
        ("negative", "positive", False),
    ],
)
def test_what_a_slip_is(one, other, slip):
    assert is_slip(one, other) is is_slip(other, one) is slip


def test_rows_that_come_twice():
    names, found = judge_rows(LabelledConfig(), labelled_rows() + labelled_rows(count=2))
    assert names == {"duplicates"}
    assert "2 of 62 training rows" in found["duplicates"].sentence
    assert "train.jsonl:61 = train.jsonl:1" in found["duplicates"].sentence
    assert not found["duplicates"].stops
    assert judge_rows(LabelledConfig(), labelled_rows() * 2)[1]["duplicates"].stops


def test_signs_tell_rows_apart():
    rows = [{"text": text, "label": label} for text, label in [("2 + 3 = 5", "true"), ("2 - 3 = 5", "false")]]
    assert judge_rows(LabelledConfig(), rows)[0] == set()


def test_labels_that_contradict_each_other():
    rows = labelled_rows()
    names, found = judge_rows(LabelledConfig(), [*rows, {**rows[0], "label": rows[1]["label"]}])
    assert names == {"conflicts"}
    assert "train.jsonl:61 against train.jsonl:1" in found["conflicts"].sentence


def test_preferences_that_contradict_each_other():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    config = PreferencesConfig()
    assert judge_rows(config, [row, {**row, "chosen": "b", "rejected": "a"}])[0] == {"conflicts"}
    assert judge_rows(config, [row, {**row, "rejected": "c"}])[0] == set()


def test_answers_may_differ():
    rows = chat_rows()
    assert judge_rows(ChatConfig(), [*rows, {**rows[0], "completion": "otherwise"}])[0] == set()


def test_rows_that_ask_nothing():
    names, found = judge_rows(LabelledConfig(), [*labelled_rows(), {"text": " \n", "label": "positive"}])
    assert names == {"empty"}
    assert "1 of 61 rows ask nothing (train.jsonl:61)" in found["empty"].sentence


# --- what can be left out


def test_rows_that_are_left_out_by_a_rule_leave_nothing_to_find():
    config = LabelledConfig()
    leaking = {"text": sentence(1_003).title(), "label": "positive"}
    good = labelled_rows()
    rows = [*good, leaking, leaking, good[4], good[6], {**good[6], "label": "negative"}]
    train, test = part(config, rows, "train"), part(config, labelled_rows(1_000, 5), "test")
    bad = Rows(config, {"train": train, "test": test}, config.survey(train.records))
    assert failed(record_findings(bad)) == {"duplicates", "conflicts", "leak"}
    gone = left_out(bad, ["leak", "duplicates", "conflicts"])
    assert gone == {
        "train.jsonl:61": "leak",
        "train.jsonl:62": "leak",
        "train.jsonl:63": "duplicates",
        "train.jsonl:64": "conflicts",
        "train.jsonl:65": "conflicts",
        "train.jsonl:7": "conflicts",
    }
    kept = [n for n, name in enumerate(train.names) if name not in gone]
    rest = Part([train.names[n] for n in kept], [train.records[n] for n in kept])
    assert failed(record_findings(replace(bad, parts={"train": rest, "test": test}))) == set()
    assert set(left_out(bad, ["duplicates"])) == {f"train.jsonl:{n}" for n in (62, 63, 64)}
    assert left_out(bad, []) == {}


# --- what stops


def test_what_stops_a_run_is_told_with_the_name_that_waives_it():
    test = labelled_rows(0, 3)
    found = list(judge_rows(LabelledConfig(), labelled_rows(), test)[1].values())
    with pytest.raises(DataError, match=r"leak: of 3 held-out rows .* data.waive: \[leak\]"):
        stop_unless_waived(found, ())
    stop_unless_waived(found, ("leak",))
    lines = [told(finding, ("leak",)).split()[:2] for finding in found]
    assert ["waived", "leak"] in lines
    assert ["ok", "labels"] in lines


def test_a_name_that_is_no_check_is_told_with_a_near_one():
    with pytest.raises(ConfigError, match=r"no check 'leaks'\. Did you mean 'leak'"):
        check_waived(["leaks"])


def test_names_of_rows_cannot_steer_a_terminal():
    config = LabelledConfig()
    rows = [{"text": sentence(n), "label": ("\x1b[2Jgood", "bad")[n % 2]} for n in range(10)]
    assert "\x1b" not in judge_rows(config, rows)[1]["labels"].sentence
