"""Activations that are made again in the backward pass instead of kept (Chen et al. 2016, arXiv:1604.06174).

`full` keeps a block's input alone and runs the block once more.  `selective` runs no product and no
attention again: it drops what a norm or an activation makes in one pass over memory, which products keep as
their inputs.  Of a token in a gated block of width D and inner width F that is 2 D + F of about 8 D + 3 F.
(Korthikanti et al. 2022, arXiv:2205.05198, drop the attention's square, which ours never keeps.)

Both give the same gradients, bit for bit: what is made again comes from the same numbers by the same
operations, with the same random numbers.
"""

import weakref
from collections.abc import Callable
from functools import cache, partial, wraps
from itertools import islice
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hasten.model.block import Block
from hasten.model.transformer import Transformer
from hasten.parallel.config import Recompute

NORMS = ("attention_norm", "cross_norm", "ffn_norm")
"""Norms whose output a product keeps."""
BY_OUTPUT = ("relu", "relu_squared")
"""Activations that tell their slope by their output, which is therefore kept anyway."""
ATTENTIONS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
KEPT = ("mm", "addmm", "bmm", *(f"_scaled_dot_product_{name}" for name in ATTENTIONS))
"""Operations of ATen whose results compiled code keeps."""


def recompute(model: Transformer, mode: Recompute, layers: int | None = None) -> None:
    """Arrange the first `layers` blocks that are here (by default all) so that they keep what `mode` says.

    Comes after tensor and context parallelism, whose collectives are repeated with the rest, by all processes
    alike, and before compilation and FSDP, whose gathering stays outside.  Parameters keep their names.
    """
    if mode == "none":
        return
    arrange = make_again if mode == "full" else drop_cheap
    for block in islice(model.blocks(), layers):
        if not isinstance(block.forward, partial):  # else it is arranged already
            arrange(block)


def make_again(block: Block) -> None:
    """Keep the inputs of a block and run it again, from the same state of the random numbers."""
    # A partial and bound methods, not a closure: a copy of the model is then whole, and apart.
    block.forward = partial(run_again, block.forward, block)  # type: ignore[method-assign]


def run_again(plain: Callable[..., Tensor], block: Block, *args: Any, **kwargs: Any) -> Tensor:
    """`plain`, a block's forward pass, of which the inputs alone are kept."""
    if not (block.training and torch.is_grad_enabled()):
        return plain(*args, **kwargs)
    return checkpointed(plain, block, *args, **kwargs)


def drop_cheap(block: Block) -> None:
    """Keep of a block what cannot be had in one pass over memory."""
    for norm in (getattr(block, name) for name in NORMS):
        if norm is not None:
            norm.register_forward_hook(note_norm)
    if block.ffn.activation.__name__ not in BY_OUTPUT:
        block.ffn.activation = noted(block.ffn.activation)
    block.forward = partial(run_dropping, block.forward, block)  # type: ignore[method-assign]


def run_dropping(plain: Callable[..., Tensor], block: Block, *args: Any, **kwargs: Any) -> Tensor:
    """`plain`, a block's forward pass, of which what is cheap is not kept."""
    if not (block.training and torch.is_grad_enabled()):
        return plain(*args, **kwargs)
    if torch.compiler.is_compiling():  # a compiler goes by operations, and sees no hooks
        return checkpointed(plain, block, *args, context_fn=keeping_products, **kwargs)
    with Cheap() as cheap, saved_tensors_hooks(cheap.pack, unpack):
        return plain(*args, **kwargs)


def checkpointed(plain: Callable[..., Tensor], block: Block, *args: Any, **options: Any) -> Tensor:
    """torch's checkpointing of a block, which saves the random state only where it is needed."""
    random = any(getattr(module, "dropout", 0) for module in block.modules())
    return cast(Tensor, checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=random, **options))


def keeping_products() -> Any:
    """What tells torch's checkpointing to keep the results of products and of attention."""
    kept = {getattr(torch.ops.aten, name) for name in KEPT if hasattr(torch.ops.aten, name)}

    def policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        keep = getattr(operation, "overloadpacket", None) in kept
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


class Again:
    """How to make a tensor again.  Those who ask before all have been served share what one of them made."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: str) -> None:
        self.function, self.inputs = function, tuple(x.detach() for x in inputs)
        self.device, self.dtype = device, torch.get_autocast_dtype(device)
        self.autocast = torch.is_autocast_enabled(device)
        self.askers = self.served = 0
        self.made: Tensor | None = None

    def value(self) -> Tensor:
        """The tensor; let go of after the last of its askers."""
        if self.made is None:
            with torch.no_grad(), torch.autocast(self.device, self.dtype, enabled=self.autocast):
                self.made = self.function(*self.inputs)
        value, self.served = self.made, self.served + 1
        if self.served == self.askers:
            self.made, self.served = None, 0
        return value


class Dropped(NamedTuple):
    """A view of a tensor that will be made again: what autograd holds in its place."""

    again: Again
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int


class Cheap:
    """The tensors of a running block that can be made again, by where their memory begins.

    One that has died is none: its place may be another tensor's by then.
    """

    running: ClassVar[list["Cheap"]] = []  # the innermost last

    def __init__(self) -> None:
        self.recipes: dict[int, tuple[Again, weakref.ref[Tensor]]] = {}

    def __enter__(self) -> "Cheap":
        self.running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.running.remove(self)

    def pack(self, tensor: Tensor) -> "Tensor | Dropped":
        """What autograd keeps for a tensor."""
        again, alive = self.recipes.get(begin(tensor), (None, None))
        if again is None or alive is None or alive() is None:
            return tensor
        again.askers += 1
        return Dropped(again, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def note(out: Tensor, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    """Remember in the block that is running how `out` was made."""
    if not torch.compiler.is_compiling() and Cheap.running:
        again = Again(function, inputs, out.device.type)
        Cheap.running[-1].recipes[begin(out)] = again, weakref.ref(out)


def note_norm(norm: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
    """A hook after a norm; one function for all, so that to a compiler all blocks look alike."""
    note(out, norm.forward, inputs)


@cache
def noted(activation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An activation whose results are remembered; one function for all blocks."""

    @wraps(activation)
    def call(*inputs: Tensor) -> Tensor:
        out = activation(*inputs)
        note(out, activation, inputs)
        return out

    return call


def begin(tensor: Tensor) -> int:
    """Where a tensor's memory begins, the same for all its views."""
    return tensor.untyped_storage().data_ptr()


def unpack(kept: "Tensor | Dropped") -> Tensor:
    """What autograd had wanted to keep."""
    if isinstance(kept, Tensor):
        return kept
    return kept.again.value().as_strided(kept.shape, kept.strides, kept.offset)
