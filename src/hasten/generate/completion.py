"""One completion: while it grows, and when it is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hasten.core.errors import DataError
from hasten.generate.config import GenerateConfig
from hasten.generate.heal import heal
from hasten.generate.text import GrowingText, TokenStream
from hasten.tokenizer.tokenizer import Tokenizer

StoppedBy = Literal["end_of_text", "stop", "length", "context", "interrupted"]
PRIMING_TOKENS = 16
"""How much of the prompt's end the decoder of a completion is shown: enough for a character and a space."""


@dataclass(frozen=True)
class Completion:
    """What came after `prompt`: `text` without the stop string; `tokens` are all ids that were chosen.

    `score` is what a search ranked it by.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    stopped_by: StoppedBy
    seed: int
    forgotten_tokens: int = 0
    score: float | None = None
    from_source: bool = False  # `prompt` is what was translated, not what the text goes on from
    guessed: int = 0  # tokens that a smaller model guessed
    accepted: int = 0  # of these, how many were kept

    @property
    def remark(self) -> str | None:
        """What the model's context did to this text, as a sentence; None if it was large enough."""
        if self.stopped_by == "context":
            return (
                f"the text ends after {len(self.tokens)} tokens because the model's context is full;"
                " write context_overflow: slide to go on without the beginning"
            )
        if self.guessed:
            share = f"{self.accepted / self.guessed:.0%}"
            return f"{share} of {self.guessed} guesses of the smaller model were kept"
        if self.forgotten_tokens:
            return f"the model forgot the first {self.forgotten_tokens} tokens as its context was full"
        return None


def primed(tokenizer: Tokenizer, ids: list[int]) -> TokenStream:
    """A stream that has seen the end of `ids`: what follows begins with its space if they end in a word."""
    stream = tokenizer.stream()
    for token in ids[-PRIMING_TOKENS:]:
        stream.step(token)
    return stream


class Row:
    """One completion while it grows."""

    def __init__(
        self,
        prompt: str,
        seed: int,
        ids: list[int],
        *,
        tokenizer: Tokenizer,
        max_positions: int,
        config: GenerateConfig,
        on_piece: Callable[[str], None] | None,
        source: list[int] | None = None,
    ) -> None:
        """`ids` are the prompt's; `on_piece` receives the text as it grows.

        With a `source` that the model reads, `ids` is what a text begins with.
        """
        self.prompt, self.seed, self.config, self.source = prompt, seed, config, source
        healing = config.heal_prompt and source is None
        self.ids, self.first = heal(ids, tokenizer) if healing else (ids, None)
        self.max_positions, self.end_ids = max_positions, tokenizer.end_ids
        # No target of a pair is padding, and a published model has learnt nothing about it.
        self.never = frozenset[int]() if source is None else frozenset({tokenizer.pad_id}) - self.end_ids
        self.score: float | None = None
        self.guessed = self.accepted = 0
        self.num_prompt_tokens = len(self.ids)
        self.most_tokens = config.max_new_tokens + (self.first is not None)
        self.start = 0  # of what the model still has in its context
        self.stopped_by: StoppedBy | None = None
        known = "".join(map(primed(tokenizer, self.ids).step, ids[len(self.ids) :]))
        self.text = GrowingText(primed(tokenizer, self.ids), config.stop, on_piece, skip=len(known))
        if self.is_full:
            self.forget()

    @property
    def num_new_tokens(self) -> int:
        """Tokens chosen so far."""
        return len(self.ids) - self.num_prompt_tokens

    @property
    def window(self) -> list[int]:
        """What the model is to have read."""
        return self.ids[self.start :]

    @property
    def is_full(self) -> bool:
        """Whether the newest token stands beyond the last position that the model knows."""
        return len(self.ids) - self.start > self.max_positions

    def push(self, token: int) -> bool:
        """Take the next token; False when the row has ended with it."""
        self.ids.append(token)
        if token in self.end_ids and self.config.stop_at_end_of_text:
            self.stopped_by = "end_of_text"
        elif self.text.push(token):
            self.stopped_by = "stop"
        elif self.num_new_tokens == self.most_tokens:
            self.stopped_by = "length"
        elif self.is_full and self.config.context_overflow == "stop":
            self.stopped_by = "context"
        return self.stopped_by is None

    def take(self, tokens: Sequence[int], score: float) -> None:
        """Take a whole text that a search has found."""
        self.score = score
        for token in tokens:
            if not self.push(token):
                return
        self.stopped_by = "context"

    def forget(self) -> None:
        """Drop all but the last half of the context; refuse to cut a prompt unless that was asked for."""
        if self.config.context_overflow == "stop":
            raise DataError(
                f"the prompt {self.prompt[:40]!r}... has {len(self.ids)} tokens and the model's context"
                f" {self.max_positions}; shorten it, or write context_overflow: slide to keep its end"
            )
        self.start = len(self.ids) - max(self.max_positions // 2, 1)

    def completion(self) -> Completion:
        """The row as a result, once it has ended."""
        assert self.stopped_by is not None
        text = self.text.text if self.stopped_by == "stop" else self.text.finish()
        return Completion(
            self.prompt,
            text,
            tuple(self.ids[self.num_prompt_tokens :]),
            self.stopped_by,
            self.seed,
            forgotten_tokens=self.start,
            score=self.score,
            from_source=self.source is not None,
            guessed=self.guessed,
            accepted=self.accepted,
        )
