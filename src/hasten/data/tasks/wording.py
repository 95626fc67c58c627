"""Words around a text that say what is asked of it: `Review: {text}\\nGood or bad?`.

A decoder has learnt to go on with text, so it knows more of a task that it reads about (Gao et al. 2021,
"Making pre-trained language models better few-shot learners").
"""

from dataclasses import dataclass, replace
from pathlib import Path

from hasten.core.errors import DataError
from hasten.data.tasks.frame import Frame, Marks
from hasten.data.tasks.patterns import Pattern
from hasten.tokenizer.tokenizer import Tokenizer

PROMPT = "prompt.txt"
"""In a model's folder: how it is to be asked, with {text} and {pair} for the texts."""
TEXTS = ("text", "pair")
LONGEST_PROMPT = 100_000


@dataclass(frozen=True)
class Wording:
    """What stands before each text of a task, and behind the last one."""

    before: tuple[str, ...]
    behind: str

    @classmethod
    def of(cls, written: str, columns: tuple[str, ...]) -> "Wording":
        """What a recipe says; ValueError where it does not name each column once, in this order."""
        before, names, literals = list[str](), list[str](), ""
        for literal, name in Pattern.of(written).pieces:
            literals += literal  # a doubled brace ends a piece, too
            if name is not None:
                before.append(literals)
                names.append(name)
                literals = ""
        if tuple(names) != columns:
            wanted = ", then ".join(f"{{{name}}}" for name in columns)
            raise ValueError(f"prompt is {written[:60]!r}; it should name {wanted}, once and nothing else")
        return cls(tuple(before), literals)

    def written(self, columns: tuple[str, ...]) -> str:
        """The prompt for texts in these columns, as `of` reads it."""
        texts = (f"{escaped(before)}{{{name}}}" for before, name in zip(self.before, columns, strict=True))
        return "".join(texts) + escaped(self.behind)

    def answer(self, label: str, tokenizer: Tokenizer) -> list[int]:
        """The ids of a label as a text goes on with it behind what is asked."""
        apart = " " if label[0].isascii() and self.behind and not self.behind[-1].isspace() else ""
        return tokenizer.encode(apart + label)

    def around(self, frame: Frame, tokenizer: Tokenizer) -> Frame:
        """The frame with what is asked behind the texts, and nothing but words between them."""
        asked = tuple(tokenizer.encode(self.behind))
        kind = frame.second_type if len(self.before) > 1 else frame.first_type
        after = Marks(asked + frame.after.tokens, (kind,) * len(asked) + frame.after.types)
        return replace(frame, between=Marks() if len(self.before) > 1 else frame.between, after=after)


def escaped(literal: str) -> str:
    """Words with their braces doubled."""
    return literal.replace("{", "{{").replace("}", "}}")


def prompt_of(folder: Path, columns: tuple[str, ...]) -> str | None:
    """How the model in a folder is to be asked about texts in these columns, None where it says nothing.

    Raises DataError for a prompt that is none, or that is about another number of texts.
    """
    path = folder / PROMPT
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST_PROMPT + 1)
        if len(text) > LONGEST_PROMPT:
            raise ValueError(f"is longer than {LONGEST_PROMPT:,} characters")
        return Wording.of(text, TEXTS[: len(columns)]).written(columns)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}; it should hold the prompt that the model learnt with") from None
