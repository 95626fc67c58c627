"""How an architecture of Hugging Face is described: its fields, and where its tensors lie.

One `Family` a `model_type`, each in a file of its own; `registry.py` lists them.  Letters in shapes as in
`model/config.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig

HARMLESS = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "bos_token_id", "dtype",
        "embd_pdrop", "eos_token_id", "id2label", "initializer_range", "label2id", "model_type", "n_ctx",
        "output_attentions", "output_hidden_states", "output_past", "pad_token_id", "pretraining_tp",
        "problem_type", "resid_pdrop", "return_dict", "summary_activation", "summary_first_dropout",
        "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "torch_dtype",
        "transformers_version", "use_cache",
    }
)  # fmt: skip
"""Fields that change no logit: bookkeeping, and settings of training, dropout among them."""
NOTHING = object()


class Fields:
    """A `config.json` that knows which of its fields have been read."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = dict(values), where

    def take(self, name: str, default: Any = NOTHING) -> Any:
        """The field `name`, which is read now; without a default it must be there."""
        value = self.values.pop(name, None)
        if value is not None:
            return value
        if default is NOTHING:
            raise CheckpointError(
                f"{self.where}: has no field '{name}'; take the file that came with the weights"
            )
        return default

    def choose(self, name: str, default: str, choices: dict[str, Any]) -> Any:
        """The field `name` translated by `choices`."""
        value = self.take(name, default)
        if value not in choices:
            raise CheckpointError(
                f"{self.where}: hasten cannot hold {name} {value!r}, only {', '.join(map(repr, choices))}"
            )
        return choices[value]

    def require(self, name: str, value: Any) -> None:
        """Refuse any other `value` of the field `name`; it may be absent."""
        found = self.take(name, value)
        if found != value:
            raise CheckpointError(f"{self.where}: hasten cannot hold {name} {found!r}, only {value!r}")

    def finish(self) -> None:
        """Refuse what nobody has read: it could change the model."""
        for name, value in self.values.items():
            if name not in HARMLESS and value is not None:
                raise CheckpointError(
                    f"{self.where}: hasten does not know the field '{name}' ({value!r}) and leaves none out:"
                    " take a checkpoint without it, or remove it if it cannot matter"
                )

    def skip(self, *names: str) -> None:
        """These fields change no logit of this family."""
        for name in names:
            self.values.pop(name, None)

    def architecture(self, choices: dict[str, Any]) -> Any:
        """The class that the file names, translated by `choices`; the first of them where it names none."""
        named = self.values.pop("architectures", None) or [next(iter(choices))]
        if not isinstance(named, list) or len(named) != 1 or named[0] not in choices:
            raise CheckpointError(
                f"{self.where}: hasten cannot hold architectures {named!r}, only one of {', '.join(choices)}"
            )
        return choices[named[0]]


@dataclass(frozen=True)
class Source:
    """Where a parameter of ours lies among their tensors.

    `transposed`: theirs is [inputs, outputs].  `part` of `parts` equal row blocks: a fused matrix.  With
    `groups` the rows are that many groups (heads), each holding a block of every part.  `lead`: theirs has
    a leading axis of one.  `bare`: its name never has the family's prefix (heads).
    """

    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1
    groups: int = 1
    lead: bool = False
    bare: bool = False

    def extract(self, tensor: Tensor) -> Tensor:
        """Our parameter out of their tensor; theirs as it is where its shape cannot be split so."""
        whole = tensor[0] if self.lead and tensor.shape[:1] == (1,) else tensor
        whole = whole.mT if self.transposed else whole
        if self.parts == 1:
            return whole.contiguous()
        if whole.ndim == 0 or whole.shape[0] % (self.groups * self.parts):
            return whole
        blocks = whole.unflatten(0, (self.groups, self.parts, -1))  # [groups, parts, rows, ...]
        return blocks[:, self.part].flatten(0, 1).contiguous()


def combine(parts: dict[int, Tensor], source: Source) -> Tensor:
    """Their tensor out of our parameters: the inverse of `Source.extract` over all parts."""
    blocks = [parts[i].unflatten(0, (source.groups, -1)) for i in range(source.parts)]
    whole = torch.stack(blocks, dim=1).flatten(0, 2)
    whole = whole.mT if source.transposed else whole
    return (whole[None] if source.lead else whole).contiguous()


def nothing(config: ModelConfig) -> dict[str, Any]:
    """No copies, nothing derived."""
    return {}


@dataclass(frozen=True)
class Family:
    """One architecture's fields and names.

    Names of tensors are without the prefix, which may be absent in a file.  Several classes of one
    `model_type` (BertModel, BertForMaskedLM) are one family: `read` takes `architectures` and says what the
    head is, `write` names the class, `sources` has what the head needs, `bare` where it is outside of the
    prefix.
    """

    read: Callable[[Fields], dict[str, Any]]  # to the keys of a ModelConfig
    write: Callable[[ModelConfig], dict[str, Any]]
    sources: Callable[[ModelConfig], dict[str, Source]]  # by parameter of ours, every one of them
    prefix: str = ""
    leftovers: tuple[str, ...] = ()  # endings of tensors that carry nothing (masks)
    copies: Callable[[ModelConfig], dict[str, str]] = nothing
    """Tensors that a file may hold and that must equal another: {their name: their other name}."""
    derived: Callable[[ModelConfig], dict[str, Callable[[], Tensor]]] = nothing
    """Tensors that a file may hold and that follow from the configuration: {their name: how to make it}."""

    def written_name(self, source: Source, headless: bool = False) -> str:
        """A tensor's name in a file of ours; a trunk alone goes without the prefix."""
        return source.name if source.bare or headless else self.prefix + source.name

    def plain_names(self, names: Iterable[str], where: str) -> dict[str, str]:
        """Their names by the same names without the prefix; refused where two become one."""
        plain: dict[str, str] = {}
        for name in names:
            short = name.removeprefix(self.prefix)
            if short in plain:
                raise CheckpointError(
                    f"{where}: holds both '{plain[short]}' and '{name}', which are one tensor; remove one"
                )
            plain[short] = name
        return plain


def tied_head(config: ModelConfig, embedding: str, head: str = "lm_head.weight") -> dict[str, str]:
    """`Family.copies` of a head that may stand beside the embedding that it is tied to."""
    return {head: embedding} if config.tied else {}


def head_source(config: ModelConfig, head: str = "lm_head.weight") -> dict[str, Source]:
    """`Family.sources` of a head of its own."""
    return {} if config.tied else {"head.weight": Source(head, bare=True)}
