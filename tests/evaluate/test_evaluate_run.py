"""One call measures everything and writes evaluation.json whole."""

import json
import math
from dataclasses import asdict

import pytest

from hasten.core import config as configuration
from hasten.core.errors import ConfigError, DataError
from hasten.data.source import Document
from hasten.evaluate.baselines import baselines
from hasten.evaluate.code import Snippet, parse_rate
from hasten.evaluate.language import Windows, score_texts
from hasten.evaluate.run import CodeConfig, EvaluateConfig, evaluate
from hasten.evaluate.sample import sample
from hasten.model.config import ModelConfig
from hasten.model.transformer import Decoder, build
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig, train

DOCUMENTS = [
    Document(f"{i}.py", f"def f{i}(x):\n    y = x + {i}\n    return y\n\nprint(f{i}({i * i}))\n", source)
    for i, source in enumerate(["library", "library", "site", "library", "site", "site"])
]
EXACT = EvaluateConfig(precision="fp32", baselines=False)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train((d.text for d in DOCUMENTS), TokenizerConfig(vocab_size=280), progress=False)


@pytest.fixture(scope="module")
def model(tokenizer) -> Decoder:
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=32, num_layers=1, num_heads=2, max_positions=48, init_std=0.1
    )
    return build(shape, seed=0)


def test_the_figures_are_those_of_the_parts(model, tokenizer, tmp_path):
    path = tmp_path / "evaluation.json"
    config = EvaluateConfig(precision="fp32", stride=12)
    result = evaluate(model, tokenizer, DOCUMENTS, config, path=path, checkpoint="step-000007")
    texts = [d.text for d in DOCUMENTS]
    assert result["test"] == asdict(score_texts(model, tokenizer, texts, Windows(48, 12))[0])
    assert result["baselines"] == baselines(texts)
    assert result["checkpoint"] == "step-000007" and result["tokenizer"] == tokenizer.fingerprint
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"], "no temporary file is left"


def test_every_source_has_its_own_score_and_they_add_up(model, tokenizer):
    result = evaluate(model, tokenizer, DOCUMENTS, EXACT)
    assert list(result["sources"]) == ["library", "site"]
    for name, score in result["sources"].items():
        alone = evaluate(model, tokenizer, [d for d in DOCUMENTS if d.source == name], EXACT)
        assert "sources" not in alone
        for figure, value in alone["test"].items():
            assert score[figure] == pytest.approx(value, rel=1e-5), figure
    bits = sum(score["bits_per_byte"] * score["bytes"] for score in result["sources"].values())
    assert result["test"]["bits_per_byte"] == pytest.approx(bits / result["test"]["bytes"])


def test_a_model_that_knows_nothing_costs_the_logarithm_of_its_vocabulary(tokenizer, model):
    blank = build(model.config.model_copy(update={"tied": True}), seed=0)
    blank.embedding.weight.data.zero_()
    assert evaluate(blank, tokenizer, DOCUMENTS, EXACT)["test"]["loss"] == pytest.approx(
        math.log(tokenizer.vocab_size)
    )


def test_the_validation_split_is_named_as_such(model, tokenizer):
    result = evaluate(model, tokenizer, DOCUMENTS, EXACT.model_copy(update={"split": "validation"}))
    assert "validation" in result and "test" not in result


def test_code_is_measured_beside_its_authors_own(model, tokenizer):
    config = EXACT.model_copy(update={"code": CodeConfig(prompts=4, max_new_tokens=16)})
    code = evaluate(model, tokenizer, DOCUMENTS, config)["code"]
    assert code["snippets"] == code["authors"]["snippets"] == 4
    assert code["authors"]["rate"] == 1.0, "the documents are right Python"
    assert len(code["examples"]) == 4 and {len(e) for e in code["examples"]} == {4}
    again = [Snippet(e["prompt"], e["completion"], e["finished"]) for e in code["examples"]]
    assert parse_rate(again).parsed == code["parsed"] == sum(e["parses"] for e in code["examples"])
    assert evaluate(model, tokenizer, DOCUMENTS, config)["code"] == code, "the same seed, the same snippets"


def test_a_sample_has_whole_documents_in_their_order_and_says_how_many_there_were(model, tokenizer):
    config = EXACT.model_copy(update={"max_bytes": 100})
    result = evaluate(model, tokenizer, DOCUMENTS, config)
    assert result["test"]["documents"] == 2 and result["documents_available"] == 6
    drawn = sample(DOCUMENTS, 100, seed=0)
    assert drawn == [d for d in DOCUMENTS if d in drawn]
    assert sum(len(d.text.encode()) for d in drawn) >= 100 > len(drawn[0].text.encode())
    assert set(map(str, drawn)) == set(map(str, sample(DOCUMENTS[::-1], 100, seed=0)))
    assert len({tuple(map(str, sample(DOCUMENTS, 100, seed))) for seed in range(9)}) > 1


def test_no_documents_are_refused(model, tokenizer):
    with pytest.raises(DataError, match=r"no document in the test split .* give it a share in data.split"):
        evaluate(model, tokenizer, [], EXACT)


def test_a_context_beyond_the_models_is_refused(model, tokenizer):
    with pytest.raises(ConfigError, match=r"evaluate\.context is 64 and the model sees 48 tokens at most"):
        evaluate(model, tokenizer, DOCUMENTS, EXACT.model_copy(update={"context": 64}))


def test_continuations_that_leave_no_room_for_a_prompt_are_refused(model, tokenizer):
    config = EXACT.model_copy(update={"code": CodeConfig(max_new_tokens=48)})
    with pytest.raises(ConfigError, match="max_new_tokens is 48 and the model's whole context 48; write 24"):
        evaluate(model, tokenizer, DOCUMENTS, config)


def test_documents_without_a_function_have_no_parse_rate_and_that_is_said(model, tokenizer, capsys):
    config = EXACT.model_copy(update={"code": CodeConfig(max_new_tokens=8)})
    assert evaluate(model, tokenizer, [Document("a", "some prose", "s")], config)["code"] is None
    assert "none of 1 documents holds a Python function: no parse rate" in capsys.readouterr().out


def test_a_tokenizer_of_another_model_is_refused(model, tokenizer):
    small = build(model.config.model_copy(update={"vocab_size": 100}), seed=0)
    with pytest.raises(ConfigError, match="they don't belong together"):
        evaluate(small, tokenizer, DOCUMENTS, EXACT)


def test_the_configuration_survives_yaml_and_names_a_wrong_key(tmp_path):
    path = tmp_path / "evaluate.yaml"
    config = EvaluateConfig(stride=7, code=CodeConfig(prompts=3, top_p=None))
    path.write_text(configuration.dump(config))
    assert configuration.load(EvaluateConfig, path) == config
    with pytest.raises(ConfigError, match="Did you mean 'stride'"):
        configuration.load(EvaluateConfig, path, ["strid=3"])
