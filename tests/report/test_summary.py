"""The summary's figures are those in the files."""

import json
from io import StringIO
from statistics import mean, median

import pytest
from fine_tuned_records import found_answers, learnt_answers, preferences, programs, put_adapter, written
from rich.console import Console

from hasten.adapt.config import LoraConfig
from hasten.core.errors import DataError
from hasten.core.files import write_json
from hasten.report.page import write_page
from hasten.report.summary import show, summary, table, write_summary


def lines(folder, kind):
    found = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def printed(folders, language="en"):
    text = StringIO()
    Console(width=120, file=text).print(table(folders, language))
    return text.getvalue()


def test_the_figures_are_those_of_the_files(make_run):
    folder = make_run("first", steps=150, final=2.0)
    figures, train = summary(folder), lines(folder, "train")
    assert figures["name"] == "first" and figures["steps"] == 150 and figures["tokens"] == 150 * 8192
    assert figures["train_loss"] == pytest.approx(mean(line["loss"] for line in train[-3:])), (
        "the last fiftieth"
    )
    validation = [line["validation_loss"] for line in lines(folder, "validation")]
    assert figures["validation_loss"] == validation[-1] and figures["best_validation_loss"] == min(validation)
    assert figures["tokens_per_second"] == median(line["tokens_per_second"] for line in train)
    assert figures["bits_per_byte"] == pytest.approx(0.9) and figures["accuracy"] == 0.513
    assert figures["lzma_stream"] == 1.87 and figures["parse_rate"] == 0.81
    assert figures["seconds"] == 150 * 0.41 + 9, "with what came after the last line"
    json.dumps(figures, allow_nan=False)


def test_what_the_files_do_not_tell_is_left_out(make_run, tmp_path):
    figures = summary(make_run("young", steps=40, evaluated=False))
    assert not {"bits_per_byte", "parameters", "parse_rate"} & set(figures)
    assert figures["seconds"] == pytest.approx(40 * 0.41)
    (tmp_path / "newborn").mkdir()
    (tmp_path / "newborn/metrics.jsonl").write_text("")
    assert summary(tmp_path / "newborn") == {"name": "newborn"}


def test_the_table_has_a_column_for_each_run_and_a_dash_where_one_has_no_figure(make_run):
    text = printed([make_run("old"), make_run("young", evaluated=False)])
    assert text.splitlines()[0].split() == ["old", "young"]
    (row,) = (line for line in text.splitlines() if line.startswith("Next-token accuracy"))
    assert row.split()[-2:] == ["51.3%", "–"]


def test_the_table_speaks_chinese(make_run):
    assert "每字节比特数" in printed([make_run()], "zh")


def test_showing_prints_the_table(make_run, capsys):
    show(make_run("first"), make_run("second"), language="zh")
    printed_lines = capsys.readouterr().out.splitlines()
    assert printed_lines[0].split() == ["first", "second"] and "参数" in printed_lines[1]


def test_brackets_in_a_name_are_no_markup(make_run):
    assert "[bold]run" in printed([make_run("[bold]run")])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no metrics.jsonl"):
        summary(tmp_path)


MASKED = {
    "split": "test",
    "accuracy": 0.52,
    "stderr": 0.004,
    "loss": 2.5,
    "perplexity": 12.2,
    "tokens": 30_000,
    "share": 0.15,
    "baselines": {"unigram": 0.08, "bigram": 0.24, "both_neighbours": 0.36},
}


def test_an_encoders_accuracy_stands_beside_the_guesses(make_run):
    folder = make_run(evaluated=False)
    write_json(folder / "evaluation.json", {"masked": MASKED})
    figures = summary(folder)
    assert (figures["masked_accuracy"], figures["loss"], figures["perplexity"]) == (0.52, 2.5, 12.2)
    assert figures["unigram_accuracy"] == 0.08 and figures["both_neighbours_accuracy"] == 0.36
    assert "accuracy" not in figures
    write_summary(folder, folder / "report.html")
    published = json.loads((folder / "summary.json").read_text())
    assert published["masked_accuracy"] == 0.52 and published["bigram_accuracy"] == 0.24
    page = write_page([folder]).read_text()
    for said in (
        "52.0%",
        "36.0%",
        "24.0%",
        "8.0%",
        "Guess from both neighbours",
        "按左右邻词元猜测",
        "掩盖：",
    ):
        assert said in page


def published(folder, evaluation):
    """summary.json of a run with this evaluation, and the table."""
    write_json(folder / "evaluation.json", evaluation)
    write_summary(folder, folder / "report.html")
    return json.loads((folder / "summary.json").read_text()), printed([folder])


def test_each_task_has_its_main_figures_in_the_summary_and_in_the_table(make_run):
    folder = make_run(evaluated=False)
    common = {"seconds", "tokens", "val_loss", "report"}
    found, text = published(folder, found_answers("here"))
    assert found.keys() == common | {"f1", "exact_match"} and found["f1"] == pytest.approx(200 / 3)
    assert "66.7" in text and "Exact match" in text
    found, text = published(folder, learnt_answers(2.0, 1.5))
    losses = {"test_loss": 1.5, "base_test_loss": 2.0, "test_loss_fall": 0.25, "test_accuracy": 0.5}
    assert found.keys() == common | losses.keys() and losses.items() <= found.items()
    assert "Fall of the test loss" in text and "25.0%" in text
    found, text = published(folder, preferences())
    assert found.keys() == common | {"preference_accuracy", "preference_margin"} and "75.0%" in text
    found, text = published(folder, programs("here"))
    assert found.keys() == common | {"pass@1", "pass@2"} and found["pass@1"] == 25.0 and "pass@2" in text
    rouge = written("rouge", "here")
    found, text = published(folder, rouge)
    assert found.keys() == common | {"rouge1", "rouge2", "rougeL", "rougeLsum", "lead_rougeL"}
    assert found["rougeL"] == rouge["written"]["score"] and "ROUGE-L of the first sentences" in text
    assert published(folder, written("bleu", "here"))[0].keys() == common | {"bleu", "chrf"}
    assert published(folder, written("exact", "here"))[0]["exact_match"] == 50.0


def test_pairs_beside_a_frozen_model_are_counted(make_run):
    folder = make_run(evaluated=False)
    model = put_adapter(folder / "checkpoints/step-000120", LoraConfig(), 4)
    found, text = published(folder, {})
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters()) - trained
    assert (found["trained_parameters"], found["rank"], found["parameters"]) == (trained, 4, whole)
    assert "Trained parameters" in text and "Rank" in text
