"""How an architecture of Hugging Face is described: its fields, and where its tensors lie.

One `Family` a `model_type`, each in a file of its own; `registry.py` lists them.  Letters in shapes as in
`model/config.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import CheckpointError
from hasten.model.config import ModelConfig

HARMLESS = frozenset(
    {
        # bookkeeping, and ids that tokenizers and generation know better
        "_attn_implementation_autoset", "_name_or_path", "_num_labels", "architectures", "bos_token_id",
        "dtype", "eos_token_id", "finetuning_task", "id2label", "is_llama_config", "label2id", "model_type",
        "pad_token_id", "prefix", "problem_type", "sep_token_id", "task_specific_params", "tokenizer_class",
        "torch_dtype", "transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version",
        # what a forward pass returns, how it is computed, and with which cache
        "cache_implementation", "chunk_size_feed_forward", "output_attentions", "output_hidden_states",
        "output_past", "pretraining_tp", "return_dict", "torchscript", "use_bfloat16", "use_cache",
        # training
        "activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout",
        "embd_pdrop", "gradient_checkpointing", "hidden_dropout", "hidden_dropout_prob", "init_std",
        "initializer_range", "layerdrop", "resid_pdrop",
        # how text is generated: the generation config's affair
        "bad_words_ids", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
        "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values",
        "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "begin_suppress_tokens",
        "temperature", "top_k", "top_p", "typical_p",
    }
)  # fmt: skip
"""Fields that change no logit: bookkeeping, and settings of training and of generation."""
ORDINARY: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "rope_interleaved": False,
    "tie_encoder_decoder": False,
    "use_mrope": False,
}
"""Fields that change nothing at this value; at any other they are refused, unless a family reads them."""
PLAIN = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}
"""Their names of activations, in ours; where two mean the same, the first is written."""
GATED = {
    theirs: {"gelu": "geglu", "gelu_tanh": "geglu_tanh", "silu": "swiglu"}[ours]
    for theirs, ours in PLAIN.items()
    if ours in ("gelu", "gelu_tanh", "silu")
}
"""The same where the activation's output multiplies a second product."""
MOST_LAYERS, MOST = 1_000, 100_000_000
"""A file that claims more layers, or more of anything, is damaged; nothing is allocated for it."""
NOTHING = object()


class Fields:
    """A `config.json` that knows which of its fields have been read.

    `tensors` are those beside it, by plain names: some models differ only in what they have.  In place of a
    tensor that is yet to be written stands None.
    """

    def __init__(
        self, values: dict[str, Any], where: str, tensors: Mapping[str, Tensor | None] | None = None
    ) -> None:
        self.values, self.where, self.tensors = dict(values), where, tensors or {}

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

    def nullable(self, name: str, default: Any) -> Any:
        """The field `name`, where null is a value of its own: `default` only where it is absent."""
        return self.values.pop(name, default)

    def count(self, name: str, default: Any = NOTHING, most: int = MOST) -> Any:
        """A whole number from 1; `default` as it is where there is none."""
        value = self.take(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"{self.where}: {name} should be a whole number at least 1, got {shown(value)}"
            )
        if value > most:
            raise CheckpointError(f"{self.where}: {name} should be at most {most:,}, got {shown(value)}")
        return value

    def number(self, name: str, default: Any = NOTHING) -> Any:
        """A finite number above 0; `default` as it is where there is none."""
        value = self.take(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
            raise CheckpointError(f"{self.where}: {name} should be a number above 0, got {shown(value)}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {name} should be true or false, got {shown(value)}")
        return value

    def choose(self, name: str, default: str, choices: dict[str, Any]) -> Any:
        """The field `name` translated by `choices`."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in choices:
            raise CheckpointError(
                f"{self.where}: hasten cannot hold {name} {shown(value)}, only"
                f" {', '.join(map(repr, choices))}"
            )
        return choices[value]

    def require(self, name: str, value: Any) -> None:
        """Refuse any other `value` of the field `name`; it may be absent or null."""
        found = self.take(name, value)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise CheckpointError(f"{self.where}: hasten cannot hold {name} {shown(found)}, only {value!r}")

    def finish(self) -> None:
        """Refuse what nobody has read: it could change the model."""
        for name, value in self.values.items():
            if name in HARMLESS or value is None:
                continue
            if name in ORDINARY and value != ORDINARY[name]:
                raise CheckpointError(
                    f"{self.where}: hasten cannot hold {name} {shown(value)}, only {ORDINARY[name]!r}"
                )
            if name not in ORDINARY:
                raise CheckpointError(
                    f"{self.where}: hasten does not know the field '{name}' ({shown(value)}) and leaves none"
                    " out: take a checkpoint without it, or remove it if it cannot matter"
                )

    def repeats(self, name: str, other: str) -> bool:
        """Whether the tensor `name` is absent, or there and equal to `other`, as a tied one is."""
        tensor, known = self.tensors.get(name), self.tensors.get(other)
        if tensor is None or known is None:
            return name not in self.tensors
        return torch.equal(tensor, known)

    def skip(self, *names: str) -> None:
        """These fields change no logit of this family."""
        for name in names:
            self.values.pop(name, None)

    def architecture(self, choices: dict[str, Any]) -> Any:
        """The class that the file names, translated by `choices`; the first of them where it names none."""
        named = self.values.pop("architectures", None) or [next(iter(choices))]
        one = named[0] if isinstance(named, list) and len(named) == 1 else None
        if not isinstance(one, str) or one not in choices:
            raise CheckpointError(
                f"{self.where}: hasten cannot hold architectures {shown(named)}, only one of"
                f" {', '.join(choices)}"
            )
        return choices[one]


def name_of(activation: str, names: dict[str, str]) -> str:
    """The first of their `names` for an activation; ours where they have none, which `read` then refuses."""
    return next((theirs for theirs, ours in names.items() if ours == activation), activation)


def shown(value: Any) -> str:
    """A value of a stranger's file as an error message can print it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


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
    left_out: tuple[str, ...] = ()  # beginnings of tensors that are not held where no parameter needs them
    aliases: tuple[tuple[str, str], ...] = ()  # endings of names in older files, and what they are now
    copies: Callable[[ModelConfig], dict[str, str]] = nothing
    """Tensors that a file may hold and that must equal another: {their name: their other name}."""
    derived: Callable[[ModelConfig], dict[str, Callable[[], Tensor]]] = nothing
    """Tensors that a file may hold and that follow from the configuration: {their name: how to make it}."""

    def written_name(self, source: Source, headless: bool = False) -> str:
        """A tensor's name in a file of ours; a trunk alone goes without the prefix."""
        return source.name if source.bare or headless else self.prefix + source.name

    def plain_names(self, names: Iterable[str], where: str) -> dict[str, str]:
        """Their names by today's without the prefix; refused where two become one."""
        plain: dict[str, str] = {}
        for name in names:
            short = name.removeprefix(self.prefix)
            for old, new in self.aliases:
                if short.endswith(old):
                    short = short.removesuffix(old) + new
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
    """`Family.sources` of a head of its own, of words or of classes."""
    if config.head == "pooled_classes":
        return {"head.weight": Source("score.weight", bare=True)}
    return {} if config.tied else {"head.weight": Source(head, bare=True)}
