"""Messages to ids, and which of the ids carry loss.

What a template writes is rendered as text, and only the template can write special tokens in it: a user who
types `<|im_end|>` has typed ten characters.  The ids before an answer are exactly those that generation reads
before it answers, even where a tokenizer would join the end of the prompt with the beginning of the answer.

Which passages are the assistant's is what the template says (`{% generation %}`), or else what a rendering
with an answer has beyond the rendering that asks for it.  An answer ends with the first token at which
generation stops, and that token carries loss.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from hasten.core.errors import DataError
from hasten.tokenizer.template import Ask, Message, Refusal, render_all
from hasten.tokenizer.tokenizer import Tokenizer

PRIVATE, NUM_PRIVATE = 0xF0000, 65_534
"""The characters of Supplementary Private Use Area A, which Unicode gives no meaning."""
MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
ASSISTANT = "assistant"

Span = tuple[int, int]


@dataclass(frozen=True)
class Dialogue:
    """A conversation, and which of its messages are to be learnt: answers, the others never are."""

    messages: Sequence[Message]
    learn: Sequence[bool]  # of each message

    @property
    def turns(self) -> list[int]:
        """The numbers of the messages that carry loss."""
        return [turn for turn, learn in enumerate(self.learn) if learn]


@dataclass(frozen=True)
class Taught:
    """Ids [n], and which of them carry loss [n].  What follows the last one that does is left out."""

    ids: list[int]
    learn: list[bool]


class Conversations:
    """Conversations of one template and one tokenizer as ids, many at a time."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        """`template` is Jinja with the special tokens set, as `find_template` gives it."""
        self.tokenizer, self.template = tokenizer, template
        self.speller = Speller(tokenizer)

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[list[int] | Refusal]:
        """Each conversation as generation reads it, up to where the assistant answers."""
        asked = [(messages, [Ask(len(messages), answer_follows=True)]) for messages in conversations]
        disguise, _, rendered = self.render(asked)
        texts = [found[0] for found in rendered if not isinstance(found, Refusal)]
        ids = iter(self.speller.spell([(text, []) for text in texts], disguise))
        return [found if isinstance(found, Refusal) else next(ids).ids for found in rendered]

    def taught(self, dialogues: Sequence[Dialogue]) -> list[list[Taught] | Refusal]:
        """Each dialogue as ids with loss: once, or in several parts where the template rewrites the past.

        Some templates leave out of earlier answers what a later one is not to see: then each answer is learnt
        behind the past that it is given behind.
        """
        asked = [(dialogue.messages, self.asks(dialogue)) for dialogue in dialogues]
        disguise, marks, rendered = self.render(asked)
        drafts = [
            found if isinstance(found, Refusal) else self.draft(dialogue, found, marks)
            for dialogue, found in zip(dialogues, rendered, strict=True)
        ]
        parts = [part for draft in drafts if not isinstance(draft, Refusal) for part in draft]
        spelled = iter(self.speller.spell(parts, disguise))
        return [draft if isinstance(draft, Refusal) else [next(spelled) for _ in draft] for draft in drafts]

    @cached_property
    def is_marked(self) -> bool:
        """Whether the template itself says which words are the assistant's."""
        return MARKED.search(self.template) is not None

    def asks(self, dialogue: Dialogue) -> list[Ask]:
        """For each answer to be learnt what stands before it, and with it; first the whole, if needed."""
        end = len(dialogue.messages)
        whole = [Ask(end, False), Ask(end, False, marked=True)] if self.is_marked else []
        return (whole if dialogue.turns else [Ask(end, False)]) + [
            ask for turn in dialogue.turns for ask in (Ask(turn, answer_follows=True), Ask(turn + 1, False))
        ]

    def render(
        self, asked: Sequence[tuple[Sequence[Message], Sequence[Ask]]]
    ) -> tuple["Disguise", tuple[str, str], list[list[str] | Refusal]]:
        """The renderings, special tokens in messages under a disguise, with it and the marks in them."""
        contents = [message["content"] for messages, _ in asked for message in messages]
        first, second, *private = spare_characters([self.template, *contents], 2 + len(self.speller.special))
        disguise, marks = Disguise(dict(zip(self.speller.special, private, strict=True))), (first, second)
        hidden = [
            ([{**message, "content": disguise.put_on(message["content"])} for message in messages], asks)
            for messages, asks in asked
        ]
        return disguise, marks, render_all(self.template, hidden, marks)

    def draft(
        self, dialogue: Dialogue, rendered: list[str], marks: tuple[str, str]
    ) -> list[tuple[str, list[Span]]]:
        """The texts to learn from, each with the spans of characters that carry loss."""
        if not dialogue.turns:
            return [(rendered[0], [])]
        if self.is_marked:
            whole, marked, *rendered = rendered
            spans = self.chosen(dialogue, unmarked(marked, marks, whole))
            if spans:
                return [(whole, spans)]
        return by_difference(list(zip(rendered[::2], rendered[1::2], strict=True)))

    def chosen(self, dialogue: Dialogue, spans: list[Span]) -> list[Span]:
        """Of the template's passages those of the answers to be learnt; none if they cannot be told apart."""
        answers = [n for n, message in enumerate(dialogue.messages) if message["role"] == ASSISTANT]
        if len(answers) == len(spans):
            return [span for span, turn in zip(spans, answers, strict=True) if dialogue.learn[turn]]
        return spans if len(dialogue.turns) == len(answers) else []


def unmarked(text: str, marks: tuple[str, str], plain: str) -> list[Span]:
    """Where the passages between marks are in the `plain` rendering; none if the marks changed it."""
    if re.sub(any_of(marks), "", text) != plain:
        return []
    spans, begun = list[Span](), None
    for removed, found in enumerate(re.finditer(any_of(marks), text)):
        if found[0] == marks[0]:
            begun = found.start() - removed
        elif begun is not None:
            spans.append((begun, found.start() - removed))
            begun = None
    return [(start, end) for start, end in spans if end > start]


def by_difference(turns: list[tuple[str, str]]) -> list[tuple[str, list[Span]]]:
    """(what stands before an answer, the same with it) of each turn -> texts with spans that carry loss.

    An answer that the rendering of a later one repeats, with all before it, is learnt there.
    """
    parts = list[tuple[str, list[Span]]]()
    for before, with_answer in reversed(turns):
        span = same_beginning(before, with_answer), len(with_answer)
        if parts and parts[-1][0].startswith(with_answer):
            parts[-1][1].insert(0, span)
        else:
            parts.append((with_answer, [span]))
    return parts[::-1]


def same_beginning(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning."""
    if other.startswith(one):
        return len(one)
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


class Speller:
    """Rendered text to ids: special tokens by their spelling, what is between them by the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.inner.get_added_tokens_decoder()
        special = {token.content: (id, token) for id, token in added.items() if token.special}
        self.special = {word: id for word, (id, _) in special.items()}
        self.bare = re.compile(any_of(special))
        # Some tokens swallow the blanks beside them, as in the tokenizers library.
        sides = {word: (blanks(token.lstrip), blanks(token.rstrip)) for word, (_, token) in special.items()}
        words = sorted(special, key=len, reverse=True)
        self.pattern = re.compile("|".join(re.escape(w).join(sides[w]) for w in words) or r"(?!)")

    def pieces(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """Where each piece of `text` begins and ends, and the id of one that is a special token."""
        end = 0
        for found in self.pattern.finditer(text):
            if found.start() > end:
                yield end, found.start(), None
            end = found.end()
            if bare := self.bare.search(found[0]):
                yield found.start(), end, self.special[bare[0]]
        if end < len(text):
            yield end, len(text), None

    def spell(self, texts: Sequence[tuple[str, list[Span]]], disguise: "Disguise") -> list[Taught]:
        """Each text as ids, with loss in its spans."""
        drafts = [(text, spans, cuts_of(spans)) for text, spans in texts]
        parts = list({part for text, _, cuts in drafts for part in self.parts(text, cuts)})
        known = Known(self.tokenizer, disguise)
        known.learn(parts)
        return [self.assemble(text, spans, cuts, known) for text, spans, cuts in drafts]

    def parts(self, text: str, cuts: list[int]) -> Iterator[str]:
        """What has to be encoded of a text: pieces, up to each cut and whole."""
        for start, end, special in self.pieces(text):
            if special is None:
                inside = [cut for cut in cuts if start < cut < end]
                yield from (text[start:cut] for cut in [*inside, end])

    def assemble(
        self, text: str, spans: list[Span], cuts: list[int], known: Mapping[str, list[int]]
    ) -> Taught:
        """Ids of a text, each part of it by `known`, with loss in its spans."""
        ids = list[int]()
        places = dict[int, int]()  # of a character: how many ids are before it
        for start, end, special in self.pieces(text):
            places[start] = len(ids)
            inside = [cut for cut in cuts if start < cut < end]
            if special is not None:
                ids.append(special)
                places |= dict.fromkeys(inside, len(ids))
                continue
            grown, last = list[int](), start
            for cut in [*inside, end]:
                alone = known[text[start:cut]]
                # What was read up to the cut before stays as it was read.
                goes_on = alone[: len(grown)] == grown
                grown = alone if goes_on else grown + known[text[last:cut]]
                places[cut], last = len(ids) + len(grown), cut
            ids += grown
        places[len(text)] = len(ids)
        return self.taught(ids, [(places[start], places[end]) for start, end in spans])

    def taught(self, ids: list[int], spans: list[Span]) -> Taught:
        """Loss on each span of ids up to where generation stops; the stop may stand right behind it."""
        ends = self.tokenizer.end_ids
        learn = [False] * len(ids)
        for start, end in spans:
            answer = range(start, min(end + 1, len(ids)))
            stop = next((place for place in answer if ids[place] in ends), end - 1)
            learn[start : stop + 1] = [True] * (stop + 1 - start)
        last = max((place for place, wanted in enumerate(learn) if wanted), default=len(ids) - 1)
        return Taught(ids[: last + 1], learn[: last + 1])


class Known(dict[str, list[int]]):
    """The ids of parts of texts: of many at a time, and of one more where it is asked for."""

    def __init__(self, tokenizer: Tokenizer, disguise: "Disguise") -> None:
        super().__init__()
        self.tokenizer, self.disguise = tokenizer, disguise

    def learn(self, parts: Sequence[str]) -> None:
        """Encode all of them, on all cores."""
        texts = [self.disguise.take_off(part) for part in parts]
        self.update(zip(parts, self.tokenizer.encode_batch(texts), strict=True))

    def __missing__(self, part: str) -> list[int]:
        self.learn([part])
        return self[part]


class Disguise:
    """Private characters in place of the spellings of special tokens in what people write."""

    def __init__(self, private: Mapping[str, str]) -> None:
        """`private` has a character for each spelling."""
        self.private, self.words = private, {character: word for word, character in private.items()}
        self.spelled, self.worn = re.compile(any_of(private)), re.compile(any_of(self.words))

    def put_on(self, text: str) -> str:
        """A message, in which nothing reads as a special token any more."""
        return self.spelled.sub(lambda found: self.private[found[0]], text)

    def take_off(self, text: str) -> str:
        """The text as it was meant."""
        return self.worn.sub(lambda found: self.words[found[0]], text)


def conversation_ids(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> list[int]:
    """One conversation as the model reads it, up to where the assistant answers.

    Raises DataError where the template fails, is stopped, or refuses the messages.
    """
    [found] = Conversations(tokenizer, template).prompts([messages])
    if isinstance(found, Refusal):
        raise DataError(f"chat template: {found.reason}; use another, or chat without a template")
    return found


def spare_characters(texts: Iterable[str], count: int) -> list[str]:
    """Private characters that are in none of the texts."""
    private = re.compile(f"[{chr(PRIVATE)}-{chr(PRIVATE + NUM_PRIVATE - 1)}]")
    used = {character for text in texts for character in private.findall(text)}
    spare = (chr(code) for code in range(PRIVATE, PRIVATE + NUM_PRIVATE) if chr(code) not in used)
    found = list(islice(spare, count))
    if len(found) < count:
        raise DataError("conversations use up all private characters of Unicode (from U+F0000); remove them")
    return found


def cuts_of(spans: Iterable[Span]) -> list[int]:
    """The edges of spans, in order."""
    return sorted({edge for span in spans for edge in span})


def blanks(swallowed: bool) -> str:
    """A pattern for the blanks that a token swallows on one side."""
    return r"\s*" if swallowed else ""


def any_of(words: Iterable[str]) -> str:
    """A pattern for any of the words, the longest first; for none it never matches."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)"
