"""What goes on inside of a student, beside the same in its teacher: hidden states and attention relations.

Both are taken from outside, by hooks: the model's code knows nothing of it.
Letters in shapes: B rows, T places, D width of a state, R relation heads.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer
from hasten.objective.distillation import Distillation, HiddenConfig, RelationsConfig

PROJECTIONS = "projections"
"""Of a student whose width is another than its teacher's: what is learnt beside it and not kept with it."""
UNSEEN = -1e30
"""A score of places that do not see each other: its softmax is 0, and differences of two are 0, not NaN."""


class Side(NamedTuple):
    """A stack of layers: its name in front of theirs, how many there are, whether each sees what follows."""

    prefix: str
    layers: int
    causal: bool


class Match(NamedTuple):
    """A layer of the student with the teacher's that it is to be like, by their names in the models."""

    side: Side
    student: str
    teacher: str


class Seen:
    """What chosen modules of a model gave in its last forward pass, by name."""

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        self.outputs = dict[str, Tensor]()
        for name in sorted(names):
            model.get_submodule(name).register_forward_hook(partial(self.keep, name))

    @torch.compiler.disable
    def keep(self, name: str, _module: nn.Module, _given: Any, output: Tensor) -> None:
        """Remember an output; a hook."""
        self.outputs[name] = output

    def taken(self) -> dict[str, Tensor]:
        """What was seen, which is then forgotten."""
        outputs, self.outputs = self.outputs, {}
        return outputs


class Inner:
    """The losses between the layers of a student and of its teacher, [] each, weighted and summed."""

    def __init__(self, config: Distillation, student: ModelConfig, teacher: ModelConfig) -> None:
        """Raises ConfigError for layers that are not there, and for heads that do not divide a width."""
        self.hidden, self.relations = config.hidden, config.relations
        self.hidden_matches = list(matches("hidden", config.hidden, student, teacher))
        self.relation_matches = list(matches("relations", config.relations, student, teacher))
        self.heads = 0
        if config.relations is not None:
            self.heads = config.relations.heads or teacher.num_heads
            for who, shape in (("student", student), ("teacher", teacher)):
                check_heads(self.heads, config.relations, who, shape)
        self.widths = student.dim, teacher.dim

    @property
    def asks(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.hidden_matches or self.relation_matches)

    def names(self, who: str) -> set[str]:
        """The modules to look into, of the `student` or the `teacher`."""
        blocks = {getattr(match, who) for match in self.hidden_matches}
        return blocks | {
            f"{getattr(match, who)}.attention.{part}"
            for match in self.relation_matches
            for part in self.parts
        }

    @property
    def parts(self) -> tuple[str, ...]:
        """Of which projections relations are compared."""
        return () if self.relations is None else self.relations.of

    def put_projections(self, model: nn.Module) -> None:
        """Give a student of another width what makes its states as wide as the teacher's."""
        own, wanted = self.widths
        if own == wanted or not self.hidden_matches:
            return
        made = {key(match): nn.Linear(own, wanted, bias=False) for match in self.hidden_matches}
        model.add_module(PROJECTIONS, nn.ModuleDict(made))

    def loss(
        self, model: Transformer, batch: Batch, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
    ) -> Tensor:
        """Weighted sum [] over the texts of a batch, each counting as often as it has targets."""
        total = torch.zeros((), device=batch.tokens.device)
        for match in self.hidden_matches:
            assert self.hidden is not None
            states = student[match.student]
            if hasattr(model, PROJECTIONS):
                states = cast(nn.ModuleDict, model.projections)[key(match)](states)
            share = shares(batch, match.side)
            total = total + self.hidden.weight * hidden_loss(states, teacher[match.teacher], share)
        for match in self.relation_matches:
            assert self.relations is not None
            share, sight = shares(batch, match.side), sees(batch, match.side)
            for part in self.parts:
                own = student[f"{match.student}.attention.{part}"]
                theirs = teacher[f"{match.teacher}.attention.{part}"]
                found = relation_loss(own, theirs, share, sight, self.heads)
                total = total + self.relations.weight / len(self.parts) * found
        return total


def key(match: Match) -> str:
    """`decoder.layers.3` as a name that may stand in a module's."""
    return match.student.replace(".", "_")


def sides_of(config: ModelConfig) -> list[Side]:
    """The stacks of a model."""
    if config.kind == "seq2seq":
        return [
            Side("encoder.", config.encoder_layers, False),
            Side("decoder.", config.decoder_layers, True),
        ]
    return [Side("", config.num_layers, config.kind == "decoder")]


def matches(
    what: str, config: HiddenConfig | RelationsConfig | None, student: ModelConfig, teacher: ModelConfig
) -> Iterator[Match]:
    """Which layers belong together, on each side of a model."""
    for own, theirs in zip(sides_of(student), sides_of(teacher), strict=True) if config else ():
        assert config is not None
        for here, there in pairs_of(config.layers, own.layers, theirs.layers):
            for who, layer, side in (("student", here, own), ("teacher", there, theirs)):
                if layer >= side.layers:
                    where = f" of its {side.prefix.rstrip('.')}" if side.prefix else ""
                    raise ConfigError(
                        f"objective.{what}.layers names layer {layer} of the {who}, and there are"
                        f" {side.layers}{where}, counted from 0"
                    )
            yield Match(own, f"{own.prefix}layers.{here}", f"{theirs.prefix}layers.{there}")


def pairs_of(layers: Any, own: int, theirs: int) -> list[tuple[int, int]]:
    """(student's, teacher's) of a rule, or as they were given."""
    if layers == "last":
        return [(own - 1, theirs - 1)]
    if layers == "spread":
        return list(enumerate(spread(theirs, own)))
    return list(layers)


def spread(depth: int, count: int) -> list[int]:
    """`count` of `depth` layers, evenly from the first to the last: `spread(12, 4)` -> [0, 3, 7, 11]."""
    if count == 1:
        return [depth - 1]
    return [number * (depth - 1) // (count - 1) for number in range(count)]


def check_heads(heads: int, config: RelationsConfig, who: str, shape: ModelConfig) -> None:
    """Refuse relation heads that do not divide what they are cut from."""
    for part in config.of:
        width = shape.head_dim * (shape.num_heads if part == "query" else shape.num_kv_heads)
        if width % heads:
            raise ConfigError(
                f"objective.relations: {heads} heads do not divide the {who}'s {part} of width {width}; write"
                " objective.relations.heads as a divisor of both models' widths"
            )


def segments_of(batch: Batch, side: Side) -> Tensor:
    """The numbers [B, T] of a side's texts; all 1 where a row is one text."""
    if side.prefix == "encoder.":
        given, like = batch.extra.get("source_segments"), batch.extra["source"]
    else:
        given, like = batch.segments, batch.tokens
    return torch.ones_like(like) if given is None else given


def shares(batch: Batch, side: Side) -> Tensor:
    """[B, T] by what each place of a side counts, so that a text counts as often as it has targets.

    Summed over a text's places that is the number of its targets, however it is packed; 0 in padding.
    """
    segments, asked = segments_of(batch, side), segments_of(batch, Side("", 0, True))
    size = 1 + max(segments.shape[1], asked.shape[1])
    targets = (batch.targets != IGNORE).float()
    wanted = targets.new_zeros(len(targets), size).scatter_add_(1, asked, targets)
    places = wanted.new_zeros(wanted.shape).scatter_add_(
        1, segments, torch.ones_like(segments, dtype=wanted.dtype)
    )
    each = wanted / places.clamp(min=1)
    return each.gather(1, segments) * (segments > 0)


def sees(batch: Batch, side: Side) -> Tensor:
    """[B, T, T]: which places a place relates to; itself always, for a softmax needs one."""
    segments = segments_of(batch, side)
    length = segments.shape[1]
    alike = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    if side.causal:
        alike = alike.tril()
    return alike | torch.eye(length, dtype=torch.bool, device=segments.device)


def hidden_loss(student: Tensor, teacher: Tensor, share: Tensor) -> Tensor:
    """Σ share ‖student - teacher‖² / ‖teacher‖², []: states [B, T, D] both, share [B, T]."""
    student, teacher = wide(student), wide(teacher)
    apart, size = (student - teacher).square().sum(dim=-1), teacher.square().sum(dim=-1)
    return (share * apart / size.clamp(min=torch.finfo(size.dtype).tiny)).sum()


def relation_loss(student: Tensor, teacher: Tensor, share: Tensor, sight: Tensor, heads: int) -> Tensor:
    """Σ share KL(teacher ‖ student) of how places relate, the mean over heads, [].

    student [B, T, D] and teacher [B, T, D'] are queries, keys or values, share [B, T], sight [B, T, T].
    """
    found: Tensor = RelationLoss.apply(student, teacher, share, sight, heads)
    return found


class RelationLoss(torch.autograd.Function):
    """`relation_loss`, whose gradient is made in the forward pass: nothing of shape [R, T, T] is kept.

    With scores S = A Aᵀ / √width and G = share (Q - P) / R, the slope by them, A has (G + Gᵀ) A / √width.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd has no keywords)
        ctx: Any, student: Tensor, teacher: Tensor, share: Tensor, sight: Tensor, heads: int
    ) -> Tensor:
        total, slopes = share.new_zeros(()), []
        for own, theirs, counts, seen in zip(student, teacher, share / heads, sight, strict=True):
            a, log_p = headed(own, heads), relations(headed(theirs, heads), seen)
            # On CPUs exp is slow where it comes to nothing, as for all that is not seen; a softmax is not.
            log_q, p = relations(a, seen), log_p.softmax(dim=-1)
            total = total + (counts * (log_p.sub_(log_q) * p).sum(dim=-1)).sum()
            by_scores = log_q.softmax(dim=-1).sub_(p).mul_(counts[:, None])
            by_a = (by_scores @ a + by_scores.mT @ a) / a.shape[-1] ** 0.5  # [R, T, D / R]
            slopes.append(by_a.transpose(0, 1).flatten(1))
        ctx.save_for_backward(torch.stack(slopes).to(student.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * gradient.to(slope.dtype), None, None, None, None


def headed(x: Tensor, heads: int) -> Tensor:
    """[T, D] -> [R, T, D / R]."""
    return wide(x).unflatten(-1, (heads, -1)).transpose(0, 1)


def relations(a: Tensor, seen: Tensor) -> Tensor:
    """log softmax(A Aᵀ / √width) over what is seen [T, T]: [R, T, D / R] -> [R, T, T]."""
    scores = wide(a @ a.mT) / a.shape[-1] ** 0.5
    return scores.masked_fill(~seen, UNSEEN).log_softmax(dim=-1)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
