"""Prompts to texts: read the prompts, then one token a row and step, until every row has ended.

Letters in shapes: B rows, T prompt tokens, D model width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from hasten.core.errors import ConfigError, DataError
from hasten.generate.completion import Completion, Row
from hasten.generate.config import GenerateConfig
from hasten.generate.prepared import Prepared, Writer, batches, pad_left, ready
from hasten.generate.sample import Sampler
from hasten.generate.search import search
from hasten.generate.speculative import Pair
from hasten.model.transformer import Decoder, Encoder, Seq2Seq, Transformer
from hasten.tokenizer.tokenizer import Tokenizer

__all__ = [
    "LetGrow", "OnText", "check_draft", "check_vocabulary", "check_writes", "extend", "generate", "grow",
    "growing", "ready",
]  # fmt: skip

OnText = Callable[[int, str], None]
OnDone = Callable[[Sequence[Row]], None]
"""Told the rows that have ended, a batch at a time."""
LetGrow = Callable[[list[Row]], object]
"""Lets the rows of a batch grow until each has ended."""


def generate(
    model: Writer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: GenerateConfig,
    on_text: OnText | None = None,
    *,
    on_done: OnDone | None = None,
    draft: Writer | None = None,
) -> list[Completion]:
    """Continue each prompt `config.samples_per_prompt` times; the samples of a prompt follow each other.

    A model that reads a source gets the prompt as its source.  With beams, the samples are the best texts
    that were found, the best first.  `on_text(i, piece)` receives the text of the i-th completion as it
    grows; its pieces join to the final text.  `draft` is a smaller model that guesses ahead
    (`generate/speculative.py`).  Raises ConfigError for a tokenizer of another model, DataError for a prompt
    that the context cannot hold.
    """
    if isinstance(model, Encoder):
        raise ConfigError("this model is an encoder: it reads text and writes none; take another checkpoint")
    check_writes(model)
    check_vocabulary(model, tokenizer)
    rows = begin(model, tokenizer, prompts, config, on_text)
    if draft is not None:
        check_draft(model, draft, tokenizer)
    grow(model, rows, config, tokenizer.vocab_size, on_done, draft=draft)
    return [row.completion() for row in rows]


def begin(
    model: Writer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: GenerateConfig,
    on_text: OnText | None,
) -> list[Row]:
    """A row for every text that is to be written."""
    encoded = tokenizer.encode_batch(list(prompts))
    texts = [
        (prompt, ids, config.seed + sample)
        for prompt, ids in zip(prompts, encoded, strict=True)
        for sample in range(config.samples_per_prompt)
    ]
    make = partial(Row, tokenizer=tokenizer, max_positions=model.config.max_positions, config=config)
    pieces = [None if on_text is None else partial(on_text, index) for index in range(len(texts))]
    if not isinstance(model, Seq2Seq):
        return [
            make(prompt, seed, [tokenizer.bos_id, *ids], on_piece=piece)
            for (prompt, ids, seed), piece in zip(texts, pieces, strict=True)
        ]
    start = start_of(model, tokenizer)
    sources = [checked_source(prompt, [*ids, tokenizer.eot_id], model) for prompt, ids, _ in texts]
    return [
        make(prompt, seed, [start], on_piece=piece, source=source)
        for (prompt, _, seed), piece, source in zip(texts, pieces, sources, strict=True)
    ]


def start_of(model: Seq2Seq, tokenizer: Tokenizer) -> int:
    """What every text begins with: the model's own token, or that which begins a document."""
    return tokenizer.bos_id if model.config.start_id is None else model.config.start_id


def checked_source(prompt: str, ids: list[int], model: Seq2Seq) -> list[int]:
    """The ids of a source, or DataError where the model has no place for all of them."""
    if len(ids) > model.config.max_positions:
        raise DataError(
            f"the source {prompt[:40]!r}... has {len(ids)} tokens and the model reads at most"
            f" {model.config.max_positions}; cut it into sentences"
        )
    return ids


def grow(
    model: Writer,
    rows: list[Row],
    config: GenerateConfig,
    vocab_size: int,
    on_done: OnDone | None = None,
    *,
    draft: Writer | None = None,
) -> None:
    """Let every row grow until it has ended, `config.batch_rows` prompts at a time."""
    width, samples = config.width(isinstance(model, Seq2Seq)), config.samples_per_prompt
    if width == 1:
        with growing(model, config, vocab_size, draft) as let_grow:
            for batch in batches(rows, config.batch_rows):
                let_grow(batch)
                if on_done is not None:
                    on_done(batch)
        return
    with ready(model, config) as prepared:
        groups = [rows[first : first + samples] for first in range(0, len(rows), samples)]
        of_row = {id(group[0]): group for group in groups}
        for batch in batches([group[0] for group in groups], config.batch_rows):
            found = [of_row[id(row)] for row in batch]
            search(prepared, found, config, vocab_size, width)
            if on_done is not None:
                on_done([row for group in found for row in group])


@contextmanager
def growing(
    model: Writer, config: GenerateConfig, vocab_size: int, draft: Writer | None = None
) -> Iterator[LetGrow]:
    """What lets rows grow until each has ended: together, or one after the other where a draft guesses."""
    with ready(model, config) as prepared:
        if draft is None:
            yield lambda rows: extend(prepared, rows, config, vocab_size)
            return
        with ready(draft, config) as small:
            yield Pair(prepared, small, config, vocab_size).let_grow


def check_draft(model: Writer, draft: Writer, tokenizer: Tokenizer) -> None:
    """Refuse a draft for another kind of model, or of one."""
    if not isinstance(model, Decoder) or not isinstance(draft, Decoder):
        raise ConfigError("generate.draft is for decoders, both models; leave it out, or name a decoder")
    check_writes(draft)
    check_vocabulary(draft, tokenizer)


def check_writes(model: Transformer) -> None:
    """Refuse a model whose scores are of classes: taken for tokens, they would be a text without sense."""
    if model.config.head != "vocabulary":
        raise ConfigError(
            f"model.head is {model.config.head}, which tells classes apart and writes no text; ask it with"
            " hasten evaluate, or take another checkpoint"
        )


def check_vocabulary(model: Transformer, tokenizer: Tokenizer) -> None:
    """A model may have more rows than its tokenizer has ids (padding), never fewer."""
    if model.config.vocabulary < tokenizer.vocab_size:
        raise ConfigError(
            f"the model knows {model.config.vocabulary} tokens and the tokenizer has {tokenizer.vocab_size};"
            " they don't belong together: take the tokenizer.json from the model's own folder"
        )


def extend(prepared: Prepared, rows: list[Row], config: GenerateConfig, vocab_size: int) -> None:
    """Let the rows of one batch grow until each has ended.

    Where contexts slide, full rows keep their last half and everything is read again: what the model sees
    is then exactly a shorter text, in positions that it knows, and the reading costs about one token a token.
    """
    device = prepared.model.device
    begins = [(row.seed, row.prompt, row.ids) for row in rows]
    sampler = Sampler(
        begins,
        config,
        vocab_size,
        device,
        [row.first for row in rows],
        end_ids=rows[0].end_ids,
        never=rows[0].never,
    )
    while rows:
        rows = extend_within_context(prepared, rows, sampler)
        for row in rows:
            if row.is_full:
                row.forget()


def extend_within_context(prepared: Prepared, rows: list[Row], sampler: Sampler) -> list[Row]:
    """Let the rows grow until all have ended, or one is full; return those that have not ended."""
    tokens, padding = pad_left([row.window for row in rows])
    # The last chosen token of a row is never read: it is the end, or the first of the next reading.
    room = max(min(row.max_positions - len(row.window), row.most_tokens) for row in rows)
    capacity = tokens.shape[1] + room
    with prepared.cache(rows, padding, capacity) as cache:
        hidden = cache.read(tokens.to(cache.starts.device))
        logits = prepared.model.logits(hidden[:, -1])
        while True:
            chosen = sampler.choose(logits)
            going = [i for i, token in enumerate(chosen.tolist()) if rows[i].push(token)]
            if len(going) < len(rows):
                rows, chosen = [rows[i] for i in going], chosen[going]
                cache.keep(going)
                sampler.keep(going)
            if not rows or any(row.is_full for row in rows):
                return rows
            logits = cache.follow(chosen)
