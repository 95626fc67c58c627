"""`hasten plan`: its words, its JSON, its drawings, and one sentence for each mistake."""

import json
import xml.etree.ElementTree as ET

import pytest

from hasten import lookup as recipes
from hasten.cli import main
from hasten.core import config
from hasten.core.errors import ConfigError
from hasten.parallel.config import ParallelConfig
from hasten.plan.ask import from_words
from hasten.plan.block import layout_of, parallel_of
from hasten.plan.drawing import as_svg, as_text, timeline
from hasten.plan.layout import Layout
from hasten.recipe import Recipe

GPT2 = ["plan", "gpt2", "hardware=h100x8x2"]
LLAMA = [
    *GPT2,
    "model.preset=llama3-8b",
    "model.vocab_size=128256",
    "row_tokens=8192",
    "batch_tokens=1048576",
]


def test_the_answer_ranks_explains_and_helps(capsys):
    assert main([*GPT2, "top=3"]) == 0
    text = capsys.readouterr().out
    assert "16 x h100, 2 node(s) of 8, NVLink 4 inside, InfiniBand NDR between nodes" in text
    for words in ("tokens/s", "time of the first: compute", "what would help:", "an assumption; give price="):
        assert words in text
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1


def test_json_says_the_same_to_programs(capsys):
    assert main([*LLAMA, "format=json", "price=2", "tokens=1e12", "top=2"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rows"] == 128
    assert len(data["layouts"]) == 2
    first = data["layouts"][0]
    assert Layout(**first["layout"]).devices == first["devices"] <= data["devices"] == 16
    assert first["dollars"] == pytest.approx(2 * first["device_hours"])
    assert first["days"] == pytest.approx(1e12 / first["tokens_per_second"] / 86_400)
    parts = [value for name, value in first["seconds"].items() if name not in ("total", "micro_batches")]
    assert sum(parts) == pytest.approx(first["seconds"]["total"])
    assert all(refusal["count"] > 0 for refusal in data["refused"])


def test_the_layout_is_written_as_a_recipe_and_read_back(capsys, tmp_path):
    path = tmp_path / "big.yaml"
    words = [*LLAMA, "layout.pipeline=2", "layout.tensor=2", "layout.interleave=2", f"write={path}"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"recipe: {path}, of the layout" in text
    recipe = recipes.load(path)
    layout = layout_of(recipe.parallel, recipe.train.micro_batch_tokens // recipe.text.row_tokens)
    assert (layout.pipeline, layout.tensor, layout.interleave) == (2, 2, 2)
    assert layout.devices == 16
    assert (recipe.text.row_tokens, recipe.train.batch_tokens) == (8192, 1_048_576)
    assert recipe.model.preset == "llama3-8b"
    assert main([*words[:-1], "format=json", "top=1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert Layout(**data["layouts"][0]["layout"]) == layout
    # What is printed does the same, put into the recipe by hand.
    printed = text.split("the first in a recipe:\n")[1].split("\n\n")[0]
    said = config.read_yaml(printed)
    by_hand = config.parse(Recipe, {**said, "train": {"epochs": 1, **said["train"]}}, "here")
    assert by_hand.parallel == recipe.parallel
    assert by_hand.train.micro_batch_tokens == recipe.train.micro_batch_tokens
    assert data["recipe"]["parallel"] == said["parallel"]
    assert main(words) == 2
    assert "exists; name another file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(data=2, shard=4, stage=2, recompute="selective"),
        Layout(tensor=8, sequence_parallel=True, pipeline=4, interleave=2, order="interleaved"),
        Layout(context=4, pipeline=2, order="gpipe", micro_batch=3, recompute="full"),
    ],
    ids=["one", "shared", "interleaved", "gpipe"],
)
def test_a_layout_is_a_recipes_parallel_and_back(layout):
    parallel = parallel_of(layout)
    assert config.parse(ParallelConfig, config.read_yaml(config.dump(parallel)), "here") == parallel
    assert layout_of(parallel, layout.micro_batch) == layout


def test_what_a_recipe_leaves_open_is_no_layout():
    with pytest.raises(ConfigError, match=r"parallel\.data is auto; write what it is to be"):
        layout_of(ParallelConfig())


def test_options_may_be_flags():
    settings, others = from_words(["--hardware", "h100x8", "--top=3", "train.steps=5"], ["train"])
    assert (settings.hardware, settings.top, others) == ("h100x8", 3, ["train.steps=5"])


def test_a_pipeline_is_drawn(capsys, tmp_path):
    assert main([*LLAMA, "layout.pipeline=4", "layout.interleave=1", "schedule=text"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    assert [line.split()[1] for line in lines] == ["0", "1", "2", "3"]
    picture = tmp_path / "pipeline.svg"
    assert main([*LLAMA, "layout.pipeline=4", f"schedule={picture}"]) == 0
    assert f"schedule: {picture}" in capsys.readouterr().out
    root = ET.parse(picture).getroot()
    assert root.tag.endswith("svg")
    assert "http" not in picture.read_text().replace("http://www.w3.org/2000/svg", "")


def test_letters_show_every_operation_once():
    line = timeline(Layout(pipeline=2), 3)
    assert as_text(line) == "stage 0  01··aa2bb·cc\nstage 1  ·0aa1bb2cc··"
    assert as_svg(line, "<two & two>").count("<rect") == 12
    assert "&lt;two &amp; two&gt;" in as_svg(line, "<two & two>")


def test_long_pipelines_are_drawn_in_part():
    line = timeline(Layout(pipeline=4, interleave=2), 1000)
    assert line.micro_batches == 16
    assert max(map(len, as_text(line).splitlines())) < 170


def test_nothing_fits_and_says_what_would(capsys):
    assert main(["plan", "gpt2", "hardware=4090", "model.preset=llama3-8b", "model.vocab_size=128256"]) == 0
    text = capsys.readouterr().out
    assert "no layout fits; it fits on hardware=4090x" in text
    assert "GB or more of 25.3 GB, most of it states" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpt2"], "hasten plan needs hardware"),
        (["gpt2", "hardwar=h100"], "has no key 'hardwar'. Did you mean 'hardware'?"),
        (["gpt2", "hardware=h1000x8"], "there is no device 'h1000'. Did you mean 'h100'?"),
        (["gpt2", "--hardware"], "--hardware lacks a value"),
        (["gpt2", "hardware=h100", "batch_tokens=1000"], "the nearest is 1024"),
        (["gpt2", "hardware=h100", "schedule=page.png"], "write schedule=text or schedule=FILE.svg"),
        (["gpt2", "hardware=h100", "schedule=a.svg"], "has no pipeline to draw; write layout.pipeline=4"),
        (["gpt2", "hardware=h100", "schedule=text", "ranked=999"], "layouts fit; write less"),
        (["gpt2", "hardware=h100", "layout.tensr=2"], "layout has no field 'tensr'. Did you mean 'tensor'?"),
        (["hardware=h100"], "hasten plan needs a recipe first"),
    ],
)
def test_a_mistake_is_one_sentence(words, message, capsys):
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err
