"""Write the demo's figures into both READMEs from bench/results/demo.json: python bench/readme.py"""

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench/results/demo.json"
START = "<!-- demo: made by bench/readme.py from bench/results/demo.json -->"
END = "<!-- /demo -->"
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


def block(path: Path) -> str:
    """The table for a README, markers included."""
    result, words = json.loads(RESULT.read_text(encoding="utf-8")), WORDS[path.name]
    repeats, machine = result["repeats"], result["environment"]
    number = len(repeats)
    lead = words["lead"].format(
        n=f"{number}{' ' if path.name == 'README.md' else ''}{words['run' if number == 1 else 'runs']}",
        machine=machine["processor"],
        threads=machine["threads"],
        torch=machine["torch"],
    )
    rows = [f"| {label} | {figure(name, repeats)} |" for name, label in words.items() if name in repeats[0]]
    return "\n".join([START, lead, "", "| | |", "| --- | --- |", *rows, END])


def figure(name: str, repeats: list[dict[str, Any]]) -> str:
    """The median of one figure, as people write it."""
    value = median(repeat[name] for repeat in repeats)
    if name in SHARES:
        return f"{value:.0%}"
    return f"{value:,.0f}" if name in COUNTS else f"{value:.3f}"


def main() -> None:
    """Replace the block in each README."""
    for name in WORDS:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        new = re.sub(f"{START}.*?{END}", block(path).replace("\\", r"\\"), text, flags=re.S)
        path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
