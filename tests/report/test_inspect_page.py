"""The page of heads stands alone, holds the numbers it says it holds, and takes every token as text."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
import torch
from inspected import model_of, word_tokenizer

from hasten.report.inspect.config import InspectConfig
from hasten.report.inspect.look import Look, look
from hasten.report.inspect.page import chance, opening, packed, render, rounded
from hasten.report.inspect.read import MOST_NUMBERS
from hasten.report.inspect.words import WORDS
from hasten.tokenizer.tokenizer import Tokenizer

PLAIN = ["one", "two", "three", "four", "five", "six"]
HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img/src=x/onerror=alert(2)>',
    "'-->{{7*7}}",
    "\u202e&lt;b&gt;",
    "</bdi></button>",
    "\u05d0\u05d1",
]
VOID = {"meta", "input", "br"}


class Outline(HTMLParser):
    """A page as a reader's browser takes it apart; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def seen(kind: str, tokenizer: Tokenizer, words: list[str]) -> Look:
    text = " ".join(words)
    given = {"source": text, "target": text} if kind == "seq2seq" else {"text": text}
    masks = {"mask": "each"} if kind == "encoder" else {}
    return look(model_of(kind, tokenizer), tokenizer, InspectConfig(**given, **masks))


def page(kind: str, words: list[str], name: str = "a model", language: str = "en") -> str:
    return render(seen(kind, word_tokenizer(*words), words), name, 12_345, language)


@pytest.mark.parametrize("kind", ["decoder", "encoder", "seq2seq"])
def test_hostile_tokens_stay_texts(kind):
    """With markup for words, the page has the very tags that it has with harmless ones."""
    harmless, hostile = Outline(page(kind, PLAIN)), Outline(page(kind, HOSTILE, name=HOSTILE[0]))
    assert hostile.tags == harmless.tags
    shown = "".join(hostile.texts)
    for word in (
        "</script><script>alert(1)",
        "'-->{{7*7}}",
        r"\u202e&lt;b&gt;",
        "</bdi></button>",
        "\u05d0\u05d1",
    ):
        assert word in shown
    assert "\u202e" not in shown, "no direction of writing leaves its token"


@pytest.mark.parametrize("kind", ["decoder", "encoder", "seq2seq"])
def test_nothing_is_fetched_and_no_other_script_is_run(kind):
    text = page(kind, PLAIN)
    outline = Outline(text)
    assert not {"src", "href", "srcset", "action", "onclick"} & {name for name, _ in outline.attributes}
    assert not re.findall(r"https?:|url\(|@import|\bimport\(|fetch\(|XMLHttpRequest|innerHTML", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert ("content", policy) in outline.attributes


@pytest.mark.parametrize("kind", ["decoder", "encoder", "seq2seq"])
def test_the_page_holds_every_probability_to_the_precision_it_states(kind):
    tokenizer = word_tokenizer(*PLAIN)
    views = seen(kind, tokenizer, PLAIN).views
    text = page(kind, PLAIN)
    data = json.loads(re.findall(r'<script type="application/json" id="heads">(.*?)</script>', text)[0])
    assert len(data) == len(views)
    for stored, view in zip(data, views, strict=True):
        size = (stored["layers"], stored["heads"], stored["queries"], stored["keys"])
        assert size == tuple(view.weights.shape)
        numbers = zlib.decompress(base64.b64decode(stored["bytes"]))
        found = (torch.tensor(list(numbers)).view(size).double() / 255) ** 2
        assert ((found - view.weights).abs() <= view.weights.sqrt() / 255 + 1e-5).all()
        assert 0 <= stored["start"] < size[0] * size[1]


def test_rounding_keeps_nothing_and_everything_exact():
    exact = torch.tensor([0.0, 1.0, 0.25, 1e-6])
    assert rounded(exact).tolist() == [0, 255, 128, 0]


def test_the_largest_page_is_a_few_megabytes():
    """Noise, which no real attention is, packed as far as a look goes: 8 layers of 8 heads, 354 tokens."""
    view = seen("decoder", word_tokenizer(*PLAIN), PLAIN).views[0]
    tokens = int((MOST_NUMBERS // 64) ** 0.5)
    noise = torch.rand(8, 8, tokens, tokens, generator=torch.Generator().manual_seed(0)).softmax(-1)
    wide = type(view)(view.kind, [*range(8)], view.queries, view.keys, noise, view.figures)
    assert len(json.dumps(packed(wide))) < 7_000_000


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_opens_in_the_language_asked_for_and_holds_both(language):
    text = page("decoder", PLAIN, language=language)
    assert f'<html lang="{language}">' in text and f'id="lang-{language}" checked' in text
    assert text.count('<span lang="en">') == text.count('<span lang="zh">')


def test_every_head_and_every_expectation_is_there():
    text = page("seq2seq", PLAIN)
    assert text.count('class="small"') == 3 * 4 + 2 * 4 + 2 * 4
    assert text.count("<tr data-go=") == 3 * 4 + 2 * 4 + 2 * 4
    assert text.count('class="candidate') == 7 * 5
    assert all(f'id="view-{number}"' in text for number in range(3))
    assert '<input type="radio" name="view"' not in page("decoder", PLAIN)


def test_a_text_with_nothing_to_expect_says_so():
    tokenizer = word_tokenizer(*PLAIN)
    nothing = look(model_of("encoder", tokenizer), tokenizer, InspectConfig(text="one"))
    assert "write [MASK] in the text" in render(nothing, "m", 1, "en")
    model = model_of("encoder", tokenizer, head="none")
    assert "expects no token" in render(look(model, tokenizer, InspectConfig(text="one")), "m", 1, "en")
    masked = look(model_of("encoder", tokenizer), tokenizer, InspectConfig(text="one [MASK]"))
    assert "reads into each [MASK]" in render(masked, "m", 1, "en")


def test_small_chances_are_not_called_none():
    assert [chance(p) for p in (0.0, 0.0004, 0.0006, 0.5)] == ["<0.1%", "<0.1%", "0.1%", "50.0%"]


def test_every_word_is_used_and_there_in_both_languages():
    folder = resources.files("hasten.report.inspect")
    sources = [p for p in folder.iterdir() if p.name.endswith((".py", ".html")) and p.name != "words.py"]
    frame = resources.files("hasten.report") / "frame.html"
    text = "".join(path.read_text(encoding="utf-8") for path in [*sources, frame])
    names = set(re.findall(r"def (\w+)\(weights", (folder / "heads.py").read_text(encoding="utf-8")))
    for key, (english, chinese) in WORDS.items():
        assert english and re.search(r"[\u4e00-\u9fff]", chinese), key
        assert f'"{key}"' in text or key.removeprefix("about_") in {*names, "induction"}, f"{key} is not used"


DRIVE = """
<script>
const pause = () => new Promise((done) => setTimeout(done, 300));
const note = {};
const read = (name) => { note[name] = document.querySelector(".view .readout-line").textContent; };
const key = (key) =>
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
async function drive() {
  await pause();
  const tokens = document.querySelectorAll(".view .token"), heads = document.querySelectorAll(".view .small");
  note.ready = document.querySelector(".no-picture").hidden;
  read("first");
  tokens[2].focus(); read("token");
  note.shades = [...tokens].map((token) => Number(token.style.getPropertyValue("--weight")));
  key("ArrowLeft"); read("left");
  tokens[2].focus();
  document.getElementById("direction-to").click(); read("backward");
  document.getElementById("direction-from").click();
  heads[5].click(); read("head");
  note.head = document.querySelector(".head-name").textContent;
  heads[5].focus(); key("ArrowUp");
  note.above = document.querySelector(".head-name").textContent;
  document.querySelector("[data-head=all]").click(); read("mean");
  document.querySelectorAll(".view tr[data-go]")[3].click();
  note.row = document.querySelector(".head-name").textContent;
  const sort = document.querySelectorAll(".view .sort")[1];
  sort.click();
  const rows = [...document.querySelectorAll(".view tbody tr")];
  note.sorted = rows.map((row) => Number(row.children[1].dataset.value));
  document.body.dataset.note = JSON.stringify(note);
}
drive();
</script>
"""


def browse(file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    options = "--headless --no-sandbox --disable-gpu --no-first-run --enable-logging=stderr --dump-dom"
    options += " --virtual-time-budget=4000"
    return subprocess.run(
        ["chromium", *options.split(), f"--user-data-dir={folder / 'browser'}", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_a_browser_follows_tokens_heads_and_keys(tmp_path):
    """The page as it is opens without a complaint; a copy that may run our second script is used by hand."""
    tokenizer = word_tokenizer(*PLAIN)
    (view,) = seen("decoder", tokenizer, PLAIN).views
    text, file = page("decoder", PLAIN), tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    assert "CONSOLE" not in browse(file, tmp_path).stderr, "no refused script, no exception"
    free = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", DRIVE + "</body>")
    file.write_text(free, encoding="utf-8")
    dumped = [
        value for name, value in Outline(browse(file, tmp_path).stdout).attributes if name == "data-note"
    ]
    note = json.loads(dumped[0])
    assert (
        note["ready"]
        and note["first"].startswith("·six\u00a06\u00a0→")
        and note["token"].startswith("·two\u00a02\u00a0→")
    )
    start = opening(view)
    weights = view.weights.flatten(0, 1)[start]
    assert note["shades"] == pytest.approx(weights[2].sqrt().tolist(), abs=0.004)
    assert note["left"].startswith("one\u00a01\u00a0→") and note["backward"].startswith("·two\u00a02\u00a0←")
    assert note["head"] == "1.1" and note["above"] == "0.1" and note["row"] == "0.3"
    mean, strongest = view.weights.mean((0, 1))[2], re.findall(r"(\d+)%", note["mean"])[0]
    assert int(strongest) == pytest.approx(100 * mean.max().item(), abs=1)
    assert note["sorted"] == sorted(note["sorted"], reverse=True) and len(note["sorted"]) == 8
