"""Write the figures of both READMEs from bench/results/: python bench/readme.py"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
START, END = "<!-- {}: made by bench/readme.py from bench/results -->", "<!-- /{} -->"
WORDS = {
    "README.md": {
        "lead": "Median of {n} on {machine}, {threads} threads, torch {torch}:",
        "journey_seconds": "whole journey, seconds",
        "parameters": "parameters",
        "tokens": "tokens trained on",
        "val_loss": "validation loss, nats per token",
        "test_loss": "test loss, nats per token",
        "test_bits_per_byte": "test bits per byte",
        "lzma_bits_per_byte": "LZMA2 (preset 9 extreme), each test file by itself",
        "lzma_stream_bits_per_byte": "LZMA2, all test files as one stream",
        "test_accuracy": "next-token accuracy on the test files",
        "parse_rate": "completed functions that `ast.parse` accepts",
        "runs": "runs",
        "run": "run",
    },
    "README.zh-CN.md": {
        "lead": "{machine}，{threads} 线程，torch {torch}，{n}取中位数：",
        "journey_seconds": "全程，秒",
        "parameters": "参数量",
        "tokens": "训练词元数",
        "val_loss": "验证损失，奈特/词元",
        "test_loss": "测试损失，奈特/词元",
        "test_bits_per_byte": "测试集每字节比特数",
        "lzma_bits_per_byte": "LZMA2（preset 9 extreme），逐个测试文件",
        "lzma_stream_bits_per_byte": "LZMA2，全部测试文件合为一流",
        "test_accuracy": "测试集下一词元准确率",
        "parse_rate": "续写的函数中 `ast.parse` 接受的比例",
        "runs": " 次",
        "run": " 次",
    },
}
SHARES = ("test_accuracy", "parse_rate")
COUNTS = ("parameters", "tokens", "journey_seconds")


SPEED = {
    "README.md": {
        "head": ("the same work on the same machine, in turn", "hasten is so many times as fast"),
        "step": "a training step, {} decoder, against the fastest peer ({})",
        "defaults": "the same against transformers' Trainer as it comes",
        "loss": "training to the loss of a tuned GPT-2 with AdamW after {:g} minutes",
        "writing": "110M decoder writing, {} at once, against {}",
        "sizes": {"compare-s": "10M", "compare-m": "51M"},
    },
    "README.zh-CN.md": {
        "head": ("同一台机器上同样的工作，轮流进行", "hasten 快多少倍"),
        "step": "一个训练步，{} 解码器，对最快的同类（{}）",
        "defaults": "同上，对默认设置的 transformers Trainer",
        "loss": "训练到调好的 GPT-2 + AdamW 用 {:g} 分钟达到的损失",
        "writing": "110M 解码器生成，同时 {} 段，对 {}",
        "sizes": {"compare-s": "10M", "compare-m": "51M"},
    },
}


def read(stem: str) -> dict[str, Any]:
    """A result file, empty where it was not measured."""
    path = RESULTS / f"{stem}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def demo(name: str) -> str:
    """The demo's table for a README."""
    result, words = read("demo"), WORDS[name]
    repeats, machine = result["repeats"], result["environment"]
    number = len(repeats)
    lead = words["lead"].format(
        n=f"{number}{' ' if name == 'README.md' else ''}{words['run' if number == 1 else 'runs']}",
        machine=machine["processor"],
        threads=machine["threads"],
        torch=machine["torch"],
    )
    rows = [f"| {label} | {figure(key, repeats)} |" for key, label in words.items() if key in repeats[0]]
    return "\n".join([lead, "", "| | |", "| --- | --- |", *rows])


def speed(name: str) -> str:
    """The ratios to others for a README."""
    words: dict[str, Any] = SPEED[name]
    lines = ["| " + " | ".join(words["head"]) + " |", "| --- | --- |"]
    return "\n".join(lines + [f"| {what} | {ratio:.2f} |" for what, ratio in ratios(words)])


def ratios(words: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What was compared, and how many times as fast hasten was."""
    for stem, size in words["sizes"].items():
        if verdict := read(stem).get("verdict"):
            best = verdict["to_best_peer"]
            yield words["step"].format(size, best["peer"]), best["ratio"]
            yield words["defaults"], verdict["to_trainer_defaults"]["ratio"]
    if learned := read("time-to-loss"):
        yield words["loss"].format(learned["minutes"]), learned["ratio"]
    for case in read("generate").get("results", []):
        for peer, ratio in case["hasten_over"].items():
            yield words["writing"].format(case["rows"], peer), ratio


def block(path: Path, name: str) -> str:
    """What stands between two markers of a README, markers included."""
    return "\n".join([START.format(name), BLOCKS[name](path.name), END.format(name)])


BLOCKS: dict[str, Callable[[str], str]] = {"demo": demo, "speed": speed}


def figure(name: str, repeats: list[dict[str, Any]]) -> str:
    """The median of one figure, as people write it."""
    value = median(repeat[name] for repeat in repeats)
    if name in SHARES:
        return f"{value:.0%}"
    return f"{value:,.0f}" if name in COUNTS else f"{value:.3f}"


def main() -> None:
    """Replace every block in each README."""
    for path in (ROOT / name for name in WORDS):
        text = path.read_text(encoding="utf-8")
        for name in BLOCKS:
            old = f"{re.escape(START.format(name))}.*?{re.escape(END.format(name))}"
            text = re.sub(old, block(path, name).replace("\\", r"\\"), text, flags=re.S)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
