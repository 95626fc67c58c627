"""Labelled texts: the tokens of `transformers`, the label where a head looks, every mistake named."""

import os
from pathlib import Path
from typing import Any

import pytest
import task_tokenizers
from tokenizers import processors

from hasten.core.batch import IGNORE, UNKNOWN
from hasten.core.config import parse
from hasten.core.errors import ConfigError, DataError
from hasten.data.tasks.labelled import LabelledConfig
from hasten.data.tasks.protocol import Example, RowError, Setting
from hasten.tokenizer.tokenizer import Tokenizer

FIRST = ["the cat sat on the mat", "中国人 the dog", "a", "x y z, 123 - don't!"]
SECOND = ["a dog sat", "中 and 国", "the mat is on the cat's mat.", "q"]
LABELS = {"labels": ["no", "yes"]}
READS = {"bert": "encoder", "roberta": "encoder", "t5": "encoder", "llama": "decoder", "gpt2": "decoder"}


def config(**fields: Any) -> LabelledConfig:
    return parse(LabelledConfig, {"kind": "labelled", **fields}, "recipe.yaml")


def examples(tokenizer: Tokenizer, reads: Any, rows: list[dict[str, Any]], width: int = 64, **fields: Any):
    task = config(**fields)
    encoding = task.open(Setting(tokenizer, reads, width, learnt=LABELS))
    units = encoding.units([task.record(row) for row in rows])
    return [unit if isinstance(unit, str) else unit[0][0] for unit in units]


def singles() -> list[dict[str, Any]]:
    return [{"text": text, "label": "yes"} for text in FIRST]


def pairs() -> list[dict[str, Any]]:
    return [{"text": one, "other": two, "label": "no"} for one, two in zip(FIRST, SECOND, strict=True)]


@pytest.mark.parametrize("make", READS)
def test_the_tokens_of_a_text_are_those_of_transformers(make):
    found = examples(task_tokenizers.ours(make), READS[make], singles())
    expected = task_tokenizers.theirs(make)(FIRST)["input_ids"]
    assert [list(example.tokens) for example in found] == expected


@pytest.mark.parametrize("make", ["bert", "roberta", "t5", "llama"])
def test_the_tokens_of_two_texts_are_those_of_transformers_with_their_types(make):
    found = examples(task_tokenizers.ours(make), READS[make], pairs(), pair_field="other")
    expected = task_tokenizers.theirs(make)(FIRST, SECOND, return_token_type_ids=True)
    assert [list(example.tokens) for example in found] == expected["input_ids"]
    if READS[make] == "encoder":
        assert [list(example.types or ()) for example in found] == expected["token_type_ids"]
    else:
        assert all(example.types is None for example in found)


@pytest.mark.parametrize("width", [8, 11, 12, 17])
@pytest.mark.parametrize("make", ["bert", "roberta"])
def test_cut_texts_are_those_that_transformers_cuts_longest_first(make, width):
    theirs = task_tokenizers.theirs(make)
    tokenizer = task_tokenizers.ours(make)
    found = examples(tokenizer, "encoder", pairs(), width, pair_field="other", too_long="cut")
    expected = theirs(FIRST, SECOND, truncation="longest_first", max_length=width)
    assert [list(example.tokens) for example in found] == expected["input_ids"]
    alone = examples(tokenizer, "encoder", singles(), width, too_long="cut")
    assert [list(e.tokens) for e in alone] == theirs(FIRST, truncation=True, max_length=width)["input_ids"]


def test_the_tokens_of_a_trained_encoder_are_those_of_transformers():
    where = Path(os.environ.get("HASTEN_MODELS") or "runs/models") / "all-MiniLM-L6-v2"
    if not where.is_dir():
        pytest.skip(f"there is no {where}: run make models")
    transformers = pytest.importorskip("transformers")
    theirs, tokenizer = transformers.AutoTokenizer.from_pretrained(where), Tokenizer.load(where)
    found = examples(tokenizer, "encoder", pairs(), pair_field="other")
    expected = theirs(FIRST, SECOND)
    assert [list(example.tokens) for example in found] == expected["input_ids"]
    assert [list(example.types or ()) for example in found] == expected["token_type_ids"]


@pytest.mark.parametrize("make", READS)
def test_the_label_is_the_one_target_at_the_place_that_is_pooled(make):
    for example in examples(task_tokenizers.ours(make), READS[make], singles()):
        place = 0 if READS[make] == "encoder" else len(example.tokens) - 1
        expected = [IGNORE] * len(example.tokens)
        expected[place] = 1  # yes
        assert list(example.targets) == expected


def test_what_looks_like_a_special_token_is_read_as_text():
    (example,) = examples(task_tokenizers.ours("bert"), "encoder", [{"text": "the [SEP] cat", "label": "no"}])
    assert list(example.tokens).count(3) == 1


def test_a_tokenizer_without_a_template_gets_the_order_of_bert_for_an_encoder(byte_tokenizer):
    tokenizer = byte_tokenizer("<s>", "</s>")
    begin, end = tokenizer.bos_id, tokenizer.eot_id
    rows = [{"text": "ab", "other": "c", "label": "no"}]
    (single,) = examples(tokenizer, "encoder", rows)
    (pair,) = examples(tokenizer, "encoder", rows, pair_field="other")
    a, b, c = tokenizer.encode("abc")
    assert list(single.tokens) == [begin, a, b, end]
    assert list(pair.tokens) == [begin, a, b, end, c, end]
    assert list(pair.types) == [0, 0, 0, 0, 1, 1]


def test_a_decoder_without_a_template_reads_the_text_alone_and_the_end_between_two():
    tokenizer = task_tokenizers.ours("gpt2")
    rows = [{"text": "ab", "other": "c", "label": "no"}]
    a, b, c = tokenizer.encode("abc")
    assert list(examples(tokenizer, "decoder", rows)[0].tokens) == [a, b]
    assert list(examples(tokenizer, "decoder", rows, pair_field="other")[0].tokens) == [a, b, 256, c]


def test_a_template_that_turns_texts_round_is_refused():
    inner = task_tokenizers.wordpiece()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $B [SEP] $A", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(
        DataError, match=r"template \(post_processor\) does not keep texts whole and in order"
    ):
        examples(Tokenizer(inner), "encoder", pairs(), pair_field="other")


def test_names_numbers_and_truths_are_names_sorted_as_what_they_are():
    def learnt(*labels: Any, **fields: Any) -> list[str]:
        task = config(**fields)
        return task.survey([task.record({"text": "t", "label": label}) for label in labels])["labels"]

    assert learnt("b", "a", "c", "a") == ["a", "b", "c"]
    assert learnt(10, 9, 2, -1) == ["-1", "2", "9", "10"]
    assert learnt(True, False, True) == ["false", "true"]
    assert learnt("yes", "no", labels=["yes", "no", "perhaps"]) == ["yes", "no", "perhaps"]
    assert learnt(1, 0, 1, labels=["World", "Sports"]) == ["World", "Sports"]


def test_numbers_of_a_hub_count_into_the_labels_and_their_own_names_come_first():
    named, numbered = config(labels=["World", "Sports"]), config(labels=["1", "0"])
    assert [named.record({"text": "t", "label": n})["label"] for n in (0, 1)] == ["World", "Sports"]
    assert [numbered.record({"text": "t", "label": n})["label"] for n in (0, 1)] == ["0", "1"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "a", "label": "b"}, r"no column 'text'\. Did you mean 'txt'\? It has: txt, label"),
        ({"text": "a", "lable": "b"}, r"no column 'label'\. Did you mean 'lable'\?"),
        ({"text": None, "label": "b"}, "nothing in the column 'text'; fill it in"),
        ({"text": ["a"], "label": "b"}, r"a text in the column 'text', got \['a'\]"),
        ({"text": "a", "label": None}, "nothing in the column 'label'"),
        ({"text": "a", "label": ""}, "a name, a whole number, true or false in the column 'label', got ''"),
        ({"text": "a", "label": 1.0}, "a name, a whole number, true or false in the column 'label', got 1.0"),
        ({"text": "a", "label": 2}, "the label 2, and the 2 labels are counted from 0 to 1"),
        ({"text": "a", "label": -1}, "the label -1, and the 2 labels"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(row, message):
    with pytest.raises(RowError, match=message):
        config(labels=["no", "yes"]).record(row)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ["a", "b", "a"]}, "labels has 'a' twice"),
        ({"labels": ["a"]}, "labels needs two names or more"),
        ({"labels": ["a", ""]}, "labels"),
        ({"prompt": "Is it good?"}, "names no column"),
        ({"prompt": "{text}: {other}?"}, r"should name \{text\}, once"),
        ({"prompt": "{text} {text}"}, r"should name \{text\}, once"),
        (
            {"prompt": "{other}, {text}?", "pair_field": "other"},
            r"should name \{text\}, then \{other\}, once",
        ),
        ({"to_long": "cut"}, r"no field 'to_long'\. Did you mean 'too_long'"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_labels_that_cannot_be_classes_are_refused():
    task = config()
    for labels, message in [
        (["a"] * 9, "the one label 'a'"),
        ([], "training has no rows"),
        ([f"note {n}" for n in range(30)], "30 different values in 30 training rows, too many to be classes"),
    ]:
        with pytest.raises(DataError, match=message):
            task.survey([{"text": "t", "label": label} for label in labels])
    assert len(task.survey([{"text": "t", "label": str(n % 15)} for n in range(20)])["labels"]) == 15


def test_a_label_that_is_no_class_is_named_with_its_neighbour():
    with pytest.raises(DataError, match=r"label 'yess' is none of the 2 classes .* Did you mean 'yes'\?"):
        examples(task_tokenizers.ours("bert"), "encoder", [{"text": "a", "label": "yess"}])
    with pytest.raises(DataError, match="label 'maybe' is none of"):
        config(labels=["no", "yes"]).survey([{"text": "a", "label": "maybe"}])


def test_texts_that_are_too_long_are_an_error_left_out_or_cut_as_the_recipe_says():
    tokenizer, rows = task_tokenizers.ours("bert"), singles()
    with pytest.raises(DataError, match=r"text 'the cat sat on the mat' has 8 tokens and a row 6; .*=cut or"):
        examples(tokenizer, "encoder", rows, 6)
    found = examples(tokenizer, "encoder", rows, 6, too_long="drop")
    assert found[0] == "too long" and isinstance(found[2], Example)
    task = config(too_long="cut")
    encoding = task.open(Setting(tokenizer, "encoder", 6, learnt=LABELS))
    cut = [unit[0][0] for unit in encoding.units([task.record(row) for row in rows])]
    assert max(len(example.tokens) for example in cut) == 6
    assert encoding.tally == {"cut": 3}


@pytest.mark.parametrize("make", ["gpt2", "llama"])
def test_a_prompt_is_read_around_each_text_as_if_they_were_one(make):
    asked, tokenizer = "Review: {text}\nGood?", task_tokenizers.ours(make)
    whole = [{"text": asked.format(text=row["text"]), "label": row["label"]} for row in singles()]
    assert examples(tokenizer, "decoder", singles(), prompt=asked) == examples(tokenizer, "decoder", whole)
    both = "First: {text}\nSecond: {other}\nDoes it follow?"
    joined = [{"text": both.format(**row), "label": row["label"]} for row in pairs()]
    found = examples(tokenizer, "decoder", pairs(), width=256, prompt=both, pair_field="other")
    assert found == examples(tokenizer, "decoder", joined, width=256)


def test_what_is_asked_stays_where_a_text_is_cut():
    tokenizer = task_tokenizers.ours("gpt2")
    given = {"prompt": "R: {text} Good?", "too_long": "cut"}
    for example in examples(tokenizer, "decoder", [{"text": "long " * 9, "label": "no"}], 20, **given):
        assert tokenizer.decode(list(example.tokens)) == "R: long long l Good?"
        assert example.targets[-1] == 0 and len(example.tokens) == 20


def test_a_text_of_which_no_token_is_left_is_left_out():
    empty = [{"text": "\u200b", "label": "no"}]
    assert examples(task_tokenizers.ours("bert"), "encoder", empty, prompt="the {text}") == ["no token"]
    assert examples(task_tokenizers.ours("bert"), "encoder", [{"text": "\u200b", "label": "no"}]) == [
        "no token"
    ]


def test_a_model_that_cannot_do_it_is_refused():
    tokenizer = task_tokenizers.ours("bert")
    with pytest.raises(ConfigError, match="a seq2seq model has no head of classes"):
        config().open(Setting(tokenizer, "seq2seq", 64, learnt=LABELS))
    with pytest.raises(ConfigError, match=r"row_tokens is 2, and 2 stand around the text"):
        config().open(Setting(tokenizer, "encoder", 2, learnt=LABELS))


def test_equal_texts_stay_together_and_all_text_is_told():
    task = config(pair_field="other")
    one, two = (task.record({"text": "a", "other": "b", "label": label}) for label in ("no", "yes"))
    assert (
        task.key(one) == task.key(two) != task.key(task.record({"text": "ab", "other": "c", "label": "no"}))
    )
    assert task.texts(one) == ["a", "b"]


@pytest.mark.parametrize("row", [{"text": "a"}, {"text": "a", "label": None}, {"text": "a", "label": ""}])
def test_a_text_without_a_label_is_an_error_or_there_to_be_taught(row, byte_tokenizer):
    with pytest.raises(RowError, match="'label'"):
        config().record(row)
    task = config(unlabelled="taught")
    with pytest.raises(RowError, match="'label'"):
        task.held_out.record(row)
    record = task.record(row)
    assert record == {"text": "a"} and task.key(record) is None
    (found,) = examples(byte_tokenizer("</s>"), "decoder", [row], unlabelled="taught")
    assert list(found.targets) == [UNKNOWN]
    known = [{"text": "b", "label": "no"}, {"text": "c", "label": "yes"}]
    assert task.survey([record, *map(task.record, known)]) == {"labels": ["no", "yes"]}
    with pytest.raises(DataError, match="training has no row with a label"):
        task.survey([record])


def test_groups_of_finer_labels_are_learnt_from_the_rows():
    task = config(label_field="kind", group_field="topic")
    rows = [{"text": "t", "kind": kind, "topic": kind[0]} for kind in ("a1", "b1", "a2")]
    learnt = task.survey([task.record(row) for row in rows])
    assert learnt == {"labels": ["a1", "a2", "b1"], "groups": {"a1": "a", "a2": "a", "b1": "b"}}
    assert "groups" not in config(label_field="kind").survey([task.record(row) for row in rows])
    with pytest.raises(DataError, match="'a1' is of the group 'a' in one row and of 'b' in another"):
        task.survey([task.record(row) for row in [*rows, {"text": "u", "kind": "a1", "topic": "b"}]])
    with pytest.raises(RowError, match="has no column 'topic'"):
        task.record({"text": "t", "kind": "a1"})
