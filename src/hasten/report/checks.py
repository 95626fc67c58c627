"""checks.json: what was found of the rows of a fine-tuning before its first step (`trust.py`)."""

from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup

from hasten.data.tasks import rendered
from hasten.report.records import Record

Verdict = Literal["ok", "note", "waived", "stop"]


class Finding(Record):
    """What one check came to, in a sentence; `examples` are rows with what is in them."""

    name: str
    ok: bool
    stops: bool = True
    sentence: str
    examples: tuple[str, ...] = ()


class Stretch(Record):
    """Tokens of a sample that are alike: learnt or not, special or not; or how many are not shown."""

    text: str
    is_learnt: bool
    is_special: bool = False
    left_out: int = 0


class ReadSample(Record):
    """A sample as the model reads it (`data/tasks/rendered.py`)."""

    sample: int
    side: str = ""
    tokens: int
    stretches: list[Stretch]
    labels: tuple[str, ...] = ()


class Checks(Record):
    """All that was found, which of it was waived by name, and some samples."""

    findings: list[Finding]
    waived: tuple[str, ...] = ()
    samples: tuple[ReadSample, ...] = ()

    def verdict(self, finding: Finding) -> Verdict:
        """What a finding means for a run."""
        if finding.ok:
            return "ok"
        if not finding.stops:
            return "note"
        return "waived" if finding.name in self.waived else "stop"

    @property
    def overruled(self) -> list[str]:
        """The checks that failed and were waived."""
        return list(dict.fromkeys(f.name for f in self.findings if self.verdict(f) == "waived"))


def drawn(samples: Sequence[ReadSample]) -> Markup:
    """Samples with what carries loss in colour; all of their text is escaped."""
    return Markup(rendered.page([sample.model_dump() for sample in samples]))
