"""From logits to the next token.  Letters in shapes: B rows, V vocabulary.

Every filter maps logits [B, V] to logits [B, V] in which the tokens it rules out are -inf; at least one
token of a row always remains.  They apply in the order of `filtered`: repetition penalty, temperature,
top-k, top-p, min-p, which is also the order of `transformers`.
"""

import hashlib
from collections.abc import Collection, Sequence
from ctypes import Structure, byref, c_double, c_float, c_int64

import torch
from torch import Tensor

from hasten.generate.config import GenerateConfig
from hasten.generate.constraint import constrained, forbid, left_padded
from hasten.ops.kernels.library import address, kernels, on_cpu


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens marked in `seen` [B, V] (bool) less likely (Keskar et al. 2019, CTRL, section 4.1).

    A positive logit is divided by `penalty`, a negative one multiplied: above 1 discourages repeating.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` most likely tokens of each row, and whatever ties with the k-th (Fan et al. 2018)."""
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches `p` (Holtzman et al. 2020)."""
    if p >= 1:
        return logits  # the sum of all may round to less than 1
    ordered, order = logits.sort(dim=-1, descending=True)
    mass = ordered.softmax(dim=-1).cumsum(dim=-1)
    # A token stays while those before it have not reached p; the first always does.
    beyond = (mass >= p).roll(1, dims=-1)
    beyond[..., 0] = False
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens at least `p` times as likely as the row's likeliest (Nguyen et al. 2024)."""
    probability = logits.softmax(dim=-1)
    return logits.masked_fill(probability < p * probability.amax(dim=-1, keepdim=True), -torch.inf)


def filtered(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Logits [B, V] as float32 at a `temperature` above 0, without the tokens that a filter rules out."""
    logits = logits.float() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    if min_p is not None:
        logits = keep_min_p(logits, min_p)
    return logits


def pick(logits: Tensor, draw: Tensor) -> Tensor:
    """One token a row, [B]: the inverse of the cumulative distribution at `draw` [B] (float64, in [0, 1)).

    With the draws given, a row's token depends on its own logits alone, whoever shares the batch.
    """
    return inverted(logits.double().softmax(dim=-1), draw)


def inverted(shares: Tensor, draw: Tensor) -> Tensor:
    """The token [B] at which the sum of `shares` [B, V] exceeds `draw` [B], in [0, 1), times their sum."""
    mass = shares.double().cumsum(dim=-1)
    # The first token whose mass exceeds the draw: tokens of probability 0 add none and are never first.
    # Scaling by the last mass keeps the draw below it, although the sum may round to less than 1.
    return torch.searchsorted(mass, draw[:, None] * mass[:, -1:], right=True).squeeze(-1)


def invert(shares: Tensor, draw: float) -> int:
    """`inverted` of one row [1, V]."""
    if for_kernel(shares):
        return kernels().draw_token(address(shares), c_int64(shares.shape[1]), c_double(draw))
    return int(inverted(shares, torch.tensor([draw], dtype=torch.float64, device=shares.device)))


class Filters(Structure):
    """The structure of that name in `ops/kernels/cpu/sample.cpp`."""

    _fields_ = [("temperature", c_float), ("top_p", c_float), ("min_p", c_float), ("top_k", c_int64)]


def filters_of(config: GenerateConfig) -> Filters:
    """Those of a recipe."""
    c = config
    return Filters(c.temperature, 1.0 if c.top_p is None else c.top_p, c.min_p or 0.0, c.top_k or 0)


def for_kernel(logits: Tensor) -> bool:
    """Whether the kernel can read these scores."""
    return on_cpu(logits) and logits.dtype == torch.float32 and logits.stride(-1) == 1


def filtered_by(logits: Tensor, config: GenerateConfig) -> Tensor:
    """`filtered` with the settings of a recipe."""
    c = config
    return filtered(logits, temperature=c.temperature, top_k=c.top_k, top_p=c.top_p, min_p=c.min_p)


def shares(logits: Tensor, config: GenerateConfig) -> Tensor:
    """What tokens are drawn from: logits [B, V] -> probabilities [B, V], at temperature 0 of 0 and 1.

    On a CPU with the same kernel as `drawn`.
    """
    if for_kernel(logits):
        (rows, vocabulary), left = logits.shape, torch.empty(logits.shape)
        kernels().left_shares(
            address(logits), c_int64(rows), c_int64(logits.stride(0)), c_int64(vocabulary),
            byref(filters_of(config)), address(left),
        )  # fmt: skip
        return left
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return filtered_by(logits, config).softmax(dim=-1)


def drawn_from(logits: Tensor, draw: float, config: GenerateConfig, left: Tensor) -> int:
    """The token that `draw` in [0, 1) takes of one row [1, V], whose `shares` are written to `left` [V]."""
    if not for_kernel(logits):
        left.copy_(shares(logits, config)[0])
        return invert(left[None], draw)
    return kernels().draw_from_shares(
        address(logits), c_int64(logits.shape[1]), c_double(draw), byref(filters_of(config)), address(left)
    )


def drawn(logits: Tensor, draw: Tensor, config: GenerateConfig) -> Tensor:
    """One token a row from what the filters of `config` leave: logits [B, V], draw [B] -> [B].

    On a CPU the kernel does it without sorting; there all tokens stay that tie with the last of top-p.
    """
    if not for_kernel(logits):
        return pick(filtered_by(logits, config), draw)
    tokens = torch.empty(len(logits), dtype=torch.int64)
    (rows, vocabulary), draw = logits.shape, draw.contiguous()
    kernels().sample_tokens(
        address(logits), c_int64(rows), c_int64(logits.stride(0)), c_int64(vocabulary), address(draw),
        byref(filters_of(config)), address(tokens),
    )  # fmt: skip
    return tokens


def draws(seed: int, prompt: str, count: int) -> Tensor:
    """The `count` uniform numbers (float64, CPU) that decide a completion of `prompt`.

    The text takes part, so that prompts of one call are sampled independently of each other; nothing
    else does, so that a completion is the same alone, in a batch, on a GPU, and when it may be longer.
    """
    digest = hashlib.sha256(f"{seed}\n{prompt}".encode("utf-8", "surrogatepass")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.rand(count, dtype=torch.float64, generator=generator)


def barred(first: Sequence[Sequence[int] | None], vocab_size: int) -> Tensor:
    """Which tokens each row may not begin with: bool [B, V]."""
    mask = torch.zeros(len(first), vocab_size, dtype=torch.bool)
    for row, ids in zip(mask, first, strict=True):
        if ids is not None:
            row.fill_(True)
            row[list(ids)] = False
    return mask


class Sampler:
    """Chooses a batch's next tokens, each row from its own draws."""

    def __init__(
        self,
        rows: Sequence[tuple[int, str, list[int]]],
        config: GenerateConfig,
        vocab_size: int,
        device: torch.device,
        first: Sequence[Sequence[int] | None] | None = None,
        *,
        end_ids: Collection[int] = (),
        never: Collection[int] = (),
    ) -> None:
        """Each row is its seed, its prompt, and the ids that it begins with.

        `first` holds the ids among which a row's first token is chosen; None is all.  One of `end_ids` ends a
        text, and those in `never` are no token of one.
        """
        self.config, self.vocab_size, self.step = config, vocab_size, 0
        self.end_ids, self.never = end_ids, never
        remembers = config.no_repeat_ngram is not None
        self.history = left_padded([ids if remembers else [] for _, _, ids in rows]).to(device)  # [B, L]
        self.barred = barred(first, vocab_size).to(device) if first else None
        self.draws: Tensor | None = None
        self.seen: Tensor | None = None
        if config.temperature > 0:
            each = [draws(seed, prompt, config.max_new_tokens + 1) for seed, prompt, _ in rows]
            self.draws = torch.stack(each, dim=1).to(device)  # [max_new_tokens + 1, B]
        if config.repetition_penalty != 1:
            self.seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
            for seen, (_, _, ids) in zip(self.seen, rows, strict=True):
                seen[ids] = True

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row: [B, V] -> [B]; rows of a padded vocabulary are out of reach."""
        logits = logits[:, : self.vocab_size].float()
        if self.barred is not None and self.step == 0:
            logits = logits.masked_fill(self.barred, float("-inf"))
        if self.seen is not None:
            logits = penalize_repetition(logits, self.seen, self.config.repetition_penalty)
        if self.never:
            logits = forbid(logits, self.never)
        logits = constrained(logits, self.history, self.step, self.config, self.end_ids)
        if self.draws is None:
            tokens = logits.argmax(dim=-1)
        else:
            tokens = drawn(logits, self.draws[self.step], self.config)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        if self.config.no_repeat_ngram is not None:
            self.history = torch.cat((self.history, tokens[:, None]), 1)
        self.step += 1
        return tokens

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        self.draws = None if self.draws is None else self.draws[:, rows]
        self.seen = None if self.seen is None else self.seen[rows]
        self.history = self.history[rows]
