"""How fast models are on this machine, two in turn: reading a prompt, then writing; or an encoder's examples.

What else the machine does meets both alike, so the ratio of a round says more than either time.
Letters in shapes: B rows, T tokens.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from torch import Tensor

from hasten.evaluate.agreement import Estimate
from hasten.evaluate.interval import draws, half_width
from hasten.generate.cache import KeyValueCache
from hasten.generate.config import GenerateConfig
from hasten.generate.prepared import ready
from hasten.generate.source_cache import SourceCache
from hasten.model.transformer import Decoder, Encoder, Seq2Seq, Transformer

ROWS = 8
"""Texts that an encoder reads at once."""
FEWEST_ROUNDS = 3

Times = tuple[float, float]
"""Seconds of reading one prompt, and of one more token; or of one text alone, and of one of ROWS."""
Turn = Callable[[], Times]


@dataclass(frozen=True)
class Load:
    """What a turn does: read `prompt_tokens`, write `new_tokens`."""

    prompt_tokens: int
    new_tokens: int
    bf16: bool = False

    def within(self, model: Transformer) -> "Load":
        """The same with as short a prompt as the model can go on from."""
        room = model.config.max_positions - (0 if isinstance(model, Encoder) else self.new_tokens)
        return Load(max(min(self.prompt_tokens, room), 1), self.new_tokens, self.bf16)

    def tokens(self, model: Transformer, rows: int = 1) -> Tensor:
        """Random ids [B, T], always the same."""
        draw = torch.Generator().manual_seed(0)
        shape = rows, self.prompt_tokens
        return torch.randint(0, model.config.vocabulary, shape, generator=draw).to(model.device)


@dataclass
class Race:
    """The rounds of a model and its reference: [R] times of each."""

    unit: str  # of what is counted a second: tokens or examples
    reference: list[Times] = field(default_factory=list)
    model: list[Times] = field(default_factory=list)

    def speedup(self, part: int) -> Estimate:
        """How many times as fast the model is: at reading (0) or at the rest (1), the median of rounds."""
        ratios = np.array([a[part] / b[part] for a, b in zip(self.reference, self.model, strict=True)])
        medians = np.concatenate([np.median(ratios[some], axis=1) for some in draws(len(ratios))])
        return Estimate(float(np.median(ratios)), half_width(medians))


@dataclass(frozen=True)
class Speed:
    """Medians: seconds until a prompt is read, and how many tokens or examples a second after that."""

    unit: str
    read_seconds: float
    per_second: float


def speed_of(times: list[Times], unit: str) -> Speed:
    """The medians of some turns."""
    reading, rest = zip(*times, strict=True)
    return Speed(unit, median(reading), 1 / median(rest))


def race(reference: Transformer, model: Transformer, load: Load, seconds: float) -> Race:
    """Turns of both, one after the other, for about so many seconds; the first round is not counted."""
    load = load.within(reference)
    found = Race("examples" if isinstance(model, Encoder) else "tokens")
    with ExitStack() as stack:
        turns = [stack.enter_context(turn_of(each, load)) for each in (reference, model)]
        for turn in turns:
            turn()
        began = time.perf_counter()
        while len(found.model) < FEWEST_ROUNDS or time.perf_counter() - began < seconds:
            found.reference.append(turns[0]())
            found.model.append(turns[1]())
    return found


@contextmanager
def turn_of(model: Transformer, load: Load) -> Iterator[Turn]:
    """What to call for a turn of a model, which is ready for it meanwhile."""
    if isinstance(model, Encoder):
        with torch.inference_mode():
            yield lambda: examples(model, load)
        return
    assert isinstance(model, Decoder | Seq2Seq)
    with ready(model, GenerateConfig(max_new_tokens=load.new_tokens)) as prepared:
        yield lambda: writing(prepared.model, load, lambda: cache_of(prepared.model, load, prepared.native))


def cache_of(model: Decoder | Seq2Seq, load: Load, native: object) -> KeyValueCache:
    """A cache for one text; of a model that reads a source, one that has read it."""
    capacity = load.prompt_tokens + load.new_tokens
    if isinstance(model, Seq2Seq):
        return SourceCache(model, load.tokens(model).tolist(), [0], capacity)
    return KeyValueCache(model, [0], capacity, native)  # type: ignore[arg-type]


def writing(model: Decoder | Seq2Seq, load: Load, make: Callable[[], KeyValueCache]) -> Times:
    """One turn of a model that writes: greedily, whatever comes."""
    tokens, began = load.tokens(model), clock(model)
    with make() as cache:
        first = tokens[:, :1] if isinstance(model, Seq2Seq) else tokens
        token = model.logits(cache.read(first)[:, -1]).argmax(-1)
        read = clock(model)
        for _ in range(load.new_tokens):
            token = cache.follow(token).argmax(-1)
        ended = clock(model)
    return read - began, (ended - read) / load.new_tokens


def examples(model: Encoder, load: Load) -> Times:
    """One turn of an encoder: one text, then ROWS together."""
    alone, together = load.tokens(model), load.tokens(model, ROWS)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=load.bf16):
        began = clock(model)
        model(alone)
        middle = clock(model)
        model(together)
        ended = clock(model)
    return middle - began, (ended - middle) / ROWS


def clock(model: Transformer) -> float:
    """Now, with nothing left to do on the model's device."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
