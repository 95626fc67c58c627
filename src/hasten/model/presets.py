"""Published architectures, and our own, as data for `model.preset`.

Sources: GPT-2, Radford et al. 2019 and its released checkpoints; GPT-3, Brown et al. 2020, table 2.1;
Llama, Mistral, Qwen, SmolLM2, Gemma, Pythia and OPT: the `config.json` of the released checkpoints.
"""

from typing import Any

Shape = dict[str, Any]
Heads = tuple[int, int]

GPT: Shape = {
    "position": "learned",
    "norm": "layer",
    "norm_eps": 1e-5,
    "activation": "gelu_tanh",
    "attention_bias": True,
    "out_bias": True,
    "ffn_bias": True,
    "tied": True,
    "init_std": 0.02,
    "vocab_size": 50_257,
}
LLAMA: Shape = {
    "position": "rotary",
    "norm": "rms",
    "norm_eps": 1e-5,
    "activation": "swiglu",
    "init_std": 0.02,
}
LLAMA_3_1_ROPE: Shape = {
    "kind": "llama3",
    "factor": 8.0,
    "low_frequency": 1.0,
    "high_frequency": 4.0,
    "original_positions": 8192,
}
QWEN_2: Shape = {**LLAMA, "norm_eps": 1e-6, "rope_theta": 1e6, "attention_bias": True, "vocab_size": 151_936}
QWEN_3: Shape = {**QWEN_2, "attention_bias": False, "qk_norm": True, "head_dim": 128}
GEMMA: Shape = {
    **LLAMA,
    "norm_eps": 1e-6,
    "norm_offset": True,
    "activation": "geglu_tanh",
    "tied": True,
    "vocab_size": 256_000,
    "max_positions": 8192,
    "head_dim": 256,
}
GEMMA_2: Shape = {
    **GEMMA,
    "norm_place": "both",
    "logit_soft_cap": 30.0,
    "attention_soft_cap": 50.0,
    "sliding_window": 4096,
}
GEMMA_3: Shape = {
    **GEMMA,
    "norm_place": "both",
    "qk_norm": True,
    "sliding_window": 512,
    "rope_theta": 1e6,
    "local_rope_theta": 1e4,
    "vocab_size": 262_144,
    "max_positions": 32_768,
}
OPT: Shape = {**GPT, "activation": "relu", "position_offset": 2, "init_std": 0.006, "vocab_size": 50_272}
PYTHIA: Shape = {
    **GPT,
    "position": "rotary",
    "rotary_share": 0.25,
    "parallel_block": True,
    "activation": "gelu",
    "tied": False,
    "vocab_size": 50_304,
}
# What won our small-scale comparison: each piece is in the modded-nanogpt and nanochat records too.
HASTEN: Shape = {
    "position": "rotary",
    "norm": "rms",
    "activation": "relu_squared",
    "qk_norm": True,
    "embedding_norm": True,
    "zero_init_outputs": True,
}


def gpt(dim: int, num_layers: int, num_heads: int, max_positions: int, **rest: Any) -> Shape:
    """A GPT of the given size."""
    return {
        **GPT,
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "max_positions": max_positions,
        **rest,
    }


def grouped(family: Shape, dim: int, num_layers: int, heads: Heads, ffn_dim: int, **rest: Any) -> Shape:
    """A model of the Llama kind; `heads` are those of queries and of keys."""
    return {
        **family,
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": heads[0],
        "num_kv_heads": heads[1],
        "ffn_dim": ffn_dim,
        **rest,
    }


def llama_2(*shape: Any) -> Shape:
    return grouped(LLAMA, *shape, vocab_size=32_000, max_positions=4096)


def llama_3(*shape: Any, **rest: Any) -> Shape:
    return grouped(LLAMA, *shape, **{"vocab_size": 128_256, "rope_theta": 5e5, "max_positions": 8192, **rest})


def llama_3_1(*shape: Any, factor: float = 8.0, **rest: Any) -> Shape:
    rope = {**LLAMA_3_1_ROPE, "factor": factor}
    return llama_3(*shape, max_positions=131_072, rope_scaling=rope, **rest)


def smollm2(*shape: Any, theta: float) -> Shape:
    rest: Shape = {"vocab_size": 49_152, "rope_theta": theta, "max_positions": 8192, "tied": True}
    return grouped(LLAMA, *shape, **rest)


def gemma(
    family: Shape, dim: int, num_layers: int, heads: Heads, ffn_dim: int, *, every: int = 0, **rest: Any
) -> Shape:
    """A Gemma; all layers but each `every`-th see a window."""
    windows = [layer for layer in range(num_layers) if every and (layer + 1) % every]
    rest = {**rest, "embedding_scale": dim**0.5, **({"window_layers": tuple(windows)} if every else {})}
    return grouped(family, dim, num_layers, heads, ffn_dim, **rest)


def pythia(dim: int, num_layers: int, num_heads: int, **rest: Any) -> Shape:
    return {**gpt(dim, num_layers, num_heads, 2048), **PYTHIA, **rest}


def opt(dim: int, num_layers: int, num_heads: int) -> Shape:
    return {**gpt(dim, num_layers, num_heads, 2048), **OPT}


def hasten(dim: int, num_layers: int, num_heads: int, max_positions: int) -> Shape:
    return {
        **HASTEN,
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "max_positions": max_positions,
    }


PRESETS: dict[str, Shape] = {
    "hasten-tiny": hasten(256, 4, 4, 512),
    "hasten-small": hasten(384, 6, 6, 1024),
    "hasten-base": hasten(768, 12, 6, 2048),
    "gpt2": gpt(768, 12, 12, 1024),
    "gpt2-medium": gpt(1024, 24, 16, 1024),
    "gpt2-large": gpt(1280, 36, 20, 1024),
    "gpt2-xl": gpt(1600, 48, 25, 1024),
    # GPT-3 with every layer dense: the paper alternates dense and banded sparse attention, which has the
    # same weights.  The paper prints 24 heads for 1.3B, which at width 128 would make it 1.5B: 16 is meant.
    "gpt3-125m": gpt(768, 12, 12, 2048),
    "gpt3-350m": gpt(1024, 24, 16, 2048),
    "gpt3-760m": gpt(1536, 24, 16, 2048),
    "gpt3-1.3b": gpt(2048, 24, 16, 2048),
    "gpt3-2.7b": gpt(2560, 32, 32, 2048),
    "gpt3-6.7b": gpt(4096, 32, 32, 2048),
    "gpt3-13b": gpt(5140, 40, 40, 2048, head_dim=128),
    "gpt3-175b": gpt(12_288, 96, 96, 2048),
    "llama2-7b": llama_2(4096, 32, (32, 32), 11_008),
    "llama2-13b": llama_2(5120, 40, (40, 40), 13_824),
    "llama2-70b": llama_2(8192, 80, (64, 8), 28_672),
    "llama3-8b": llama_3(4096, 32, (32, 8), 14_336),
    "llama3-70b": llama_3(8192, 80, (64, 8), 28_672),
    "llama3.1-8b": llama_3_1(4096, 32, (32, 8), 14_336),
    "llama3.1-70b": llama_3_1(8192, 80, (64, 8), 28_672),
    "llama3.1-405b": llama_3_1(16_384, 126, (128, 8), 53_248),
    "llama3.2-1b": llama_3_1(2048, 16, (32, 8), 8192, factor=32.0, tied=True),
    "llama3.2-3b": llama_3_1(3072, 28, (24, 8), 8192, factor=32.0, tied=True),
    "mistral-7b": grouped(
        LLAMA, 4096, 32, (32, 8), 14_336, vocab_size=32_000, max_positions=32_768, sliding_window=4096
    ),
    "mistral-7b-v0.3": grouped(
        LLAMA, 4096, 32, (32, 8), 14_336, vocab_size=32_768, max_positions=32_768, rope_theta=1e6
    ),
    "smollm2-135m": smollm2(576, 30, (9, 3), 1536, theta=1e5),
    "smollm2-360m": smollm2(960, 32, (15, 5), 2560, theta=1e5),
    "smollm2-1.7b": smollm2(2048, 24, (32, 32), 8192, theta=1.3e5),
    "qwen2-0.5b": grouped(QWEN_2, 896, 24, (14, 2), 4864, tied=True, max_positions=131_072),
    "qwen2-1.5b": grouped(QWEN_2, 1536, 28, (12, 2), 8960, tied=True, max_positions=131_072),
    "qwen3-0.6b": grouped(QWEN_3, 1024, 28, (16, 8), 3072, tied=True, max_positions=40_960),
    "qwen3-1.7b": grouped(QWEN_3, 2048, 28, (16, 8), 6144, tied=True, max_positions=40_960),
    "qwen3-4b": grouped(QWEN_3, 2560, 36, (32, 8), 9728, tied=True, max_positions=40_960),
    "gemma-2b": gemma(GEMMA, 2048, 18, (8, 1), 16_384),
    "gemma-7b": gemma(GEMMA, 3072, 28, (16, 16), 24_576),
    "gemma2-2b": gemma(GEMMA_2, 2304, 26, (8, 4), 9216, every=2),
    "gemma2-9b": gemma(GEMMA_2, 3584, 42, (16, 8), 14_336, every=2),
    "gemma2-27b": gemma(
        GEMMA_2, 4608, 46, (32, 16), 36_864, every=2, head_dim=128, attention_scale=144**-0.5
    ),
    "gemma3-270m": gemma(GEMMA_3, 640, 18, (4, 1), 2048, every=6),
    "gemma3-1b": gemma(GEMMA_3, 1152, 26, (4, 1), 6912, every=6),
    "opt-125m": opt(768, 12, 12),
    "opt-1.3b": opt(2048, 24, 32),
    "opt-2.7b": opt(2560, 32, 32),
    "opt-6.7b": opt(4096, 32, 32),
    "opt-13b": opt(5120, 40, 40),
    "opt-30b": opt(7168, 48, 56),
    "opt-66b": opt(9216, 64, 72),
    "pythia-70m": pythia(512, 6, 8),
    "pythia-160m": pythia(768, 12, 12),
    "pythia-410m": pythia(1024, 24, 16),
    "pythia-1b": pythia(2048, 16, 8),
    "pythia-1.4b": pythia(2048, 24, 16),
    "pythia-2.8b": pythia(2560, 32, 32),
    "pythia-6.9b": pythia(4096, 32, 32, vocab_size=50_432),
    "pythia-12b": pythia(5120, 36, 40, vocab_size=50_688),
}
