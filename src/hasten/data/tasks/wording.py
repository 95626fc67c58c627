"""Words around a text that say what is asked of it: `Review: {text}\\nGood or bad?`.

A decoder has learnt to go on with text, so it knows more of a task that it reads about (Gao et al. 2021,
"Making pre-trained language models better few-shot learners").
"""

from dataclasses import dataclass, replace

from hasten.data.tasks.frame import Frame, Marks
from hasten.data.tasks.patterns import Pattern
from hasten.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Wording:
    """What stands before each text of a task, and behind the last one."""

    before: tuple[str, ...]
    behind: str

    @classmethod
    def of(cls, written: str, columns: tuple[str, ...]) -> "Wording":
        """What a recipe says; ValueError where it does not name each column once, in this order."""
        pieces = Pattern.of(written).pieces
        named = [(literal, name) for literal, name in pieces if name is not None]
        if tuple(name for _, name in named) != columns:
            wanted = ", then ".join(f"{{{name}}}" for name in columns)
            raise ValueError(f"prompt is {written[:60]!r}; it should name {wanted}, once and nothing else")
        literal, name = pieces[-1]
        return cls(tuple(literal for literal, _ in named), literal if name is None else "")

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
