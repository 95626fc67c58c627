"""What a model writes is what `generate` writes, and every metric gets what it is to compare."""

import numpy as np
import pytest
import sacrebleu
from pydantic import ValidationError

from hasten.core.errors import ConfigError, DataError
from hasten.evaluate import sandbox
from hasten.evaluate.answers import score_answers
from hasten.evaluate.interval import NORMAL_95
from hasten.evaluate.programs import problem_of
from hasten.evaluate.rouge import lead, score_rouge
from hasten.evaluate.sandbox import Verdict
from hasten.evaluate.translation import overlap
from hasten.evaluate.written import Asked, WrittenConfig, judge, score_written, stops, write
from hasten.generate.config import GenerateConfig
from hasten.generate.engine import generate
from hasten.model.config import ModelConfig
from hasten.model.transformer import build

SHAPE = {"vocab_size": 258, "dim": 32, "num_layers": 1, "num_heads": 2, "max_positions": 160, "init_std": 0.3}
SOURCES = ["A dog runs. It is fast. It barks. It stops.", "Two men sit. They talk. They go. They eat."]
SUMMARIES = [("A fast dog barks.", "A dog stops."), ("Two men talk and eat.",)]
ROW = {"text": "Add.", "code": "x = 1", "test_setup_code": "", "test_list": ["assert x == 1"], "task_id": 1}
PROBLEM = problem_of(ROW, "here")


@pytest.fixture(scope="module")
def letters(byte_tokenizer):
    return byte_tokenizer("<|endoftext|>", "<|pad|>")


@pytest.fixture(scope="module")
def decoder():
    return build(ModelConfig.model_validate(SHAPE), seed=0)


@pytest.fixture(scope="module")
def seq2seq():
    return build(ModelConfig.model_validate({**SHAPE, "kind": "seq2seq"}), seed=0)


def config(metric: str, **fields) -> WrittenConfig:
    return WrittenConfig(metric=metric, **{"max_new_tokens": 12, **fields})


@pytest.mark.parametrize("kind", ["decoder", "seq2seq"])
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_generate(kind, beams, letters, request):
    model = request.getfixturevalue(kind)
    wanted = generate(model, letters, SOURCES, GenerateConfig(temperature=0, beams=beams, max_new_tokens=12))
    found = write(model, letters, [Asked(text) for text in SOURCES], config("rouge", beams=beams))
    assert [one.text for one in found] == [one.text for one in wanted]
    assert [one.stopped_by for one in found] == [one.stopped_by for one in wanted]


@pytest.mark.parametrize("kind", ["decoder", "seq2seq"])
def test_ids_are_read_as_they_are(kind, letters, request):
    model = request.getfixturevalue(kind)
    if kind == "decoder":
        ids = [(letters.bos_id, *letters.encode(text)) for text in SOURCES]
    else:
        ids = [(*letters.encode(text), letters.eot_id) for text in SOURCES]
    plain = GenerateConfig(temperature=0, beams=1, max_new_tokens=12, heal_prompt=False)
    wanted = generate(model, letters, SOURCES, plain)
    found = write(model, letters, [Asked(some) for some in ids], config("rouge"))
    assert [one.tokens for one in found] == [one.tokens for one in wanted]


def summaries() -> list[Asked]:
    return [
        Asked(f"{text}\n\nTL;DR:", golds, source=text) for text, golds in zip(SOURCES, SUMMARIES, strict=True)
    ]


def test_a_record_of_summaries_has_the_lead_beside_it(decoder, letters):
    found = score_written(decoder, letters, summaries(), config("rouge", examples=1))
    texts = [one.text for one in write(decoder, letters, summaries(), config("rouge"))]
    assert found["score"] == score_rouge(texts, SUMMARIES).rougeL.score
    assert found["figures"]["rouge2"]["score"] == score_rouge(texts, SUMMARIES).rouge2.score
    leads = score_rouge([lead(text, 3) for text in SOURCES], SUMMARIES)
    assert (found["baseline"]["name"], found["baseline"]["score"]) == ("lead-3", leads.rougeL.score)
    assert found["baseline"]["score"] > 0 and found["baseline"]["signature"] == found["signature"]
    assert [example["references"] for example in found["examples"]] == [list(SUMMARIES[0])]
    assert found["examples"][0]["text"] == texts[0] and found["asked"] == 2
    assert found["unfinished"] == 2 and found["tokens"] == 24
    assert score_written(decoder, letters, summaries(), config("rouge", lead=None))["baseline"] is None
    one = score_written(decoder, letters, summaries(), config("rouge", lead=1))
    assert one["baseline"]["name"] == "lead-1"


def test_bleu_takes_several_references():
    texts = ["A fast dog barks loudly now.", "Two men talk and they eat."]
    found = judge(texts, summaries(), config("bleu"))
    streams = [["A fast dog barks.", "Two men talk and eat."], ["A dog stops.", None]]
    assert found.score == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score)
    assert found.figures["chrf"]["score"] == pytest.approx(sacrebleu.corpus_chrf(texts, streams).score)
    assert "tok:13a" in found.signature and found.interval > 0
    chinese = judge(["我想到的"], [Asked("", ("我想到的事",))], config("bleu"))
    assert "tok:zh" in chinese.signature and chinese.score > 0
    one = overlap(sacrebleu.BLEU(), texts, [("A fast dog barks.", "Two men talk and eat.")])
    assert "nrefs:1" in one.signature


def test_answers_and_exact_matches_are_compared_without_white_space_around():
    asked = [Asked("", ("Paris", "the city")), Asked("", ()), Asked("", ("Rome",))]
    texts = [" Paris\n", "", "in Rome"]
    found = judge(texts, asked, config("answers"))
    plain = score_answers(["Paris", "", "in Rome"], [one.references for one in asked])
    assert (found.score, found.signature) == (plain.f1, plain.signature)
    assert found.figures["exact"] == plain.exact
    exact = judge(texts[::2], asked[::2], config("exact"))
    assert (exact.score, exact.figures) == (50, {"right": 1, "texts": 2})
    assert judge(["北京。"], [Asked("", ("北京",))], config("answers")).signature.startswith("rule:cmrc2018")
    assert judge(["北京。"], [Asked("", ("北京",))], config("answers", rule="squad")).score == 0


def test_programs_are_judged_sample_by_sample(monkeypatch):
    seen = []

    def run(programs, _, on_done):
        seen.extend(programs)
        on_done(len(programs))
        return [Verdict("passed" if "x = 1" in program.text else "failed") for program in programs]

    monkeypatch.setattr(sandbox, "run", run)
    asked = [Asked("", problem=PROBLEM), Asked("", problem=PROBLEM)]
    fields = {"samples": 2, "temperature": 0.8, "k": (1, 2)}
    texts = ["x = 1\n[DONE] more", "x = 2", "x = 3", "x = 4"]
    found = judge(texts, asked, config("programs", **fields))
    assert [program.text for program in seen] == ["x = 1\n", "x = 2", "x = 3", "x = 4"]
    assert seen[0].tests == PROBLEM.tests
    assert found.score == 25 and found.figures["pass@2"]["score"] == 0.5
    assert found.interval == pytest.approx(100 * NORMAL_95 * np.std([0.5, 0], ddof=1) / np.sqrt(2))
    assert found.signature.startswith("pass@1|samples:2|temperature:0.8")


def test_a_program_ends_where_its_format_says_unless_it_was_rendered_for_a_chat(decoder, letters):
    asked = [Asked(PROBLEM.prompt(), problem=PROBLEM)]
    settings = config("programs", max_new_tokens=40, stop=("zz",))
    assert stops(asked, settings) == ("zz", "[DONE]")
    assert stops([Asked((1, 2), problem=PROBLEM)], settings) == ("zz",)
    drawn = {"samples": 2, "temperature": 1.0, "max_new_tokens": 6}
    written = write(decoder, letters, asked, config("programs", **drawn))
    assert len(written) == 2 and written[0].seed != written[1].seed


def test_what_cannot_be_scored_is_named(decoder, letters):
    with pytest.raises(DataError, match="nothing to write an answer to"):
        score_written(decoder, letters, [], config("rouge"))
    with pytest.raises(DataError, match="item 1 has no reference"):
        judge(["a", "b"], [Asked("", ("a",)), Asked("")], config("rouge"))
    with pytest.raises(DataError, match="item 0 has no problem"):
        judge(["a"], [Asked("")], config("programs"))
    with pytest.raises(DataError, match="tokens and the model's context"):
        score_written(decoder, letters, [Asked("x" * 200, ("a",))], config("rouge"))
    encoder = build(ModelConfig.model_validate({**SHAPE, "kind": "encoder"}), seed=0)
    with pytest.raises(ConfigError, match="is an encoder"):
        score_written(encoder, letters, summaries(), config("rouge"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "rouge", "samples": 2}, "samples is for programs"),
        ({"metric": "programs", "samples": 2}, "the same program each time"),
        ({"metric": "programs", "k": (1, 5)}, "write a k of 1 to samples"),
        ({"metric": "programs", "k": ()}, "write a k of 1 to samples"),
    ],
)
def test_settings_that_contradict_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        WrittenConfig(**fields)
