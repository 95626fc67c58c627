"""The techniques of the ledger, as data: to have another one measured, add an entry to `TECHNIQUES`.

An entry says what the technique is and how a training goes without it: by settings of the recipe, by
environment variables of the process, or by `without`, which takes it out of a process before training
begins.  `missing` says why it can't be had here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from hasten.core.allocator import SWITCH, allocator_environment
from hasten.core.errors import ConfigError, did_you_mean
from hasten.core.runtime import has_fast_bf16, has_float8
from hasten.model import attention
from hasten.model.presets import GPT
from hasten.ops.attention import fused_attention
from hasten.ops.kernels import library
from hasten.recipe import Recipe
from hasten.report.frame import Words
from hasten.train import engine, muon, run


def nothing() -> None:
    """Nothing has to be taken out."""


def always(recipe: Recipe, device: torch.device) -> Words | None:
    """It can be had everywhere."""
    return None


@dataclass(frozen=True)
class Technique:
    """One entry: `on` and `off` are overrides of the recipe, `environment` is of a process without it."""

    title: Words
    does: Words
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    without: Callable[[], None] = nothing
    missing: Callable[[Recipe, torch.device], Words | None] = always
    learns: bool = False  # changes what a step learns, so that time to a loss has to be measured
    plain: bool = False  # PyTorch does so by itself: the plain arm has it too
    by_choice: Callable[[torch.device], bool] = lambda device: (
        False
    )  # not in the full set: added, not left out


def without_own_attention() -> None:
    """Attention by PyTorch's own function."""
    attention.attend = fused_attention
    engine.can_skip_tiles = lambda device: False


def without_batches_of_matrices() -> None:
    """Muon takes one matrix after the other."""
    muon.by_shape = lambda matrices, places: [[matrix] for matrix in matrices]


class InTurn:
    """What `Prefetch` does, in the thread of the training."""

    def __init__(self, make: Callable[[int], Any], first: int = 0) -> None:
        self.make, self.step = make, first

    def __next__(self) -> Any:
        self.step += 1
        return self.make(self.step - 1)

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def without_prefetch() -> None:
    """Batches are made when they are asked for."""
    run.Prefetch = InTurn  # type: ignore[misc, assignment]


def no_bf16(recipe: Recipe, device: torch.device) -> Words | None:
    if recipe.train.precision == "fp32":
        return "the recipe trains in fp32", "配方使用 fp32 训练"
    return None if has_fast_bf16(device) else ("not faster than fp32 on this device", "此设备上不比 fp32 快")


def no_kernels(recipe: Recipe, device: torch.device) -> Words | None:
    if device.type != "cpu":
        return "made for CPUs", "仅用于 CPU"
    reason = library.why_not()
    return (
        None
        if reason is None
        else (reason, {"there is no C++ compiler": "没有 C++ 编译器"}.get(reason, reason))
    )


def no_compiler(recipe: Recipe, device: torch.device) -> Words | None:
    missing = engine.missing_toolchain(device)
    return None if missing is None else (f"{missing} is needed and none was found", f"需要 {missing}，未找到")


def no_allocator(recipe: Recipe, device: torch.device) -> Words | None:
    known = allocator_environment({}) != {}
    return None if known else ("the settings are those of glibc", "仅适用于 glibc")


def no_muon(recipe: Recipe, device: torch.device) -> Words | None:
    other = recipe.train.optimizer.kind != "muon"
    return ("the recipe trains with AdamW", "配方使用 AdamW") if other else None


def no_modern_block(recipe: Recipe, device: torch.device) -> Words | None:
    other = recipe.model.position == GPT["position"]
    return ("the recipe's model is of the GPT-2 kind", "配方的模型已是 GPT-2 结构") if other else None


def one_core(recipe: Recipe, device: torch.device) -> Words | None:
    single = torch.get_num_threads() == 1
    return ("one thread is all there is", "只有一个线程可用") if single else None


def no_float8(recipe: Recipe, device: torch.device) -> Words | None:
    needs = "needs a GPU of compute capability 8.9 or more", "需要计算能力 8.9 及以上的 GPU"
    return None if has_float8(device) else needs


def on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def everywhere(device: torch.device) -> bool:
    return True


TECHNIQUES: dict[str, Technique] = {
    "bf16": Technique(
        ("bfloat16 products", "bfloat16 矩阵乘"),
        (
            "Matrix products in bfloat16 on fp32 weights; without it, everything in fp32.",
            "权重为 fp32，矩阵乘用 bfloat16；对照为全程 fp32。",
        ),
        off=("train.precision=fp32",),
        missing=no_bf16,
    ),
    "kernels": Technique(
        ("C++ kernels", "C++ 内核"),
        (
            "Operations in C++ compiled for this very processor; without it, PyTorch's own.",
            "算子用为本机处理器编译的 C++ 实现；对照为 PyTorch 自带算子。",
        ),
        environment={"HASTEN_KERNELS": "off"},
        missing=no_kernels,
    ),
    "compile": Technique(
        ("torch.compile", "torch.compile"),
        (
            "Each block fused by PyTorch's compiler; its start-up is not in the tokens per second.",
            "由 PyTorch 编译器逐块编译、融合；启动编译用时不计入每秒词元数。",
        ),
        on=("train.compile=on",),
        off=("train.compile=off",),
        missing=no_compiler,
        by_choice=on_cpu,
    ),
    "attention": Technique(
        ("own attention path", "自选注意力路径"),
        (
            "Attention chosen by shape and device; without it, PyTorch's scaled_dot_product_attention.",
            "按形状与设备选择注意力实现；对照为 PyTorch 的 scaled_dot_product_attention。",
        ),
        without=without_own_attention,
    ),
    "allocator": Technique(
        ("memory settings", "内存分配设置"),
        (
            "The C library keeps freed memory, in huge pages; without it, it returns large blocks each time.",
            "C 库保留已释放的内存并使用大页；对照为每次归还大块内存。",
        ),
        environment={SWITCH: "off"},
        missing=no_allocator,
    ),
    "prefetch": Technique(
        ("prefetch", "预取"),
        (
            "The next batch is made while a step runs; without it, the step waits for its batch.",
            "训练一步的同时准备下一批数据；对照为每步等待数据。",
        ),
        without=without_prefetch,
    ),
    "muon": Technique(
        ("Muon", "Muon"),
        (
            "Muon on block matrices; without it, AdamW everywhere at its default rate.",
            "块内矩阵用 Muon；对照为全部用 AdamW 及其默认学习率。",
        ),
        off=("train.optimizer={kind: adamw}",),
        missing=no_muon,
        learns=True,
    ),
    "batched_muon": Technique(
        ("batched Muon", "批量 Muon"),
        (
            "Matrices of one shape are orthogonalised as one batch; without it, one after the other.",
            "同形状的矩阵成批正交化；对照为逐个处理。",
        ),
        without=without_batches_of_matrices,
        missing=no_muon,
    ),
    "block": Technique(
        ("modern block", "新式结构"),
        (
            "The recipe's architecture; without it, GPT-2's: learned positions, LayerNorm, GELU, biases.",
            "配方自身的结构；对照为 GPT-2：可学习位置、LayerNorm、GELU、偏置。",
        ),
        off=tuple(f"model.{key}={str(value).lower()}" for key, value in GPT.items() if key != "vocab_size"),
        missing=no_modern_block,
        learns=True,
    ),
    "threads": Technique(
        ("all cores", "全部核心"),
        ("A thread for each core; without it, one thread.", "每核一个线程；对照为单线程。"),
        environment={"OMP_NUM_THREADS": "1"},
        missing=one_core,
        plain=True,
    ),
    "fp8": Technique(
        ("float8 products", "float8 矩阵乘"),
        (
            "Matrix products of the blocks in float8, the rest in bfloat16.",
            "块内矩阵乘用 float8，其余为 bfloat16。",
        ),
        on=("train.precision=fp8",),
        missing=no_float8,
        by_choice=everywhere,
        learns=True,
    ),
}


def choose(names: Sequence[str] | None) -> dict[str, Technique]:
    """The techniques of these names, all for None; ConfigError for a name that the table lacks."""
    for name in names or ():
        if name not in TECHNIQUES:
            raise ConfigError(
                f"bench.techniques has no '{name}'.{did_you_mean(name, TECHNIQUES)}"
                f" Choose from {', '.join(TECHNIQUES)}"
            )
    return {name: entry for name, entry in TECHNIQUES.items() if names is None or name in names}
