"""The first values of a new head of classes, loud enough that the model below hears it from the first step.

What the layers below a head learn from is the gradient that comes down through its weights.  A head near zero
lets little through but noise, and Adam takes steps of one size all the same: until the head has grown, the
model is moved at random.  How large is large enough depends on what the head reads: the pooled states of one
encoder are ten times those of another.  So a few rows are read first, and the head is drawn to their measure
(Mishkin and Matas 2016, "All you need is a good init", do so for every layer).
"""

from collections.abc import Mapping, Sequence
from math import log2

import torch
from torch import Tensor

from hasten.core.batch import Batch
from hasten.data.corpus import Corpus
from hasten.model.config import ModelConfig
from hasten.model.factored import put_factored
from hasten.model.initial import first_value
from hasten.model.transformer import Transformer, assemble
from hasten.objective.cross_entropy import CrossEntropy, scored
from hasten.objective.spans import segments_of

HEAD = "head.weight"
SPREAD = 1.0
"""Root mean square of the first scores of classes."""
READ_TOKENS = 512
"""Of text, that the measure is taken on."""
STEPS_AN_OCTAVE = 4
"""To which sizes are rounded: the order of sums, which depends on the machine, is then not seen."""


def first_head(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    corpus: Corpus,
    *,
    seed: int,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """`head.weight` [C, D] of a model of `config` that begins with `weights` and has no head of classes yet.

    Empty where it has one, or reads out words.  `ranks` are those of layers that are two thin ones.
    """
    if HEAD in weights or config.head not in ("pooled_classes", "token_classes"):
        return {}
    model = as_it_begins(config, weights, seed, ranks or {})
    rows = min(max(READ_TOKENS // corpus.row_tokens, 1), corpus.num_rows)
    (batch,) = corpus.batches(0, rows=rows, micro_rows=rows)
    read = what_it_reads(model, batch)
    size = SPREAD / float(read.square().sum(dim=-1).mean().sqrt())
    drawn = torch.empty(config.head_rows, config.dim)
    drawn.normal_(generator=torch.Generator().manual_seed(seed))
    return {HEAD: drawn * 2 ** (round(log2(size) * STEPS_AN_OCTAVE) / STEPS_AN_OCTAVE)}


def head_of_words(
    config: ModelConfig, base: Mapping[str, Tensor], words: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """`head.weight` [C, D] of a decoder's classes that begin as words: the rows that say their tokens.

    The model then tells classes apart from the first step as it would go on with a prompt (Schick and Schütze
    2021, "PET"); of a class of several tokens by the mean of their rows.  `base` are the decoder's weights,
    `words` the ids of each class.  Empty where `base` says no words, or the model has no classes of texts.
    """
    said = base.get(HEAD, base["embedding.weight"])
    if (
        config.kind != "decoder"
        or config.head != "pooled_classes"
        or len(said) < len(base["embedding.weight"])
    ):
        return {}
    return {HEAD: torch.stack([said[list(ids)].float().mean(dim=0) for ids in words])}


def as_it_begins(
    config: ModelConfig, weights: Mapping[str, Tensor], seed: int, ranks: Mapping[str, int]
) -> Transformer:
    """The model as it begins, to be read with: its weights are those that were given, not copies."""
    with torch.device("meta"):
        model = assemble(config)
        put_factored(model, ranks)
    for name, parameter in model.named_parameters():
        given = weights[name] if name in weights else first_value(name, parameter.shape, config, seed)
        owner = model.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(given, requires_grad=False))
    return model.eval()


@torch.no_grad()
def what_it_reads(model: Transformer, batch: Batch) -> Tensor:
    """What the head is applied to in a batch [N, D]: of pooled classes once a text, else once a token."""
    hidden = model(**CrossEntropy().inputs(batch))
    if "scored" in batch.extra:
        return model.head_input(scored(hidden, batch)[0]).float()
    return model.head_input(hidden[segments_of(batch) > 0]).float()
