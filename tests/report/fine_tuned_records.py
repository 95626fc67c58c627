"""Records of fine-tuned models as hasten writes them, with one text wherever there can be one."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hasten.adapt.config import LoraConfig
from hasten.adapt.lora import adapt
from hasten.core.batch import IGNORE
from hasten.core.config import dump
from hasten.data.tasks.findings import Finding
from hasten.data.tasks.protocol import Example, Unit
from hasten.data.tasks.rendered import samples_json
from hasten.evaluate.answers import score_answers
from hasten.evaluate.programs import pass_record
from hasten.evaluate.sandbox import Verdict
from hasten.evaluate.spans import AnswerExample, SpansScore, as_record
from hasten.evaluate.supervised import PreferenceScore, SupervisedScore
from hasten.evaluate.written import Asked, WrittenConfig, baseline, judge
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.load import AdapterNote
from hasten.trust import record

Record = dict[str, Any]
SHAPE = ModelConfig(vocab_size=260, dim=32, num_layers=2, num_heads=2, max_positions=64)
FINDINGS = (
    Finding("empty", True, "each of 8 rows has text"),
    Finding("truncated", False, "1 of 8 rows is left out", ("rows.jsonl:3",), stops=False),
    Finding("leak", False, "2 of 3 held-out rows are in training", ("rows.jsonl:1", "rows.jsonl:2")),
    Finding("labels", False, "'spots' is a label once"),
)


def found_answers(text: str) -> Record:
    """Three questions: one answered right, one wrong, one without an answer."""
    context = f"Before it {text} stands, and after it nothing."
    given, references = [text, "after it", ""], [[text], [text], []]
    examples = [
        AnswerExample(f"{text}?", context, answer, golds, 100.0 * hit, 100.0 * hit)
        for answer, golds, hit in zip(given, references, (1, 0, 1), strict=True)
    ]
    score = SpansScore(score_answers(given, references), 1, -0.25, 40, examples)
    return {"answers": as_record(score, "test")}


def learnt_answers(before: float = 2.0, after: float = 1.5) -> Record:
    """The loss of answers before and after."""
    scores = [SupervisedScore(loss, 9.0, 0.5, 1200) for loss in (after, before)]
    return {"supervised": {"split": "test", **asdict(scores[0]), "base": asdict(scores[1])}}


def written(metric: Any, text: str) -> Record:
    """Two answers, the second as it should be."""
    source = "The answer is good. All else is not."
    asked = [Asked("a prompt", ("the answer is good",), source)] * 2
    config = WrittenConfig(metric=metric, rule="squad")
    judged = judge(["nothing of that", "the answer is good"], asked, config)
    figures = {"metric": metric, **asdict(judged), "baseline": baseline(asked, config)}
    return {"written": common(text) | figures}


def programs(text: str) -> Record:
    """Two problems with two programs each."""
    kinds: Any = (("passed", "failed"), ("timeout", "failed"))
    figures = pass_record([[Verdict(kind) for kind in group] for group in kinds], (1, 2))
    judged = {"score": 25.0, "interval": 49.0, "signature": "pass@1|samples:2", "figures": figures}
    return {"written": {**common(text), "metric": "programs", **judged, "baseline": None}}


def common(text: str) -> Record:
    """What a record of written texts has, whatever the metric."""
    example = {"prompt": text, "text": text, "references": [text], "stopped_by": text}
    return {"asked": 2, "tokens": 9, "tokens_per_second": 31.5, "unfinished": 1, "examples": [example]}


def preferences() -> Record:
    """What people prefer."""
    return {"preferences": {"split": "test", "method": "dpo", **asdict(PreferenceScore(0.75, 0.42, 0.6, 48))}}


def units(tokenizer: Tokenizer, text: str) -> list[Unit]:
    """A pair of answers to one prompt; only they and the end are learnt."""

    def answered(answer: str) -> Example:
        prompt, end = tokenizer.encode("say it: "), tokenizer.special_ids
        ids = [*prompt, *tokenizer.encode(answer), min(end)]
        return Example(ids[:-1], [*[IGNORE] * (len(prompt) - 1), *ids[len(prompt) :]])

    return [(answered(text), answered("no"))]


def checks(byte_tokenizer: Callable[..., Tokenizer], text: str) -> Record:
    """checks.json: one finding of each verdict, and a sample."""
    tokenizer = byte_tokenizer("</s>")
    planted = Finding("duplicates", False, text, (text,), stops=False)
    return record([*FINDINGS, planted], ("leak",), samples_json(units(tokenizer, text), tokenizer))


def put_adapter(checkpoint: Path, adaptation: LoraConfig, rank: int) -> Transformer:
    """A checkpoint with pairs beside a frozen model: what it was trained as."""
    (checkpoint / "weights").mkdir(parents=True, exist_ok=True)
    model = build(SHAPE, 0)
    adapt(model, adaptation, rank)
    trained: dict[str, torch.Tensor] = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    save_file(trained, checkpoint / "weights/model.safetensors")
    (checkpoint / "model.yaml").write_text(dump(SHAPE))
    note = AdapterNote(base=Path("models/small"), digest="0" * 32, adaptation=adaptation, rank=rank)
    (checkpoint / "adapter.yaml").write_text(dump(note))
    return model
