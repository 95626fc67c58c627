"""Samples with their loss in colour: what is learnt is marked, and nothing of a sample gets out."""

import json
import re
from html.parser import HTMLParser

import pytest

from hasten.core.batch import IGNORE, UNKNOWN
from hasten.data.tasks.chat import ChatConfig
from hasten.data.tasks.preferences import PreferencesConfig
from hasten.data.tasks.protocol import Example, Setting
from hasten.data.tasks.rendered import (
    LEARNT,
    LONGEST_RUN,
    OFF,
    page,
    samples_html,
    samples_json,
    samples_text,
)

NASTY = "<script>alert(1)</script> \x1b[2J\x9b31m\u202e\u0007 & 霜\n\tend"


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    return byte_tokenizer("<|im_start|>", "<|im_end|>")


def units(tokenizer, config, row):
    [found] = config.open(Setting(tokenizer, "decoder", 4_096)).units([config.record(row)])
    return found


def chat(tokenizer, prompt, answer):
    return units(tokenizer, ChatConfig(template="chatml"), {"prompt": prompt, "completion": answer})


def test_what_is_learnt_stands_in_brackets_without_colours(tokenizer):
    text = samples_text(chat(tokenizer, "Say it.", "It is."), tokenizer, colour=False)
    assert text.endswith(
        "<|im_start|>user↵\nSay·it.<|im_end|>↵\n<|im_start|>assistant↵\n⟦It·is.⟧⟦<|im_end|>⟧"
    )


def test_with_colours_the_same_text_is_marked_by_them(tokenizer):
    sample = chat(tokenizer, "Say it.", "It is.")
    text = samples_text(sample, tokenizer, colour=True)
    assert f"{LEARNT}It·is.{OFF}" in text
    plain = samples_text(sample, tokenizer, colour=False)
    assert re.sub("\x1b\\[[0-9;]*m", "", text).split("\n")[2:] == re.sub("[⟦⟧]", "", plain).split("\n")[2:]


def test_colours_are_for_terminals_that_want_them(tokenizer, monkeypatch):
    sample = chat(tokenizer, "a", "b")
    assert "\x1b" not in samples_text(sample, tokenizer)  # a test's output is no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in samples_text(sample, tokenizer)
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b" not in samples_text(sample, tokenizer)


def test_nothing_in_a_sample_steers_a_terminal(tokenizer):
    for text in (
        samples_text(chat(tokenizer, NASTY, NASTY), tokenizer, colour=colour) for colour in (True, False)
    ):
        left = re.sub("\x1b\\[[0-9;]*m", "", text) if "\x1b[2m" in text else text
        assert not set(left) & set("\x1b\x9b\x07\u202e")
        assert "\\u001b[2J\\u009b31m\\u202e\\u0007" in left


class Tags(HTMLParser):
    """Collects what a browser would take for tags and for text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.learnt, self.stack = set(), "", "", []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.stack.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag):
        self.stack.pop()

    def handle_data(self, data):
        self.text += data
        self.learnt += data if self.stack and "learnt" in self.stack[-1].split() else ""


def test_nothing_in_a_sample_gets_onto_a_page(tokenizer):
    parsed = Tags()
    parsed.feed(samples_html(chat(tokenizer, NASTY, NASTY), tokenizer))
    assert parsed.tags <= {"p", "span", "div", "article", "pre"}
    assert not parsed.stack
    assert parsed.text.count("<script>alert(1)</script>·\\u001b[2J") == 2
    assert (
        parsed.learnt
        == "<script>alert(1)</script>·\\u001b[2J\\u009b31m\\u202e\\u0007·&·霜↵\n→\tend<|im_end|>"
    )


def test_what_a_run_keeps_makes_the_same_page_and_is_escaped_when_it_is_made(tokenizer):
    sample = chat(tokenizer, NASTY, NASTY)
    kept = json.loads(json.dumps(samples_json(sample, tokenizer)))
    assert page(kept) == samples_html(sample, tokenizer)
    assert "<script>" in json.dumps(kept)
    kept[0]["side"] = kept[0]["stretches"][0]["text"] = "<img src=x onerror=alert(1)>"
    assert "<img" not in page(kept)


def test_both_answers_of_a_pair_are_shown(tokenizer):
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    pair = units(tokenizer, PreferencesConfig(template="chatml"), row)
    text = samples_text(pair, tokenizer, colour=False)
    assert (
        text.index("sample 1, chosen")
        < text.index("⟦good⟧")
        < text.index("sample 1, rejected")
        < text.index("⟦bad⟧")
    )
    assert "较好" in samples_html(pair, tokenizer)


def test_a_class_is_shown_by_its_name_and_the_text_as_read(tokenizer):
    ids = tokenizer.encode("fine")
    example = Example(ids, [1, *[IGNORE] * (len(ids) - 1)])
    text = samples_text([(example,)], tokenizer, labels=["bad", "<good>"], colour=False)
    assert text.endswith("fine\n=> <good>")
    assert "&lt;good&gt;" in samples_html([(example,)], tokenizer, labels=["bad", "<good>"])


def test_a_class_that_nobody_knows_is_shown_as_what_a_teacher_says(tokenizer):
    sample = [(Example([1, 2], [IGNORE, UNKNOWN]),)]
    text = samples_text(sample, tokenizer, labels=["no", "yes"], colour=False)
    assert text.endswith("\n=> (no·label:·what·the·teacher·says)")


def test_a_span_is_marked_where_it_stands(tokenizer):
    ids = tokenizer.encode("who? it was Ada.")
    example = Example(ids, [IGNORE] * len(ids), places={"start": 12, "end": 14})
    assert samples_text([(example,)], tokenizer, colour=False).endswith("who?·it·was·⟦Ada⟧.")


def test_of_a_long_prompt_the_two_ends_are_shown(tokenizer):
    text = samples_text(chat(tokenizer, "x" * 2_000, "y"), tokenizer, colour=False)
    assert f"… {2_000 + 5 - LONGEST_RUN:,} tokens …" in text
    assert "⟦y⟧" in text
