"""The page stands alone, shows what the files say, and takes every text as text."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from hasten.core.errors import ConfigError, DataError
from hasten.core.files import write_json
from hasten.report import page
from hasten.report.page import ReportConfig, write_page
from hasten.report.words import WORDS

HOSTILE = """</script></style></pre><script>alert(1)</script><img src=x onerror="alert(2)">'"&lt;{{ 7*7 }}"""
HARMLESS = "a perfectly harmless sentence with seven words"


class Outline(HTMLParser):
    """A page as a reader's browser takes it apart: tags with the names of their attributes, and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def written(*args, **kwargs) -> str:
    return write_page(*args, **kwargs).read_text(encoding="utf-8")


def plant(folder, text):
    """`text` wherever a file of the run can hold one."""
    sample = {"prompt": text, "text": text, "stopped_by": text, "seed": 0}
    write_json(folder / "samples.json", [sample])
    write_json(folder / "recipe.yaml", {"model": {text: text}, text: 1})
    write_json(folder / "environment.json", {text: text, "processor": text})
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["sources"] = {text: evaluation["test"], "other": evaluation["test"]}
    evaluation["baselines"] = {text: {"bits_per_byte": 2.0, "bytes": 5}}
    write_json(folder / "evaluation.json", evaluation | {"checkpoint": text})
    counts = {"documents": 1, "tokens": 2, "bytes": 3}
    dropped = {text: {"documents": 1, "bytes": 2, "examples": [{"id": text, "text": text, "note": text}]}}
    clean = {"documents": 1, "bytes": 2, "kept": 0, "dropped": dropped}
    write_json(folder / "data.json", {"splits": {text: {text: counts}}, "clean": clean})
    return folder


@pytest.mark.parametrize("several", [False, True], ids=["one run", "two runs"])
def test_hostile_texts_stay_texts(make_run, several):
    """With scripts in every text, names too, the page has the very tags that it has with harmless ones."""
    outlines = []
    for text in (HARMLESS, HOSTILE):
        name = text.replace("/", "\u2215")[:80]
        runs = [plant(make_run(name), text)]
        runs += [plant(make_run(f"{name} 2", seed=1), text + "!")] if several else []
        outlines.append(Outline(written(runs)))
    harmless, hostile = outlines
    assert hostile.tags == harmless.tags
    assert sum(HOSTILE in text for text in hostile.texts) >= 10, "and the reader sees them as they are"


def test_no_text_of_a_run_is_run_as_a_template(make_run):
    assert "49" not in Outline(written([plant(make_run(evaluated=True, steps=20), "{{ 7*7 }}")])).texts


def test_nothing_is_fetched_from_anywhere(make_run):
    text = written([make_run("a"), make_run("b", seed=1)])
    outline = Outline(text)
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href", "formaction"}
    assert not [entry for entry in outline.attributes if entry[1] in loading]
    assert not re.findall(r"https?:|//[a-z]+\.|url\(|@import|\bimport\(|fetch\(|XMLHttpRequest", text)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in outline.tags}


def test_the_policy_allows_the_pages_own_script_and_nothing_else(make_run):
    text = written([make_run()])
    (policy,) = (
        value for _, name, value in Outline(text).attributes if name == "content" and "-src" in value
    )
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_figures_of_the_files_stand_on_the_page(make_run):
    folder = make_run("first", steps=150, final=2.0)
    texts = " ".join(" ".join(Outline(written([folder])).texts).split())
    for figure in (
        "0.900",
        "51.3%",
        "81.0%",
        "99.0%",
        "51.9%",
        "1.870",
        "2.310",
        "5.25M",
        "1.23M",
        "± 0.013",
    ):
        assert figure in texts, figure
    for word in ("too_short", "lib/antigravity.py", "step-000150", "with open(path) as file:", "2.13.0"):
        assert word in texts, word


def test_every_curve_is_there_against_steps_tokens_and_time(make_run):
    text = written([make_run()])
    for axis in ("step", "tokens", "seconds"):
        assert text.count(f'<div class="panel {axis} linear">') == 5
        assert text.count(f'<div class="panel {axis} log">') == 1
    assert text.count('class="faint s0"') and text.count('class="marked s1"')


def test_runs_are_compared_with_their_differing_settings(make_run):
    recipes = [{"train": {"optimizer": {"kind": kind}, "seed": 0}} for kind in ("muon", "adamw")]
    runs = [make_run(r["train"]["optimizer"]["kind"], recipe=r) for r in recipes]
    text = written(runs)
    assert "<code>train.optimizer.kind</code>" in text and "<code>train.seed</code>" not in text
    assert 'class="line s1"' in text
    assert "The recipes are equal." in written([runs[0], make_run("twin", recipe=recipes[0])])


def test_a_run_that_has_only_begun_has_a_page(make_run, tmp_path):
    (tmp_path / "newborn").mkdir()
    (tmp_path / "newborn/metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": null}\n')
    for folder in (tmp_path / "newborn", make_run("young", steps=3, evaluated=False)):
        texts = Outline(written([folder])).texts
        assert folder.name in texts and "Test" not in texts and "Samples" not in texts


def test_trouble_is_told(make_run):
    folder = make_run()
    (folder / "quarantine.jsonl").write_text('{"step": 3}\n')
    write_json(
        folder / "training.json",
        {"steps": 9, "tokens": 9, "seconds": 9, "skipped": 1, "rollbacks": 2, "completed": False},
    )
    texts = " ".join(Outline(written([folder])).texts)
    assert "Batches whose loss or gradient was not finite" in texts and "stopped before its end" in texts
    assert "Reliability" not in " ".join(Outline(written([make_run("calm")])).texts)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_opens_in_the_language_asked_for_and_holds_both(make_run, language):
    text = written([make_run()], config=ReportConfig(lang=language))
    assert f'<html lang="{language}">' in text and f'id="lang-{language}" checked' in text
    assert "checked" not in text.split(f'id="lang-{"zh" if language == "en" else "en"}"')[1][:10]
    assert "Gradient norm" in text and "梯度范数" in text


def test_every_word_is_used_and_there_in_both_languages():
    sources = "".join(path.read_text() for path in page_sources())
    for key, (english, chinese) in WORDS.items():
        assert english and re.search(r"[\u4e00-\u9fff]", chinese), key
        assert f'"{key}"' in sources, f"{key} is not used"


def page_sources():
    folder = page.resources.files("hasten.report")
    return [p for p in folder.iterdir() if p.suffix in (".py", ".html") and p.name != "words.py"]


def test_where_the_time_went_is_shown_where_training_tells(make_run):
    folder = make_run()
    assert "Where the time went" not in write_page([folder]).read_text(encoding="utf-8")
    times = {"start": 10.0, "forward_backward": 75.0, "data": 15.0, "unknown": 0.0}
    figures = {"steps": 9, "tokens": 9, "seconds": 100, "times": times, "peak_memory": 2_300_000}
    write_json(folder / "training.json", figures)
    html = write_page([folder]).read_text(encoding="utf-8")
    assert "Where the time went" in html and "2.3 MB" in html
    found = {bar.name.striptags(): bar.share for bar in page.time_bars(times)}
    assert found == {
        "start-up and compiling启动与编译": 0.1,
        "waiting for data等待数据": 0.15,
        "forward and backward前向与反向": 0.75,
    }
    assert all(f'style="width: {100 * share:.2f}%"' in html for share in found.values())


def test_the_page_goes_where_it_is_told(make_run, tmp_path):
    folder = make_run()
    assert write_page([folder]) == folder / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_page([folder], elsewhere) == elsewhere and elsewhere.is_file()


def test_no_run_and_no_such_language_are_refused():
    with pytest.raises(DataError, match="no run to report on; give the folder of one or several"):
        write_page([])
    from hasten.core.config import parse

    with pytest.raises(ConfigError, match="lang cannot be 'fr'"):
        parse(ReportConfig, {"lang": "fr"}, "report")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_a_browser_opens_the_page_without_a_complaint(make_run, tmp_path):
    file = write_page([plant(make_run("a"), HOSTILE), make_run("b", seed=1)])
    options = "--headless --no-sandbox --disable-gpu --no-first-run --enable-logging=stderr --dump-dom"
    answer = subprocess.run(
        ["chromium", *options.split(), f"--user-data-dir={tmp_path / 'browser'}", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in answer.stderr, "no refused script, no exception"
    assert answer.stdout.count("readout") > 10
