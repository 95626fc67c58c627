"""What cleaning dropped, rule by rule, with examples, for the screen and for the record."""

from dataclasses import asdict, dataclass, field
from typing import Any

from hasten.core.console import say
from hasten.data.formats import BETWEEN

EXAMPLES = 3
SNIPPET_CHARACTERS = 80


@dataclass
class Dropped:
    """What one rule dropped."""

    documents: int = 0
    bytes: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, text: str, note: str = "") -> None:
        """Count a document; the first few are kept as examples."""
        self.documents += 1
        self.bytes += len(text.encode())
        if len(self.examples) < EXAMPLES:
            shown = text[: 4 * SNIPPET_CHARACTERS].replace(BETWEEN, " → ")
            snippet = " ".join(shown.split())[:SNIPPET_CHARACTERS]
            self.examples.append({"id": name, "text": snippet, **({"note": note} if note else {})})


@dataclass
class Tally:
    """How many documents were read and, rule by rule, dropped."""

    documents: int = 0
    bytes: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    bad_rows: int = 0
    bad_examples: list[str] = field(default_factory=list)

    def drop(self, rule: str, name: str, text: str, note: str = "") -> None:
        """Count a document that `rule` drops."""
        self.dropped.setdefault(rule, Dropped()).add(name, text, note)

    def add(self, other: "Tally") -> None:
        """Count what `other` counted."""
        self.documents, self.bytes = self.documents + other.documents, self.bytes + other.bytes
        self.bad_rows += other.bad_rows
        self.bad_examples = (self.bad_examples + other.bad_examples)[:EXAMPLES]
        for rule, theirs in other.dropped.items():
            mine = self.dropped.setdefault(rule, Dropped())
            mine.documents, mine.bytes = mine.documents + theirs.documents, mine.bytes + theirs.bytes
            mine.examples = (mine.examples + theirs.examples)[:EXAMPLES]

    @property
    def kept(self) -> int:
        """Documents that no rule dropped."""
        return self.documents - sum(dropped.documents for dropped in self.dropped.values())

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self) | {"kept": self.kept}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Tally":
        """What `to_json` gave."""
        values = {key: value for key, value in data.items() if key not in {"kept", "dropped"}}
        return cls(**values, dropped={rule: Dropped(**entry) for rule, entry in data["dropped"].items()})

    def show(self) -> None:
        """Print it: a line for each rule that dropped something, with its examples."""
        say(f"clean      {self.documents:,} documents, {self.bytes / 1e6:,.1f} MB; {self.kept:,} kept")
        for rule, dropped in sorted(self.dropped.items(), key=lambda item: -item[1].documents):
            say(f"  {rule}: {dropped.documents:,} dropped, {dropped.bytes / 1e6:,.2f} MB")
            for example in dropped.examples:
                note = f" ({example['note']})" if "note" in example else ""
                say(f"    {example['id']}{note}: {example['text']}")
        if self.bad_rows:
            say(f"  unreadable rows: {self.bad_rows:,} skipped")
            for line in self.bad_examples:
                say(f"    {line}")
