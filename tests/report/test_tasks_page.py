"""What fine-tuning came to, on the page: the figures of its records, texts as texts, in both languages."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from fine_tuned_records import (
    FINDINGS,
    checks,
    found_answers,
    learnt_answers,
    preferences,
    programs,
    put_adapter,
    units,
    written,
)
from hypothesis import given
from hypothesis import strategies as st

from hasten.adapt.config import LoraConfig
from hasten.core.batch import IGNORE
from hasten.core.errors import DataError
from hasten.core.files import write_json
from hasten.data.tasks.findings import told
from hasten.report.checks import Checks
from hasten.report.excerpts import AROUND, PROMPT, marked, shortened
from hasten.report.files import read_run
from hasten.report.page import write_page

HOSTILE = """</pre></mark></span><script>alert(1)</script><img src=x onerror="alert(2)">'"&lt;{{ 7*7 }}{}"""
HARMLESS = "a harmless answer of some seven words"
WRITTEN = ("rouge", "bleu", "answers", "exact")


class Outline(HTMLParser):
    """A page as a browser takes it apart: tags, attributes, and texts with the classes around them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.of_class: list[tuple[str, str]] = []
        self.last = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.last = dict(attrs).get("class") or ""

    def handle_endtag(self, tag):
        self.last = ""

    def handle_data(self, data):
        self.texts.append(data)
        self.of_class.append((self.last, data))

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def fine_tuned(make_run, byte_tokenizer):
    """`fine_tuned(records, text, name)`: the folder of a run that was fine-tuned."""

    def make(record, text=HARMLESS, name="tuned"):
        folder = make_run(name, steps=20, evaluated=False)
        write_json(folder / "evaluation.json", record)
        write_json(folder / "checks.json", checks(byte_tokenizer, text))
        return folder

    return make


def page(folder) -> str:
    return write_page([folder]).read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", [*WRITTEN, "programs"])
def test_hostile_texts_stay_texts(fine_tuned, metric):
    """With scripts in every text the page has the very tags that it has with harmless ones."""
    outlines = []
    for number, text in enumerate((HARMLESS, HOSTILE)):
        made = programs(text) if metric == "programs" else written(metric, text)
        records = made | found_answers(text) | learnt_answers() | preferences()
        outlines.append(Outline(page(fine_tuned(records, text, f"run-{number}"))))
    harmless, hostile = outlines
    assert hostile.tags == harmless.tags
    assert sum(HOSTILE in text for text in hostile.texts) >= 12
    assert "49" not in hostile.texts


def test_answers_found_stand_with_their_interval_signature_threshold_and_place(fine_tuned):
    record = found_answers(HARMLESS)
    found, outline = record["answers"], Outline(page(fine_tuned(record)))
    for figure in (
        f"{found['f1']:.2f} {found['f1_interval']:.2f} {found['exact']:.2f} {found['exact_interval']:.2f} 3",
        f"{found['f1_with_answer']:.2f}",
        found["signature"],
        "by more than -0.25",
        "fitted on 40 other questions",
        "Too long to read, and so not answered:",
        f"± {found['f1_interval']:.1f}",
    ):
        assert figure in outline.words, figure
    marks = [(kind, text) for kind, text in outline.of_class if kind in ("right", "wrong", "missed")]
    assert marks == [("right", HARMLESS), ("wrong", "after it")]
    assert outline.words.count("no answer") >= 2 and "抽取式问答" in outline.words


def test_the_loss_of_answers_stands_beside_that_of_the_base(fine_tuned):
    words = Outline(page(fine_tuned(learnt_answers(2.0, 1.5)))).words
    for figure in ("2.0000", "1.5000", "25.0% less than before fine-tuning", "比微调前低 25.0%", "1,200"):
        assert figure in words, figure
    rose = Outline(page(fine_tuned(learnt_answers(2.0, 2.2), name="worse"))).words
    assert "10.0% more than before fine-tuning" in rose and "less than before" not in rose
    alone = learnt_answers()
    del alone["supervised"]["base"]
    assert "before fine-tuning" not in Outline(page(fine_tuned(alone, name="alone"))).words


@pytest.mark.parametrize("metric", WRITTEN)
def test_every_score_of_written_texts_stands_with_its_interval_and_signature(fine_tuned, metric):
    record = written(metric, HARMLESS)
    found, words = record["written"], Outline(page(fine_tuned(record))).words
    names = {"rouge": "ROUGE-L", "bleu": "BLEU", "answers": "F1", "exact": "Exact match"}
    assert names[metric] in words and f"± {found['interval']:.1f}" in words
    figures = found["figures"]
    signatures = (
        [figures[k]["signature"] for k in ("bleu", "chrf")] if metric == "bleu" else [found["signature"]]
    )
    assert all(signature in words for signature in signatures)
    scores = [value for value in figures.values() if isinstance(value, dict)] or [found]
    assert all(f"{each['score']:.2f} {each['interval']:.2f}" in words for each in scores)
    if metric == "rouge":
        lead = found["baseline"]
        assert f"{lead['name']}: {lead['score']:.1f}" in words and lead["score"] > found["score"]
        assert f"{lead['figures']['rouge2']['score']:.2f}" in words


def test_programs_stand_with_pass_at_k_and_what_they_came_to(fine_tuned):
    record = programs(HARMLESS)
    html = page(fine_tuned(record))
    words, figures = Outline(html).words, record["written"]["figures"]
    for k in (1, 2):
        found = figures[f"pass@{k}"]
        assert f"pass@{k} pass@{k} 通过率 {100 * found['score']:.2f} {100 * found['interval']:.2f}" in words
    for kind, count in (("failed a test", 2), ("passed all tests", 1), ("came to the limit of time", 1)):
        assert re.search(rf"{kind} \S+ {count} ", words), kind
    assert words.index("failed a test") < words.index("passed all tests") and "crashed" not in words
    assert "width: 100.00%" in html and "width: 50.00%" in html


def test_preferences_stand_with_accuracy_margin_and_loss(fine_tuned):
    words = Outline(page(fine_tuned(preferences()))).words
    assert "75.0% 0.42 0.6000 48 dpo" in words and "偏好准确率" in words


def test_each_check_has_the_word_that_training_said(fine_tuned, byte_tokenizer):
    """The oracle is the line that a person was shown before training."""
    folder = fine_tuned({})
    outline = Outline(page(folder))
    for finding in FINDINGS:
        word = told(finding, ("leak",)).split()[0]
        assert re.search(rf"{word} \S+ {finding.name} {re.escape(finding.sentence)}", outline.words), word
        assert all(example in outline.words for example in finding.examples)
    assert "the recipe waives them: 以下数据检查未通过，配方要求忽略： leak " in outline.words
    for word in ("通过", "提示", "已忽略", "中止"):
        assert word in outline.words
    kept = checks(byte_tokenizer, HARMLESS)
    assert Checks.model_validate(kept | {"waived": []}).overruled == []


def test_the_mask_of_a_sample_is_that_of_its_targets(fine_tuned, byte_tokenizer):
    tokenizer = byte_tokenizer("</s>")
    (pair,) = units(tokenizer, HARMLESS)
    outline = Outline(page(fine_tuned({})))
    shown = [text.replace("·", " ") for kind, text in outline.of_class if kind.startswith("learnt")]
    learnt = [[t for t in example.targets if t != IGNORE] for example in pair]
    assert "".join(shown) == "".join(tokenizer.decode(ids, special=True) for ids in learnt)
    html = page(fine_tuned({}, name="again"))
    assert ".loss .learnt {" in html and "绿色为学习部分" in html


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({}, "LoRA"),
        ({"rslora": True, "base": "nf4"}, "LoRA · rsLoRA · NF4"),
        ({"dora": True, "targets": ("*.query", "*.value")}, "DoRA"),
    ],
    ids=["lora", "rslora-nf4", "dora"],
)
def test_pairs_beside_a_frozen_base_are_told(make_run, change, method):
    folder = make_run(evaluated=False, recipe={"base": "models/small", "adapt": {"kind": "lora"}})
    model = put_adapter(folder / "checkpoints/step-000020", LoraConfig(**change), 4)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run = read_run(folder)
    assert run.adapter is not None and run.adapter.trained == trained and run.adapter.method == method
    words = Outline(page(folder)).words
    of_all = f"{100 * trained / run.parameters:.1f}%"
    for told_of in (method, "models/small", ", ".join(run.adapter.adaptation.targets), of_all):
        assert told_of in words, told_of


def test_a_model_that_is_trained_whole_is_told_with_its_base(make_run):
    words = Outline(page(make_run(recipe={"base": "models/small"}))).words
    assert "models/small" in words and "the whole model" in words
    assert "Fine-tuning" not in Outline(page(make_run("pretrained"))).words


def test_the_accuracy_of_validations_is_a_curve_beside_the_loss(make_run):
    folder = make_run(steps=20, evaluated=False)
    assert "Validation accuracy" not in page(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (21, 22):
            line = {
                "step": step,
                "kind": "validation",
                "validation_loss": 1.0,
                "tokens": step,
                "seconds": step,
            }
            file.write(json.dumps(line | {"validation_accuracy": step / 40}) + "\n")
    html = page(folder)
    assert "Validation accuracy" in html and html.count('<div class="panel step linear">') == 6
    assert "验证准确率" in html and '"y":[0.525,0.55]' in html


@pytest.mark.parametrize(("kind", "unit"), [("chat", "token"), ("labelled", "example"), ("spans", "example")])
def test_the_loss_is_told_by_what_it_is_of(make_run, kind, unit):
    """`count` of each objective: tokens that are learnt, or examples with one label, answer or preference."""
    folder = make_run(recipe={"base": "models/small", "data": {"task": {"kind": kind}}})
    words = Outline(page(folder)).words
    assert f"nats per {unit}" in words and words.count("nats per ") == words.count(f"nats per {unit}")


def test_runs_side_by_side_have_their_own_sections_and_rows(fine_tuned):
    one = fine_tuned(written("rouge", HARMLESS) | learnt_answers(), name="one")
    two = fine_tuned(programs(HARMLESS), name="two")
    words = Outline(write_page([one, two]).read_text(encoding="utf-8")).words
    assert words.count("Written answers") == 2 and words.count("Loss of answers") == 1
    assert (
        re.search(r"pass@1 \S+ 通过率 – 25\.0 ", words)
        and "Fall of the test loss 测试损失降幅 25.0% –" in words
    )


def test_nothing_of_fine_tuning_is_shown_where_there_was_none(make_run):
    words = Outline(page(make_run())).words
    for title in ("Answers found in texts", "Written answers", "Loss of answers", "Preferences", "Checks"):
        assert title not in words, title


@pytest.mark.parametrize(
    ("name", "record", "complaint"),
    [
        ("evaluation.json", {"written": {"metric": "luck"}}, r"evaluation\.json: written: Input tag 'luck'"),
        ("evaluation.json", {"answers": {"f1": "high"}}, r"evaluation\.json: answers\.exact: Field required"),
        ("checks.json", {"findings": [{"name": "leak"}]}, r"checks\.json: findings\.0\.ok: Field required"),
        (
            "checks.json",
            {"findings": [], "samples": [{"sample": "<b>"}]},
            r"checks\.json: samples\.0\.sample",
        ),
    ],
    ids=["metric", "answers", "finding", "sample"],
)
def test_a_record_that_is_not_as_hasten_writes_it_is_named(make_run, name, record, complaint):
    folder = make_run(evaluated=False)
    write_json(folder / name, record)
    with pytest.raises(DataError, match=complaint):
        page(folder)


def test_a_torn_adapter_is_named(make_run):
    folder = make_run(evaluated=False)
    put_adapter(folder / "checkpoints/step-000020", LoraConfig(), 4)
    (folder / "checkpoints/step-000020/weights/model.safetensors").write_bytes(b"{}")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        page(folder)


@given(st.text(max_size=900), st.text(max_size=40), st.text(max_size=900))
def test_an_excerpt_is_a_piece_of_the_text_around_what_is_marked(before, found, after):
    context = before + found + after
    place = marked(context, "", found)
    assert place.found == found
    start, end = place.before.removeprefix("… "), place.after.removesuffix(" …")
    at = context.find(found)
    assert context[:at].endswith(start) or place.before == context[:at]
    assert context[at + len(found) :].startswith(end) or place.after == context[at + len(found) :]
    assert len(place.before) <= AROUND + 2 and len(place.after) <= AROUND + 2
    assert (
        len(shortened(context)) <= PROMPT + 3 and shortened(context)[: PROMPT // 2] == context[: PROMPT // 2]
    )


def test_words_are_not_cut_through():
    context = "perpendicular " * 40 + "here" + " perpendicular" * 40
    place = marked(context, "here")
    assert set(place.before.split()) == set(place.after.split()) == {"…", "perpendicular"}
    assert marked("in the beginning", "absent").after == "in the beginning"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_a_browser_opens_the_page_without_a_complaint(fine_tuned, tmp_path):
    record = found_answers(HOSTILE) | learnt_answers() | programs(HOSTILE) | preferences()
    file = write_page([fine_tuned(record, HOSTILE)])
    options = "--headless --no-sandbox --disable-gpu --no-first-run --enable-logging=stderr --dump-dom"
    answer = subprocess.run(
        ["chromium", *options.split(), f"--user-data-dir={tmp_path / 'browser'}", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in answer.stderr, "no refused script, no exception"
    assert 'class="verdict stop"' in answer.stdout
