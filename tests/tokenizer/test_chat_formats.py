"""The template that is decided on, and the built-in ones."""

import json

import pytest

from hasten.core.errors import ConfigError, DataError
from hasten.tokenizer.formats import KNOWN, choose_template, template_source_of
from hasten.tokenizer.template import find_template, render

ROUNDS = [
    {"role": "system", "content": "简短。"},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Print it."},
    {"role": "assistant", "content": "    print(2)"},
]


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    return byte_tokenizer("<|im_start|>", "<|im_end|>")


def test_plain_reads_as_questions_and_answers_and_ends_each_answer(tokenizer):
    template = choose_template("plain", tokenizer, None)
    end = "<|im_end|>"
    assert render(template.text, ROUNDS) == (
        f"{end}简短。\n\nQ: 1+1?\nA: 2{end}\nQ: Print it.\nA:    print(2){end}\n"
    )
    assert render(template.text, ROUNDS[1:2]) == f"{end}Q: 1+1?\nA:"


def test_alpaca_reads_as_published(tokenizer):
    """Taori et al. 2023, train.py, with a line break behind `### Response:`."""
    text = render(choose_template("alpaca", tokenizer, None).text, ROUNDS[1:2])
    assert text == (
        "<|im_end|>Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.\n\n### Instruction:\n1+1?\n\n### Response:\n"
    )


@pytest.mark.parametrize("name", ["plain", "alpaca"])
def test_a_role_that_a_built_in_template_does_not_know_is_refused(tokenizer, name):
    with pytest.raises(DataError, match=f"{name} knows the roles system, user and assistant"):
        render(choose_template(name, tokenizer, None).text, [{"role": "tool", "content": "7"}])


def test_a_base_model_s_own_template_is_taken_unless_another_is_named(tokenizer, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("own {{ eos_token }}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    own = choose_template(None, tokenizer, tmp_path)
    assert (own.source, own.text) == ("own {{ eos_token }}", find_template(tmp_path))
    assert choose_template("plain", tokenizer, tmp_path).source == KNOWN["plain"]


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_saved_beside_a_model_renders_the_same_when_it_is_found_again(tokenizer, name, tmp_path):
    template = choose_template(name, tokenizer, None)
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template.source)
    found = find_template(tmp_path)
    assert found is not None
    assert render(found, ROUNDS) == render(template.text, ROUNDS)


def test_without_a_template_plain_is_taken(tokenizer, tmp_path):
    assert choose_template(None, tokenizer, tmp_path).name == "plain"
    assert choose_template(None, tokenizer, None).name == "plain"


def test_a_template_in_a_file(tokenizer, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}{{ eos_token }}")
    assert render(choose_template(str(file), tokenizer, None).text, ROUNDS) == "简短。<|im_end|>"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        choose_template(str(file), tokenizer, None)
    file.write_text("x" * 100_001)
    with pytest.raises(ConfigError, match="is longer than 100,000"):
        choose_template(str(file), tokenizer, None)
    with pytest.raises(ConfigError, match=r"gone.jinja is not there; give a .jinja file, or one of chatml"):
        choose_template(str(tmp_path / "gone.jinja"), tokenizer, None)


def test_a_wrong_name_is_told_with_a_near_one(tokenizer):
    with pytest.raises(ConfigError, match=r"no template 'chatlm'\. Did you mean 'chatml'"):
        choose_template("chatlm", tokenizer, None)


def test_chatml_is_refused_where_its_tokens_are_no_tokens_or_no_ends(byte_tokenizer):
    with pytest.raises(
        ConfigError, match=r"needs the special token <\|im_start\|>, which the tokenizer lacks"
    ):
        choose_template("chatml", byte_tokenizer("<|endoftext|>"), None)
    with pytest.raises(ConfigError, match="at which generation does not stop"):
        choose_template("chatml", byte_tokenizer("<|im_start|>", "<|im_end|>", "<|endoftext|>"), None)


def test_what_examples_depend_on_is_the_text_of_the_template(tmp_path):
    (tmp_path / "mine.jinja").write_text("one")
    (tmp_path / "chat_template.jinja").write_text("own")
    assert template_source_of("plain", tmp_path) == "plain"
    assert template_source_of(str(tmp_path / "mine.jinja"), None) == "one"
    assert template_source_of(None, tmp_path) == "own"
    assert template_source_of(None, None) == "plain"
