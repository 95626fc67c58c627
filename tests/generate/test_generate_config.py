"""What a `generate:` section accepts, and what it says to what it does not."""

import json
from pathlib import Path

import pytest

from hasten.core.config import dump, parse
from hasten.core.errors import ConfigError, DataError
from hasten.generate.config import GenerateConfig, read_prompts


def test_a_section_survives_being_written_and_read():
    config = GenerateConfig(
        prompts=("从前", "Once"), top_k=5, stop=("\n\n",), prompts_file=Path("prompts.txt"), temperature=0.5
    )
    import yaml

    assert parse(GenerateConfig, yaml.safe_load(dump(config)), "recipe") == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1.0}, "no field 'temprature'. Did you mean 'temperature'?"),
        ({"temperature": -1.0}, "temperature should be greater than or equal to 0, got -1.0"),
        ({"top_k": 0}, "top_k should be greater than or equal to 1, got 0"),
        ({"top_p": 0.0}, "top_p should be greater than 0, got 0.0"),
        ({"top_p": 1.5}, "top_p should be less than or equal to 1, got 1.5"),
        ({"min_p": 2.0}, "min_p should be less than or equal to 1, got 2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty should be greater than 0, got 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens should be greater than or equal to 1, got 0"),
        ({"stop": ["\n", ""]}, "stop: an empty stop string stands everywhere; leave it out"),
        ({"context_overflow": "slid"}, "context_overflow cannot be 'slid'. Did you mean 'slide'?"),
        (
            {"temperature": 0, "samples_per_prompt": 3},
            "samples_per_prompt is 3 and temperature 0: the same text each time; write samples_per_prompt: 1",
        ),
    ],
)
def test_a_mistake_is_named_with_what_to_write(given, message):
    with pytest.raises(ConfigError) as raised:
        parse(GenerateConfig, given, "recipe.yaml")
    assert message in str(raised.value)


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Once upon\r\n\n  indented\n床前明月光", encoding="utf-8")
    config = GenerateConfig(prompts=("first",), prompts_file=file)
    assert config.all_prompts() == ["first", "Once upon", "  indented", "床前明月光"]


def test_prompts_of_jsonl_may_hold_anything(tmp_path):
    file, prompts = tmp_path / "prompts.jsonl", ["two\nlines", "", "\u2028", "def f():\n"]
    file.write_text("".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts), "utf-8")
    assert read_prompts(file) == prompts


def test_no_prompts_are_no_prompts():
    assert GenerateConfig().all_prompts() == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "holds no prompt; write one a line"),
        ("p.txt", b"\xff\xfe", "cannot be read as UTF-8 text"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"', r'line 2: is not JSON; write {"prompt": "..."}'),
        ("p.jsonl", b"[" * 100_000, "line 1: is not JSON"),
        ("p.jsonl", b'{"text": "a"}', 'line 1: has no text under "prompt"'),
        ("p.jsonl", b'{"prompt": 3}', 'line 1: has no text under "prompt"'),
        ("p.jsonl", b'"a"', 'line 1: has no text under "prompt"'),
    ],
)
def test_a_file_without_usable_prompts_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_prompts(tmp_path / name)
    assert message in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file; give prompts_file one prompt a line"):
        read_prompts(tmp_path / "none.txt")
