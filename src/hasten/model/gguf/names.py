"""Where a parameter of ours lies among a GGUF file's tensors.

After llama.cpp's `src/llama-arch.cpp` and `conversion/*.py`.
"""

from dataclasses import dataclass

from torch import Tensor

from hasten.model.config import ModelConfig

ROPE_FACTORS = "rope_freqs.weight"
OUTSIDE = {
    "embedding": "token_embd",
    "positions": "position_embd",
    "norm": "output_norm",
    "head": "output",
}
LAYER = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.out": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "attention_out_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
    "ffn_out_norm": "post_ffw_norm",
}
FUSED = ("attention.query", "attention.key", "attention.value")


@dataclass(frozen=True)
class Place:
    """A tensor, or one of `parts` equal row blocks of it.

    With `heads` the rows of each head are in pairs of neighbours there, where hasten has the pairs half a
    head apart: llama.cpp's `llama` turns neighbours.  `shift` is added there (Gemma stores 1 + weight).
    """

    name: str
    heads: int = 0
    part: int = 0
    parts: int = 1
    shift: float = 0.0

    def theirs(self, ours: Tensor) -> Tensor:
        """Our parameter as it is stored, in float32."""
        stored = ours.detach().float().cpu()
        stored = stored + self.shift if self.shift else stored
        if not self.heads:
            return stored
        halves = stored.reshape(self.heads, 2, -1, *stored.shape[1:])
        return halves.swapaxes(1, 2).reshape(stored.shape)

    def ours(self, theirs: Tensor) -> Tensor:
        """What `theirs` undoes, from the whole tensor."""
        rows = len(theirs) // self.parts
        stored = theirs[self.part * rows : (self.part + 1) * rows]
        stored = stored - self.shift if self.shift else stored
        if not self.heads:
            return stored
        pairs = stored.reshape(self.heads, -1, 2, *stored.shape[1:])
        return pairs.swapaxes(1, 2).reshape(stored.shape)


@dataclass(frozen=True)
class Naming:
    """How an architecture departs from names that are one to one."""

    neighbours: bool = False
    """Rotary positions turn neighbours, so queries' and keys' rows have another order."""
    fused: bool = False
    """Queries, keys and values are one matrix."""
    norm_shift: float = 0.0

    def place(self, config: ModelConfig, parameter: str) -> Place:
        """Where `parameter` lies; KeyError for one that no architecture has."""
        stem, _, kind = parameter.rpartition(".")
        if kind not in ("weight", "bias"):
            raise KeyError(parameter)
        if stem in OUTSIDE:
            return Place(f"{OUTSIDE[stem]}.{kind}", shift=self.shift(stem))
        _, number, module = stem.split(".", 2) if stem.startswith("layers.") else ("", "", stem)
        theirs = LAYER[module]
        if self.fused and module in FUSED:
            return Place(f"blk.{number}.attn_qkv.{kind}", part=FUSED.index(module), parts=3)
        turned = {"attention.query": config.num_heads, "attention.key": config.num_kv_heads}
        heads = turned.get(module, 0) if self.neighbours else 0
        return Place(f"blk.{number}.{theirs}.{kind}", heads=heads, shift=self.shift(module))

    def shift(self, module: str) -> float:
        """What is added to the parameters of a module."""
        return self.norm_shift if module.endswith("norm") else 0.0
