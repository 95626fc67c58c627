"""Tiny random decoders of `transformers`, each option of each family switched both ways."""

import random
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96}
SMALL = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 96,
}  # fmt: skip
GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
SCALED = {**GROUPED, "head_dim": 12, "num_hidden_layers": 4}
KINDS = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": 5}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 12}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", SCALED),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**SCALED, "sliding_window": 5}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**SCALED, "sliding_window": 5}),
    "opt": ("OPTConfig", "OPTForCausalLM", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**SMALL, "intermediate_size": 48}),
}
"""Classes of configuration and model, and the sizes of a tiny one."""
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
BASE_500 = {"rope_type": "default", "rope_theta": 500.0}
QUARTER = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
FULL, SLIDING = "full_attention", "sliding_attention"
LATE_WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
NAMED_WINDOWS = {
    "use_sliding_window": True, "sliding_window": 3, "layer_types": [SLIDING, FULL, SLIDING],
}  # fmt: skip
TWO_ROPES = {FULL: {**LINEAR, "rope_theta": 1e5}, SLIDING: {"rope_type": "default", "rope_theta": 300.0}}
ALL_SLIDING = {"layer_types": [SLIDING] * 4}

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2, exact gelu, narrow": ("gpt2", {"activation_function": "gelu", "n_inner": 24}),
    "gpt2, untied, other eps": ("gpt2", {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "gpt2, relu": ("gpt2", {"activation_function": "relu"}),
    "gpt2, silu": ("gpt2", {"activation_function": "silu"}),
    "llama": ("llama", {}),
    "llama, not grouped, tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama, one key head, wide heads": ("llama", {"num_key_value_heads": 1, "head_dim": 12}),
    "llama, biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, biased attention": ("llama", {"attention_bias": True}),
    "llama, biased feed-forward": ("llama", {"mlp_bias": True}),
    "llama, other base and eps": ("llama", {"rope_parameters": BASE_500, "rms_norm_eps": 1e-3}),
    "llama, linear rope": ("llama", {"rope_parameters": LINEAR}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, gelu gate": ("llama", {"hidden_act": "gelu"}),
    "llama, gelu_new gate": ("llama", {"hidden_act": "gelu_new"}),
    "mistral": ("mistral", {}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, window beyond the text": ("mistral", {"sliding_window": 4096}),
    "mistral, window of one": ("mistral", {"sliding_window": 1}),
    "mistral, tied, wide heads, llama3 rope": (
        "mistral",
        {"tie_word_embeddings": True, "head_dim": 12, "rope_parameters": LLAMA3, "rms_norm_eps": 1e-3},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, window switched off": ("qwen2", {"use_sliding_window": False, "sliding_window": 4}),
    "qwen2, window from the second layer": ("qwen2", LATE_WINDOW),
    "qwen2, window everywhere": ("qwen2", {**LATE_WINDOW, "max_window_layers": 0}),
    "qwen2, window nowhere": ("qwen2", {**LATE_WINDOW, "max_window_layers": 3}),
    "qwen2, windows by name": ("qwen2", NAMED_WINDOWS),
    "qwen2, tied, linear rope": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": LINEAR}),
    "qwen2, not grouped, gelu gate": ("qwen2", {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    "qwen3": ("qwen3", {}),
    "qwen3, biased, tied, other eps": (
        "qwen3",
        {"attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    ),
    "qwen3, window from the second layer": ("qwen3", LATE_WINDOW),
    "qwen3, windows by name, llama3 rope": ("qwen3", {**NAMED_WINDOWS, "rope_parameters": LLAMA3}),
    "gemma": ("gemma", {}),
    "gemma, untied, biased": ("gemma", {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma, silu gate, one key head": ("gemma", {"hidden_act": "silu", "num_key_value_heads": 1}),
    "gemma, linear rope, other eps": ("gemma", {"rope_parameters": LINEAR, "rms_norm_eps": 1e-3}),
    "gemma2": ("gemma2", {}),
    "gemma2, no caps": ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    "gemma2, tight caps": ("gemma2", {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5}),
    "gemma2, other scale, untied, biased": (
        "gemma2",
        {"query_pre_attn_scalar": 7, "tie_word_embeddings": False, "attention_bias": True},
    ),
    "gemma2, scale of the heads": ("gemma2", {"query_pre_attn_scalar": 12}),
    "gemma2, windows by name, exact gelu": (
        "gemma2",
        {"layer_types": [FULL, FULL, SLIDING, FULL], "hidden_activation": "gelu"},
    ),
    "gemma2, window everywhere": ("gemma2", ALL_SLIDING),
    "gemma2, window nowhere": ("gemma2", {"layer_types": [FULL] * 4}),
    "gemma3": ("gemma3", {}),
    "gemma3, every second layer": ("gemma3", {"sliding_window_pattern": 2}),
    "gemma3, two ropes, cap, other scale": (
        "gemma3",
        {
            "layer_types": [SLIDING, FULL, SLIDING, FULL], "rope_parameters": TWO_ROPES,
            "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 20,
        },
    ),
    "gemma3, untied, biased, window nowhere": (
        "gemma3",
        {"tie_word_embeddings": False, "attention_bias": True, "layer_types": [FULL] * 4},
    ),
    "opt": ("opt", {}),
    "opt, norms after": ("opt", {"do_layer_norm_before": False}),
    "opt, no last norm": ("opt", {"_remove_final_layer_norm": True}),
    "opt, no biases, untied": ("opt", {"enable_bias": False, "tie_word_embeddings": False}),
    "opt, gelu": ("opt", {"activation_function": "gelu"}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox, all of each head": ("gpt_neox", {"rotary_pct": 1.0, "tie_word_embeddings": True}),
    "gpt_neox, quarter, other base": ("gpt_neox", {"rope_parameters": QUARTER}),
    "gpt_neox, half, linear rope": (
        "gpt_neox",
        {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}, "layer_norm_eps": 1e-3},
    ),
    "gpt_neox, llama3 rope": ("gpt_neox", {"rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.5}}),
    "gpt_neox, no attention biases, gelu_fast": (
        "gpt_neox",
        {"attention_bias": False, "hidden_act": "gelu_fast"},
    ),
}  # fmt: skip
"""What is tested: a family, and what differs from its tiny model."""


def random_options(kind: str, seed: int) -> dict[str, Any]:
    """Sizes and options drawn at random, among all that the family has."""
    draw = random.Random(f"{kind} {seed}")
    heads, layers = draw.choice([1, 2, 4, 6]), draw.choice([1, 2, 4])
    flag = lambda: draw.random() < 0.5  # noqa: E731
    common = {"vocab_size": draw.randint(20, 90), "tie_word_embeddings": flag()}
    plain = draw.choice(["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
    if kind == "gpt2":
        sizes = {"n_embd": heads * draw.choice([4, 6, 10]), "n_head": heads, "n_layer": layers}
        inner = {"n_inner": draw.choice([None, 20]), "activation_function": plain}
        return {**common, **sizes, **inner, "layer_norm_epsilon": draw.choice([1e-5, 1e-2])}
    width = heads * draw.choice([4, 8, 16])
    common |= {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers}
    if kind == "opt":
        flags = {name: flag() for name in ("do_layer_norm_before", "enable_bias", "_remove_final_layer_norm")}
        return {**common, **flags, "word_embed_proj_dim": width, "activation_function": plain}
    rope = draw.choice([BASE_500, LINEAR, LLAMA3])
    if kind == "gpt_neox":
        flags = {name: flag() for name in ("use_parallel_residual", "attention_bias")}
        share = draw.choice([0.5, 1.0])
        rope = {**rope, "partial_rotary_factor": share}
        return {**common, **flags, "rope_parameters": rope, "hidden_act": plain, "layer_norm_eps": 1e-3}
    act = "hidden_activation" if kind in ("gemma2", "gemma3") else "hidden_act"
    common |= {act: draw.choice(["silu", "gelu_pytorch_tanh"]), "rms_norm_eps": draw.choice([1e-6, 1e-2])}
    common |= {"num_key_value_heads": draw.choice([n for n in (1, 2, heads) if heads % n == 0])}
    common |= {"rope_parameters": {FULL: rope, SLIDING: BASE_500} if kind == "gemma3" else rope}
    common |= {"head_dim": draw.choice([4, 10, 18])} if kind != "qwen2" else {}
    if kind not in ("mistral", "qwen2"):
        common["attention_bias"] = flag()
    if kind == "llama":
        common["mlp_bias"] = flag()
    if kind not in ("llama", "gemma"):
        common["sliding_window"] = draw.choice([1, 2, 7, 39, 40, 41, 200])
    if kind in ("qwen2", "qwen3"):
        common |= {"use_sliding_window": flag(), "max_window_layers": draw.randint(0, layers)}
    if kind in ("gemma2", "gemma3"):
        common |= {"layer_types": draw.choices([FULL, SLIDING], k=layers)}
        common |= {"query_pre_attn_scalar": draw.choice([3, 18, 256])}
        common |= {"final_logit_softcapping": draw.choice([None, 2.0])}
    return common | ({"attn_logit_softcapping": draw.choice([None, 0.7])} if kind == "gemma2" else {})


def tiny_config(kind: str, **options: Any) -> Any:
    """A configuration of `transformers`."""
    return getattr(transformers, KINDS[kind][0])(**{**KINDS[kind][2], **options})


def tiny_model(kind: str, **options: Any) -> nn.Module:
    """A model of `transformers` in which no parameter is at its trivial start."""
    torch.manual_seed(0)
    config = tiny_config(kind, **options)
    model = getattr(transformers, KINDS[kind][1])._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
