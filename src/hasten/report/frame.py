"""What every page of ours shares: one file that needs nothing but itself, in English and Chinese.

Styles and script are inside; every value is escaped; a policy allows the page's own script and nothing else.
A page is a template that extends `frame.html` and fills in its blocks title, head and main.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hasten.report import figures

Language = Literal["en", "zh"]
Words = tuple[str, str]
"""The same in English and in Chinese."""
HERE = "hasten.report"


def page_environment(package: str, words: Mapping[str, Words]) -> Environment:
    """Templates of `package`'s folder and of this one, every value escaped, an unknown name an error.

    In them `t(key, *values)` is `words[key]` in both languages, `both(words)` a pair that is at hand.
    """
    folders = dict.fromkeys((package, HERE))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(folder, ".") for folder in folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"t": lambda key, *values: translated(words[key], *values), "both": both}
    environment.filters |= {
        name: getattr(figures, name) for name in ("significant", "compact", "size", "duration", "percent")
    }
    return environment


def translated(text: Words, *values: str) -> Markup:
    """A text in both languages, of which the page shows one; `values` stand where it has `{}`."""
    english, chinese = text
    return both((english.format(*values), chinese.format(*values)))


def both(text: Words) -> Markup:
    """Finished words in both languages, of which the page shows one."""
    return Markup('<span lang="en">{}</span><span lang="zh">{}</span>').format(*map(escape, text))


def render_page(
    environment: Environment,
    template: str,
    language: Language,
    *,
    styles: Sequence[Traversable] = (),
    scripts: Sequence[Traversable] = (),
    **values: Any,
) -> str:
    """The page as text: `styles` and `scripts` are the files that it has beside those of the frame."""
    frame = resources.files(HERE)
    style = joined([frame / "style.css", *styles])
    script = joined([*scripts, frame / "language.js"])
    return environment.get_template(template).render(
        language=language, style=style, script=script, script_hash=content_hash(script), **values
    )


def joined(files: Sequence[Traversable]) -> str:
    """The texts of files, one after the other."""
    return "".join(file.read_text(encoding="utf-8") for file in files)


def content_hash(script: str) -> str:
    """The name by which the page's security policy allows this script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
