"""BLEU and chrF are sacreBLEU's, references are scored as one by one, and translations keep their lines."""

import io
import json

import pytest
import sacrebleu
import torch

from hasten.core import config as configuration
from hasten.core.errors import ConfigError, DataError
from hasten.data.pairs import Pair
from hasten.evaluate.run import EvaluateConfig, evaluate_pairs
from hasten.evaluate.translation import (
    TranslationConfig,
    bleu,
    chrf,
    score_references,
    score_translations,
    words_of,
)
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.generate.translate import translate
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, Seq2Seq, build
from hasten.report.files import Evaluation

TEXTS = ["Ein Hund läuft durch den Schnee.", "Zwei Männer sitzen.", "Ein Mann mit Hut steht da."]
REFERENCES = ["Ein Hund rennt durch den Schnee.", "Zwei Männer sitzen auf einer Bank.", "Ein Mann steht da."]
SOURCES = ["A dog runs through the snow.", "Two men sit on a bench.", "A man stands there."]
PAIRS = [
    Pair(str(i), source, target, "made")
    for i, (source, target) in enumerate(zip(SOURCES, REFERENCES, strict=True))
]


@pytest.fixture(scope="module")
def letters(byte_tokenizer):
    return byte_tokenizer("<|endoftext|>", "<|pad|>")


@pytest.fixture(scope="module")
def model() -> Seq2Seq:
    shape = {"kind": "seq2seq", "vocab_size": 258, "dim": 32, "num_layers": 1, "num_heads": 2}
    built = build(ModelConfig.model_validate({**shape, "max_positions": 64, "init_std": 0.2}), seed=0)
    assert isinstance(built, Seq2Seq)
    return built


def test_bleu_and_chrf_are_those_of_sacrebleu_with_its_signature():
    mine, theirs = bleu(TEXTS, REFERENCES, "13a"), sacrebleu.corpus_bleu(TEXTS, [REFERENCES])
    assert mine.score == pytest.approx(theirs.score)
    assert mine.interval is not None and mine.interval > 0
    for part in ("nrefs:1", "case:mixed", "tok:13a", "smooth:exp", f"version:{sacrebleu.__version__}"):
        assert part in mine.signature
    assert chrf(TEXTS, REFERENCES).score == pytest.approx(sacrebleu.corpus_chrf(TEXTS, [REFERENCES]).score)


def test_one_pair_has_no_interval():
    assert bleu(TEXTS[:1], REFERENCES[:1], "13a").interval is None


@pytest.mark.parametrize(
    "reference, words",
    [
        ("Ein Mann steht.", "13a"),
        ("这是我唯一能想到的事了。", "zh"),
        ("使用 GTK+ 3.0 打开文件", "zh"),
        ("犬が雪の中を走る。", "char"),
        ("...", "13a"),
    ],
)
def test_words_are_counted_as_the_script_of_the_references_asks(reference, words):
    assert words_of([reference]) == words


def test_chinese_is_cut_into_characters():
    texts, references = ["我唯一能想到的"], ["我唯一想到的事"]
    assert bleu(texts, references, "13a").score == 0
    mine = bleu(texts, references, "zh")
    assert mine.score == pytest.approx(sacrebleu.corpus_bleu(texts, [references], tokenize="zh").score)
    assert mine.score > 0 and "tok:zh" in mine.signature


def test_references_are_scored_as_one_by_one_in_float64(model, letters):
    score = score_references(model, letters, PAIRS, batch_tokens=100)
    double = build(model.config, seed=0).double().eval()
    total, right, count = 0.0, 0, 0
    for pair in PAIRS:
        source = torch.tensor([[*letters.encode(pair.source), letters.eot_id]])
        target = torch.tensor([*letters.encode(pair.target), letters.eot_id])
        begun = torch.cat((torch.tensor([letters.bos_id]), target[:-1]))[None]
        with torch.no_grad():
            logits = double.logits(double(begun, source=source))[0]
        total -= float(logits.log_softmax(-1).gather(1, target[:, None]).sum())
        right, count = right + int((logits.argmax(-1) == target).sum()), count + len(target)
    assert score.loss == pytest.approx(total / count, rel=1e-5)
    assert (score.tokens, score.documents) == (count, len(PAIRS))
    assert score.accuracy == pytest.approx(right / count)
    assert score.bytes == sum(len(pair.target.encode()) for pair in PAIRS)


def test_translations_are_those_of_generate_and_their_figures_add_up(model, letters):
    config = TranslationConfig(beams=2, max_new_tokens=12, examples=2, batch_rows=2)
    score = score_translations(model, letters, PAIRS, config)
    wanted = generate(model, letters, SOURCES, GenerateConfig(beams=2, max_new_tokens=12))
    assert [example.text for example in score.examples] == [c.text for c in wanted[:2]]
    assert [example.reference for example in score.examples] == REFERENCES[:2]
    assert score.tokens == sum(len(c.tokens) for c in wanted)
    assert score.unfinished == sum(c.stopped_by != "end_of_text" for c in wanted)
    assert score.bleu.score == pytest.approx(
        sacrebleu.corpus_bleu([c.text for c in wanted], [REFERENCES]).score
    )


class Prepared:
    """What evaluating reads of prepared data."""

    def __init__(self) -> None:
        self.splits = {"test": {}}

    def texts(self, split):
        from hasten.data.pairs import join
        from hasten.data.source import Document

        return [Document(pair.id, join(pair.source, pair.target), "made") for pair in PAIRS]


def test_evaluation_json_holds_all_and_the_report_reads_it(model, letters, tmp_path):
    path = tmp_path / "evaluation.json"
    config = EvaluateConfig(translation=TranslationConfig(beams=2, max_new_tokens=8))
    evaluate_pairs(model, letters, Prepared(), config, path=path)
    read = Evaluation.model_validate_json(path.read_bytes())
    assert read.translation is not None and read.test is not None
    assert (read.translation.pairs, read.translation.split, read.translation.beams) == (3, "test", 2)
    assert json.loads(path.read_text())["documents_available"] == 3


def test_a_split_without_pairs_is_refused(model, letters):
    with pytest.raises(DataError, match="there is no pair in the validation split to evaluate on; give it"):
        evaluate_pairs(model, letters, Prepared(), EvaluateConfig(split="validation"))


def test_a_translation_may_be_left_out(model, letters):
    result = evaluate_pairs(
        model, letters, Prepared(), configuration.parse(EvaluateConfig, {"translation": None}, "")
    )
    assert "translation" not in result and result["test"]["documents"] == 3


def lines_of(model, letters, lines, **options) -> list[str]:
    out = io.StringIO()
    config = GenerateConfig(beams=2, max_new_tokens=10)
    translate(model, letters, lines, config, out.write, **options)
    return out.getvalue().split("\n")


@pytest.mark.parametrize("chunk_lines", [1, 2, 100])
def test_each_line_is_translated_in_its_place(model, letters, chunk_lines):
    lines = [f"{source}\n" for source in [SOURCES[2], "", *SOURCES, "  "]]
    done = []
    found = lines_of(
        model, letters, lines, chunk_lines=chunk_lines, progress=lambda work: done.append(work.lines)
    )
    alone = [lines_of(model, letters, [line])[0] if line.strip() else "" for line in lines]
    assert found == [*alone, ""]
    assert found[1] == found[5] == "" and done[-1] == len(lines)


def test_a_line_that_is_too_long_is_named(model, letters):
    with pytest.raises(DataError, match=r"lines 3 to 4: the source 'xxx.* has 91 tokens and the model reads"):
        lines_of(model, letters, ["a\n", "b\n", "c\n", "x" * 90], chunk_lines=2)


def test_a_model_that_reads_no_source_translates_nothing(letters):
    decoder = build(ModelConfig(vocab_size=258, dim=32, num_layers=1, num_heads=2), seed=0)
    assert isinstance(decoder, Decoder)
    with pytest.raises(ConfigError, match="this model reads no source, so it cannot translate"):
        lines_of(decoder, letters, ["a"])


def test_a_line_has_one_translation(model, letters):
    config = GenerateConfig(beams=3, samples_per_prompt=2)
    with pytest.raises(ConfigError, match=r"samples_per_prompt is 2, and each line has one translation"):
        translate(model, letters, ["a"], config, print)


def test_the_interval_is_as_wide_as_sacrebleus():
    texts, references = TEXTS * 30, [*REFERENCES * 20, *TEXTS * 10]
    theirs = sacrebleu.metrics.BLEU().corpus_score(texts, [references], n_bootstrap=1000)
    assert bleu(texts, references, "13a").interval == pytest.approx(theirs._ci, rel=0.15)


def test_texts_without_a_common_word_have_an_interval_too():
    assert bleu(["a", "b"], ["c", "d"], "13a").interval == 0
