"""The published rows that the planner is graded on: which model, layout and system each one is.

A row of published_throughput.csv names a model; its shape is written down here, from the paper or release
that it comes from.  What a system does (fused attention, recomputation, sharding) is a fact about it, stated
here, and not fitted.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.model.config import ModelConfig
from hasten.plan.hardware import Cluster, parse_hardware
from hasten.plan.layout import Layout, misfit
from hasten.plan.memory import HALF_GRADIENTS, MASTER, OURS, Scheme, peak_memory
from hasten.plan.rates import FIT, Fit, Software
from hasten.plan.time import Clockwork, StepTime
from hasten.plan.work import Work

GPT = {"position": "learned", "norm": "layer", "activation": "gelu", "attention_bias": True, "out_bias": True,
       "ffn_bias": True, "tied": True, "max_positions": 4096}  # fmt: skip


def gpt(dim: int, layers: int, heads: int, vocab: int = 51_200) -> dict[str, Any]:
    """A GPT of Megatron-LM's papers."""
    return {**GPT, "dim": dim, "num_layers": layers, "num_heads": heads, "vocab_size": vocab}


# Narayanan et al. 2021, table 1; Korthikanti et al. 2022, table 3 (22B, 175B, 530B, 1T).
MEGATRON = {
    "GPT-1.7B": gpt(2304, 24, 24), "GPT-3.6B": gpt(3072, 30, 32), "GPT-7.5B": gpt(4096, 36, 32),
    "GPT-18B": gpt(6144, 40, 48), "GPT-39B": gpt(8192, 48, 64), "GPT-76B": gpt(10_240, 60, 80),
    "GPT-145B": gpt(12_288, 80, 96), "GPT-310B": gpt(16_384, 96, 128), "GPT-530B": gpt(20_480, 105, 128),
    "GPT-529.6B": gpt(20_480, 105, 128), "GPT-1T": gpt(25_600, 128, 160), "GPT-174.6B": gpt(12_288, 96, 96),
    "GPT-175B": gpt(12_288, 96, 96), "GPT-3 175B": gpt(12_288, 96, 96), "GPT-22B": gpt(6144, 48, 64),
    "OPT-175B": gpt(12_288, 96, 96, 50_272), "MT-NLG-530B": gpt(20_480, 105, 128, 50_304),
    "BLOOM-176B": gpt(14_336, 70, 112, 250_880),
}  # fmt: skip
# Megatron-Core r0.8 benchmarks, model table of its README: hidden size, layers, heads; vocabulary 131,072.
CORE = {
    "GPT-1.7B": gpt(2304, 24, 24, 131_072), "GPT-7.1B": gpt(4096, 32, 32, 131_072),
    "GPT-16B": gpt(6144, 32, 48, 131_072), "GPT-32B": gpt(8192, 36, 64, 131_072),
    "GPT-70B": gpt(8192, 80, 64, 131_072), "GPT-119B": gpt(12_288, 64, 96, 131_072),
    "GPT-177B": gpt(12_288, 96, 96, 131_072), "GPT-314B": gpt(16_384, 96, 128, 131_072),
    "GPT-462B": gpt(18_432, 112, 144, 131_072),
}  # fmt: skip
LLAMA = {
    "LLAMA3_8B": "llama3-8b", "Llama3-8B": "llama3-8b", "Llama3.1-8B": "llama3-8b",
    "LLAMA3_70B": "llama3-70b", "Llama3-70B": "llama3-70b", "Llama3.1-70B": "llama3-70b",
    "LLAMA3.1_405B": "llama3.1-405b", "Llama3.1-405B": "llama3.1-405b", "Llama3-405B": "llama3.1-405b",
}  # fmt: skip
# Inferred from its FLOPs per token; confirmed by its memory to half a per cent.
NANOTRON = {"dim": 2048, "num_layers": 24, "num_heads": 16, "ffn_dim": 4096, "vocab_size": 50_257,
            "activation": "swiglu", "norm": "rms", "position": "rotary", "max_positions": 4096}  # fmt: skip
GPUS = {"A100-80GB": "a100", "A100": "a100", "H100-80GB": "h100", "H100": "h100", "H100-80GB 700W": "h100",
        "H100-96GB HBM2e 500W": "h100", "H200": "h200", "B200": "b200", "GB200": "gb200", "GB300": "gb300",
        "B200 (power limited)": "b200"}  # fmt: skip
CUBE_ROOT = (500 / 700) ** (1 / 3)
"""Of a card's clock at 500 W against 700 W: dynamic power goes with the cube of the clock."""

HBM2E = 2.4e12
"""Bytes per second of six stacks of HBM2e, at the 2.0 TB/s of the five in an H100 PCIe."""

OLD = Software(copies=False, fused_attention=False, compiled=False, overlap_data=False, gradient_bytes=2)
# torchtitan makes every second product again, and repeats keys and values before attention.
TORCH = Software(products_again=0.5, gradient_bytes=4, ring_repeats=True)
NVIDIA = Software(copies=False, best_attention=True, gradient_bytes=2, hidden_tensor=0.5, hide_exchange=True,
                  plain_ring=False)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One row: what was run, and what came out."""

    system: str
    model: str
    row: dict[str, str]
    work: Work
    cluster: Cluster
    layout: Layout
    rows: int
    row_tokens: int
    precision: str
    software: Software
    scheme: Scheme
    tokens_per_second: float  # of a device
    evidence: str

    def predict(self, fit: Fit = FIT) -> StepTime:
        """The step as the planner sees it."""
        clock = Clockwork(
            self.work, self.cluster, self.row_tokens, precision=self.precision, software=self.software,
            scheme=self.scheme, fit=fit,
        )  # fmt: skip
        return clock.step(self.layout, self.rows)

    @property
    def seconds(self) -> float:
        """The published step time."""
        return self.rows * self.row_tokens / (self.tokens_per_second * self.layout.devices)

    def error(self, fit: Fit = FIT) -> float:
        """Predicted over published time, less one."""
        return self.predict(fit).total / self.seconds - 1


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published(rows: Sequence[dict[str, str]]) -> Iterator[Published]:
    """The dense rows whose layout is known and whose model is known here."""
    for row in rows:
        shape = shape_of(row)
        needed = (row["dp"], row["tp"], row["pp"], row["global_batch"])
        if shape is None or row["gpu"] not in GPUS or not all(needed) or "LoRA" in row["system"]:
            continue
        made = one(row, shape)
        if made is not None:
            yield made


def shape_of(row: dict[str, str]) -> dict[str, Any] | None:
    """The model's shape, None where it is not dense or not known."""
    if row["system"].startswith("Megatron-Core"):
        return CORE.get(row["model"])
    if row["system"].startswith("nanotron"):
        return NANOTRON
    if row["model"] in LLAMA:
        return {"preset": LLAMA[row["model"]]}
    return MEGATRON.get(row["model"])


def precision_of(row: dict[str, str]) -> str:
    """fp16, bf16, fp8 or fp4."""
    text = row["precision"]
    return "fp4" if "fp4" in text else "fp8" if "fp8" in text else text


def one(row: dict[str, str], shape: dict[str, Any]) -> Published | None:
    """A row with its model, layout and system."""
    system, precision = row["system"], precision_of(row)
    work, row_tokens, rows = Work.of(ModelConfig(**shape)), int(row["seq_len"]), int(row["global_batch"])
    software, scheme, layout = traits(row)
    if rows % (layout.replicas * layout.micro_batch):
        return None
    hardware = GPUS[row["gpu"]]
    node = {"gb200": 64, "gb300": 64}.get(hardware, 8)
    many = int(row["n_gpus"])
    cluster = parse_hardware(f"{hardware}x{min(node, many)}x{max(1, -(-many // node))}")
    if "HBM2e" in row["gpu"]:
        cluster = replace(cluster, device=replace(cluster.device, bandwidth=HBM2E))
    speed = row["tokens_per_s_per_gpu"]
    # Of Megatron-LM 2022 the utilisation was read, the time recalled.
    stated = speed and not system.startswith("Megatron-LM 2022")
    per_second = float(speed) if stated else from_flops(row, work, row_tokens)
    made = Published(
        system, row["model"], row, work, cluster, layout, rows, row_tokens, precision, software, scheme,
        per_second, row["evidence"],
    )  # fmt: skip
    return chosen(made)


def chosen(made: Published) -> Published:
    """Where a row leaves the micro-batch or the interleaving unsaid, what the planner would choose."""
    row, layout = made.row, made.layout
    titan = made.system.startswith("torchtitan")
    sizes = [layout.micro_batch] if row["mbs"] or titan else [1, 2, 4]
    chunks = [layout.interleave]
    if layout.pipeline > 1 and not row["vpp"] and made.system.startswith(("Megatron-Core", "Llama 3")):
        chunks = [v for v in range(1, 17) if layout.pipeline * v <= made.work.layers]
    tries = [replace(layout, micro_batch=size, interleave=v) for size in sizes for v in chunks]
    tries = [each for each in tries if misfit(each, made.work, made.row_tokens, made.rows) is None]
    roomy = [each for each in tries if fits(made, each)] or tries
    return min((replace(made, layout=each) for each in roomy), key=seconds_of, default=made)


def fits(made: Published, layout: Layout) -> bool:
    """Whether a row's device holds a layout."""
    memory = peak_memory(made.work, layout, made.row_tokens, made.rows, scheme=made.scheme)
    return memory.total <= made.cluster.device.memory


def seconds_of(made: Published) -> float:
    """The step as the planner sees it."""
    return made.predict().total


def from_flops(row: dict[str, str], work: Work, row_tokens: int) -> float:
    """Tokens per second of a row that only states TFLOP/s, by the way that its system counts them."""
    rate = float(row["tflops_per_gpu"]) * 1e12
    square = 2.0 * row_tokens * work.attended * work.layers  # the half that a causal count leaves out
    forward = work.flops(row_tokens) / 3 + square
    if row["system"].startswith(("Megatron-LM 2021", "ZeRO-3", "OPT", "BLOOM", "MT-NLG")):
        return rate / (4 * (forward - work.head_flops()) + 3 * work.head_flops())  # recomputation counts
    if row["system"].startswith("Llama 3"):
        return rate / work.flops(row_tokens)
    return rate / (3 * forward)


def traits(row: dict[str, str]) -> tuple[Software, Scheme, Layout]:
    """What a system does, from its papers, pages and the row's notes."""
    system, notes = row["system"], row["notes"]
    data, tensor, pipeline = int(row["dp"]), int(row["tp"]), int(row["pp"])
    interleave = int(row["vpp"] or 1) if pipeline > 1 else 1
    base = Layout(
        data=data, tensor=tensor, pipeline=pipeline, context=int(row["cp"] or 1), interleave=interleave,
        micro_batch=int(row["mbs"] or 1),
    )  # fmt: skip
    parallel = tensor > 1
    if system.startswith("ZeRO-3"):
        layout = replace(base, data=1, shard=data, recompute="full")
        return replace(OLD, rails=False, overlap_data=True), HALF_GRADIENTS, layout
    if system.startswith(("Megatron-LM 2021", "BLOOM", "MT-NLG")):
        return OLD, HALF_GRADIENTS, replace(base, recompute="full")
    if system.startswith("OPT"):
        return OLD, HALF_GRADIENTS, replace(base, data=1, shard=data, recompute="full")
    if system.startswith("Megatron-LM 2022"):
        return OLD, HALF_GRADIENTS, replace(base, recompute="selective", sequence_parallel=parallel)
    if system.startswith("nanotron"):
        layout = replace(base, data=1, shard=data, stage=1, sequence_parallel=parallel)
        return replace(TORCH, compiled=False, exchange=0.1), MASTER, layout
    if system.startswith("torchtitan"):
        software = replace(
            TORCH,
            compiled="eager" not in notes,
            hidden_tensor=0.5 if "async TP" in notes else 0.0,
            power=CUBE_ROOT if "500W" in row["gpu"] else 1.0,
        )
        layout = replace(base, data=1, shard=data, sequence_parallel=parallel)
        if pipeline > 1:  # its defaults: as many micro-batches as stages, two chunks where they interleave
            chunks = 2 if "Interleaved" in notes else 1
            size = int(row["global_batch"]) // (data * pipeline)
            layout = replace(layout, micro_batch=size, interleave=chunks)
        full = "full AC" in notes
        return software, OURS, replace(layout, recompute="full" if full else "selective")
    if "FSDP" in notes:
        return NVIDIA, MASTER, replace(base, data=1, shard=data, sequence_parallel=parallel)
    layout = replace(base, data=1, shard=data, stage=1, sequence_parallel=parallel)
    return NVIDIA, MASTER, layout
