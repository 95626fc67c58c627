"""A run's folder is read whole, and what is wrong in it is named."""

import pytest

from hasten.core.errors import ConfigError, DataError
from hasten.model.config import ModelConfig
from hasten.report.files import read_run, read_runs


def test_everything_a_run_left_is_read(make_run):
    run = read_run(make_run("first", steps=30))
    assert run.name == "first" and run.recipe["train"]["steps"] == 30
    assert run.evaluation.score.tokens == 176_000 and run.evaluation.code.authors.rate == 0.99
    assert run.data.clean.dropped["too_short"].examples[0].id == "lib/antigravity.py"
    assert run.samples[0].stopped_by == "length" and run.training.steps == 30
    expected = ModelConfig(vocab_size=4096, dim=256, num_layers=4, num_heads=4, max_positions=512)
    assert run.parameters == expected.num_parameters


def test_metrics_alone_are_enough(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": 8.0}\n{"step": 2, "kin')
    run = read_run(tmp_path)
    assert run.metrics == [{"step": 1, "kind": "train", "loss": 8.0}], (
        "the line that is being written is not one"
    )
    assert run.evaluation is run.training is run.data is run.parameters is None
    assert (run.samples, run.environment, run.quarantined) == ([], {}, 0)


def test_the_split_that_was_evaluated_is_found(make_run):
    folder = make_run()
    text = (folder / "evaluation.json").read_text()
    (folder / "evaluation.json").write_text(text.replace('"test"', '"validation"'))
    assert read_run(folder).evaluation.score.bytes == 600_000


def test_runs_of_one_name_are_told_apart(make_run):
    first, second = make_run("here/run"), make_run("there/run")
    assert [run.name for run in read_runs([first, second])] == [str(first), str(second)]


def test_quarantined_batches_are_counted(make_run):
    folder = make_run()
    (folder / "quarantine.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert read_run(folder).quarantined == 2


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no metrics.jsonl; give the folder of a run that has begun"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        (
            "evaluation.json",
            '{"test": {"loss": "low"}}',
            r"evaluation.json: test.bits_per_byte: Field required",
        ),
        ("evaluation.json", "{", r"evaluation.json: Invalid JSON"),
        (
            "samples.json",
            '[{"prompt": 3, "text": "x"}]',
            r"samples.json: 0.prompt: Input should be a valid string",
        ),
        ("environment.json", '{"a": {"b": 1}}', r"environment.json: a"),
        ("training.json", '{"steps": 1, "tokens": 1, "seconds": NaN}', r"training.json: seconds: .* finite"),
        ("data.json", '{"clean": []}', r"data.json: clean: Input should be"),
        ("data.json", "[" * 100_000, r"data.json: Invalid JSON"),
    ],
)
def test_a_file_that_is_not_as_hasten_writes_it_is_named(make_run, file, text, complaint):
    folder = make_run()
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=complaint + r"[\s\S]*remove the file or write it anew"):
        read_run(folder)


def test_a_checkpoint_whose_model_is_unreadable_is_named(make_run):
    folder = make_run(steps=20)
    (folder / "checkpoints/step-000020/model.yaml").write_text("dimm: 3")
    with pytest.raises(DataError, match=r"model.yaml.*no field 'dimm'"):
        read_run(folder)


def test_a_recipe_that_is_not_yaml_is_named(make_run):
    folder = make_run()
    (folder / "recipe.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"recipe.yaml: .*UTF-8"):
        read_run(folder)
