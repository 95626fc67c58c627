"""A conversation in the terminal: with a chat model in turns, with a base model as one growing text."""

import sys
from collections.abc import Callable
from typing import Protocol

from hasten.core.errors import HastenError, did_you_mean
from hasten.generate.completion import Row
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import LetGrow, check_draft, check_vocabulary, check_writes, growing
from hasten.model.transformer import Decoder
from hasten.tokenizer.conversation import conversation_ids
from hasten.tokenizer.template import Message
from hasten.tokenizer.tokenizer import Tokenizer

Write = Callable[[str], None]
COMMANDS = {
    "/reset": "forget everything so far",
    "/help": "show this",
    "/quit": "leave, as does Ctrl-D; Ctrl-C ends an answer early",
}
HELP = "".join(f"  {name:<7} {meaning}\n" for name, meaning in COMMANDS.items())
PROMPT = "> "


def write_now(text: str) -> None:
    """Show `text` at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def chat(
    model: Decoder,
    tokenizer: Tokenizer,
    config: GenerateConfig,
    template: str | None,
    *,
    draft: Decoder | None = None,
    read: Callable[[str], str] = input,
    write: Write = write_now,
) -> None:
    """Talk until `/quit` or the end of the input; `read(prompt)` gives a line, `write` shows text at once.

    `template` is a chat template (see `tokenizer.template.find_template`); without one the model goes on with
    what is written.  A `draft` guesses ahead.  A mistake in a turn, such as a line longer than the context,
    is said and taken back.
    """
    check_writes(model)
    check_vocabulary(model, tokenizer)
    if draft is not None:
        check_draft(model, draft, tokenizer)
    with growing(model, config, tokenizer.vocab_size, draft) as let_grow:
        positions = model.config.max_positions
        talk = Conversation(let_grow, tokenizer, config, template, write, max_positions=positions)
        write(talk.history.greeting)
        while talk.follow(next_line(read)):
            pass


def next_line(read: Callable[[str], str]) -> str:
    """The next line; the end of the input and Ctrl-C at the prompt both mean to leave."""
    try:
        return read(PROMPT)
    except (EOFError, KeyboardInterrupt):
        return "/quit"


class History(Protocol):
    """What has been said so far."""

    greeting: str

    def ask(self, line: str) -> None:
        """Add what the user wrote."""

    def take_back(self) -> None:
        """Undo the last `ask`."""

    def answer(self, text: str) -> None:
        """Add what the model wrote."""

    def ids(self) -> list[int]:
        """All of it as the model reads it, up to where it goes on."""

    def forget(self) -> bool:
        """Drop the oldest part; False if nothing older than the last `ask` is left."""


class Turns:
    """Messages, for a model with a chat template."""

    greeting = "Ask something. /help shows the commands.\n"

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.messages: list[Message] = []

    def ask(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})

    def take_back(self) -> None:
        self.messages.pop()

    def answer(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text.strip()})

    def ids(self) -> list[int]:
        return conversation_ids(self.tokenizer, self.template, self.messages)

    def forget(self) -> bool:
        """A question leaves with its answer: templates expect the two to alternate."""
        some = len(self.messages) > 2
        self.messages = self.messages[2:] if some else self.messages
        return some


class Continuation:
    """One text that the user and a base model write together, each new line of the user's below the rest."""

    greeting = (
        "This model has no chat template: it does not answer, it goes on with what you write.\n"
        "Write a beginning; an empty line lets it go on. /help shows the commands.\n"
    )

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = self.before = ""

    def ask(self, line: str) -> None:
        self.before = self.text
        self.text += f"\n{line}" if self.text and line else line

    def take_back(self) -> None:
        self.text = self.before

    def answer(self, text: str) -> None:
        self.text += text

    def ids(self) -> list[int]:
        return [self.tokenizer.bos_id, *self.tokenizer.encode(self.text)]

    def forget(self) -> bool:
        older = len(self.before)
        self.before = self.before[(older + 1) // 2 :]
        self.text = self.text[(older + 1) // 2 :]
        return older > 0


class Conversation:
    """Follows the user's lines, keeping within the model's context."""

    def __init__(
        self,
        let_grow: LetGrow,
        tokenizer: Tokenizer,
        config: GenerateConfig,
        template: str | None,
        write: Write,
        *,
        max_positions: int,
    ) -> None:
        self.let_grow, self.tokenizer, self.config, self.write = let_grow, tokenizer, config, write
        self.template, self.max_positions, self.turn = template, max_positions, 0
        self.history = self.begin()

    def begin(self) -> History:
        """Nothing said yet."""
        if self.template is None:
            return Continuation(self.tokenizer)
        return Turns(self.tokenizer, self.template)

    def follow(self, line: str) -> bool:
        """Do what a command says, or answer; False when it is time to leave."""
        match line.rstrip():
            case "/quit":
                return False
            case "/help":
                self.write(HELP)
            case "/reset":
                self.history = self.begin()
                self.write("Forgotten.\n")
            case word if word.startswith("/"):
                near = did_you_mean(word, COMMANDS)
                self.write(f"There is no {word}.{near} With a space before it, it is text.\n{HELP}")
            case "" if self.template is not None:
                self.write("Write a question, or /quit to leave.\n")
            case _:
                self.reply(line)
        return True

    def reply(self, line: str) -> None:
        """Answer `line`, showing the text as it comes; what goes wrong is said, and the line taken back."""
        self.history.ask(line)
        try:
            row = self.begin_answer()
            try:
                self.let_grow([row])
            except KeyboardInterrupt:
                row.stopped_by = "interrupted"
        except HastenError as error:
            self.history.take_back()
            self.write(f"({error})\n")
            return
        completion = row.completion()
        self.write("\n")
        self.history.answer(completion.text)
        if completion.remark:
            self.write(f"({completion.remark})\n")
        elif completion.stopped_by == "end_of_text" and self.template is None:
            self.write("(here the model ends the text; /reset begins another)\n")
        self.turn += 1

    def begin_answer(self) -> Row:
        """A row that has read as much of the history as leaves room for an answer."""
        ids, room = self.history.ids(), min(self.config.max_new_tokens, self.max_positions // 2)
        forgot = False
        while len(ids) + room > self.max_positions and self.history.forget():
            ids, forgot = self.history.ids(), True
        if forgot:
            self.write("(the context is full: the model no longer knows the beginning)\n")
        return Row(
            self.tokenizer.decode(ids, special=True),
            self.config.seed + self.turn,
            ids,
            tokenizer=self.tokenizer,
            max_positions=self.max_positions,
            config=self.config,
            on_piece=self.write,
        )
