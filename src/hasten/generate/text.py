"""A completion's text while its tokens arrive: whole characters, and nothing of a stop string."""

from collections.abc import Callable, Sequence
from typing import Protocol


class TokenStream(Protocol):
    """What `Tokenizer.stream()` gives: the text that each token completes."""

    def step(self, token: int) -> str:
        """The characters that are complete with this token, possibly none."""
        ...


class GrowingText:
    """The text of one row; `on_text` receives each piece of it once, in order.

    Text that may yet turn out to begin a stop string is held back until that is decided, so what was
    passed on is final: the pieces, joined, are `text`.
    """

    def __init__(
        self,
        stream: TokenStream,
        stop: Sequence[str],
        on_text: Callable[[str], None] | None,
        skip: int = 0,
    ) -> None:
        """The first `skip` characters belong to the prompt."""
        self.stream, self.stop, self.on_text, self.skip = stream, stop, on_text, skip
        self.pieces: list[str] = []
        self.held = ""

    @property
    def text(self) -> str:
        """What has been released so far."""
        return "".join(self.pieces)

    def push(self, token: int) -> bool:
        """Take one token; True when the text has come to a stop string, which is then cut off."""
        new = self.stream.step(token)
        self.held += new[self.skip :]
        self.skip = max(self.skip - len(new), 0)
        at = first_stop(self.held, self.stop)
        self.release(len(self.held) - undecided(self.held, self.stop) if at is None else at)
        return at is not None

    def finish(self) -> str:
        """Release what was held back for a stop string that never came; return the whole text.

        Bytes of a character whose last ones never came are no text and stay out.
        """
        self.release(len(self.held))
        return self.text

    def release(self, length: int) -> None:
        """Pass the first `length` held characters on."""
        piece, self.held = self.held[:length], self.held[length:]
        if piece:
            self.pieces.append(piece)
            if self.on_text is not None:
                self.on_text(piece)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string that is complete first begins: `first_stop("a\\n\\nb", ["\\n\\n"])` -> 1.

    Complete first, not begun first: so the answer is the same however the text is cut into tokens.
    """
    found = [(at + len(word), at) for word in stop if (at := text.find(word)) >= 0]
    return min(found)[1] if found else None


def undecided(text: str, stop: Sequence[str]) -> int:
    """The length of the longest end of `text` that begins a stop string: 1 for `"a-"` and `["--"]`."""
    longest = max((len(word) for word in stop), default=1) - 1
    return next(
        (n for n in range(min(longest, len(text)), 0, -1) if any(w.startswith(text[-n:]) for w in stop)), 0
    )
