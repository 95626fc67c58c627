"""An encoder's score on hidden tokens, against a model of which everything is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten.core.batch import IGNORE
from hasten.core.config import parse
from hasten.core.errors import ConfigError, DataError
from hasten.data.config import DataConfig, MaskingConfig
from hasten.data.masked import MaskedCorpus
from hasten.data.prepare import prepare
from hasten.data.shards import Shards, ShardWriter
from hasten.evaluate.masked import score_masked
from hasten.evaluate.run import EvaluateConfig, evaluate_masked
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.tokenizer.tokenizer import Tokenizer

VOCAB, EOT, ROW = 258, 256, 32


class Oracle(nn.Module):
    """Knows that numbers count upwards: from the token to the left, unless hidden, it knows the next."""

    config = ModelConfig(kind="encoder", vocab_size=VOCAB, max_positions=ROW)

    def __init__(self, mask_id: int, sharpness: float) -> None:
        super().__init__()
        self.one, self.mask_id, self.sharpness = nn.Parameter(torch.ones(1)), mask_id, sharpness

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        left = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)
        return torch.where(left == self.mask_id, 0, left + 1)[..., None].float()

    def logits(self, hidden: Tensor) -> Tensor:
        known = nn.functional.one_hot(hidden[..., 0].long().clamp(max=VOCAB - 1), VOCAB).float()
        return self.sharpness * known


def write(folder: Path, split: str, documents: list[list[int]]) -> None:
    (folder / split).mkdir(parents=True)
    writer = ShardWriter("numbers", VOCAB, EOT, EOT)
    for number, ids in enumerate(documents):
        writer.add(str(number), ids, len(ids))
    writer.write(folder / split / "numbers-00000.safetensors")


@pytest.fixture
def made(tmp_path: Path, byte_tokenizer: Any) -> tuple[Tokenizer, MaskedCorpus, dict[str, Shards]]:
    """Numbers that count upwards from 10 on; in training 60 is commonest, and 61 never comes."""
    write(tmp_path, "test", [list(range(10, 40)), list(range(20, 70)), [5]])
    write(tmp_path, "train", [list(range(10, 61)), [60, 60, 60, 60]])
    tokenizer = byte_tokenizer("<|endoftext|>", "<|mask|>")
    masking = MaskingConfig(share=0.2, as_mask=1.0, as_random=0.0)
    corpus = MaskedCorpus(tmp_path, "test", ROW, 0, tokenizer=tokenizer, masking=masking)
    return tokenizer, corpus, {"numbers": Shards([tmp_path / "train" / "numbers-00000.safetensors"])}


def test_accuracy_loss_and_guesses_are_those_of_a_count_by_hand(made):
    tokenizer, corpus, training = made
    score = score_masked(Oracle(tokenizer.mask_id, 8.0), tokenizer, corpus, training)
    right = behind = commonest = total = 0
    for batch in corpus.sweep(1):
        text = torch.where(batch.targets != IGNORE, batch.targets, batch.tokens)[0].tolist()
        segments = batch.segments[0].tolist()
        for t in (batch.targets[0] != IGNORE).nonzero().flatten().tolist():
            first, token = t == 0 or segments[t - 1] != segments[t], text[t]
            total += 1
            right += (
                not first and int(batch.tokens[0, t - 1]) != tokenizer.mask_id and text[t - 1] + 1 == token
            )
            left = EOT if first else text[t - 1]
            behind += {EOT: 10}.get(left, left + 1 if left < 60 else 60) == token
            commonest += token == 60
    assert (score.tokens, score.baselines["unigram"]) == (total, commonest / total)
    assert score.accuracy == right / total
    assert score.baselines["bigram"] == pytest.approx(behind / total)
    assert score.baselines["both_neighbours"] >= score.baselines["bigram"]
    sure = math.log(math.exp(8) + VOCAB - 1)
    assert score.loss == pytest.approx(sure - 8 * right / total, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.counted_tokens == 55
    assert 0 < score.stderr < 0.5


def test_a_part_of_the_rows_is_scored_where_that_is_asked(made):
    tokenizer, corpus, training = made
    model = Oracle(tokenizer.mask_id, 8.0)
    whole, part = (score_masked(model, tokenizer, corpus, training, rows=rows) for rows in (None, 1))
    assert part.tokens < whole.tokens and part.stderr is None
    assert part == score_masked(model, tokenizer, corpus, training, rows=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    draw = np.random.default_rng(0)
    words = np.array(["red", "old", "tall", "house", "river", "bird", "sings", "runs"])
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(draw.choice(words, 60)))
    data = parse(
        DataConfig,
        {
            "sources": [str(folder)],
            "tokenizer": {"vocab_size": 270, "special_tokens": ["<|mask|>"]},
            "row_tokens": 64,
            "cache": folder / "cache",
            "split": {"validation": 0, "test": 0.2, "by": "document"},
            "clean": {"profile": "off", "near_duplicates": None},
        },
        "recipe.yaml",
    )
    return data, prepare(data, progress=False)


def test_an_evaluation_is_written_down_with_all_that_it_depends_on(prepared, tmp_path):
    data, found = prepared
    tokenizer = Tokenizer.load(found.tokenizer)
    model = build(ModelConfig(kind="encoder", vocab_size=270, dim=16, num_layers=1, num_heads=2), 0)
    path = tmp_path / "evaluation.json"
    result = evaluate_masked(model, tokenizer, found, data, EvaluateConfig(), path=path, checkpoint="here")
    masked = result["masked"]
    assert masked["split"] == "test" and masked["loss"] == pytest.approx(math.log(270), rel=0.05)
    assert masked["baselines"]["bigram"] >= masked["baselines"]["unigram"] > 0
    assert path.exists() and result["checkpoint"] == "here"
    sampled = evaluate_masked(model, tokenizer, found, data, EvaluateConfig(max_bytes=100))
    assert sampled["masked"]["tokens"] < masked["tokens"]


def test_a_model_that_spells_differently_is_refused(prepared, byte_tokenizer):
    data, found = prepared
    model = build(ModelConfig(kind="encoder", vocab_size=270, dim=16, num_layers=1, num_heads=2), 0)
    with pytest.raises(ConfigError, match=r"tokenizer is not that of .*; write data.tokenizer=there"):
        evaluate_masked(
            model,
            byte_tokenizer("<|endoftext|>", "<|mask|>"),
            found,
            data,
            EvaluateConfig(),
            checkpoint="there",
        )
    with pytest.raises(DataError, match="there is no validation split"):
        tokenizer = Tokenizer.load(found.tokenizer)
        evaluate_masked(model, tokenizer, found, data, EvaluateConfig(split="validation"))
