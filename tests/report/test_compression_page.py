"""What the page shows of a compression: every model's figures, in both languages, and where each lies."""

import json
import re
from itertools import pairwise

import pytest

from hasten.core.errors import DataError
from hasten.report.chart import HEIGHT
from hasten.report.compression import APART, compression_rows, make_picture
from hasten.report.compression_records import Compression
from hasten.report.files import read_run
from hasten.report.page import write_page
from hasten.report.summary import summary, write_summary

HOSTILE = "<script>alert(1)</script>"


def estimate(value, interval=0.01):
    return {"value": value, "interval": interval}


def model(name, size, bits, **changes):
    """One model as `hasten compress` writes it."""
    first = name == "original"
    return {
        "name": name,
        "folder": f"run/compress/{name}",
        "key": name,
        "words": "" if first else f"{name}(share=0.25)",
        "bytes": size,
        "parameters": 3_000_000,
        "zeros": 0.0,
        "speed": {"unit": "tokens", "read_seconds": 0.0123, "per_second": 1234.5},
        "speedup": None if first else estimate(1.93, 0.05),
        "reading_speedup": None if first else estimate(1.21, 0.02),
        "memory": {"before": 200_000_000, "peak": 260_000_000},
        "quality": {
            "name": "bits_per_byte",
            "score": estimate(bits),
            "change": None if first else estimate(bits - 1.4, 0.002),
            "higher_is_better": False,
            "kept": 1.4 / bits,
        },
        "agreement": None if first else {"kl": estimate(0.0321, 0.001), "same": estimate(0.913, 0.004)},
        **changes,
    }


def compression(*models, **more):
    return {"original": "run/checkpoints/step-000120", "final": "x", "folder": "y", "models": models, **more}


CHAIN = compression(
    model("original", 12_000_000, 1.4),
    model("1-depth", 9_000_000, 1.52),
    model("2-quantize", 2_000_000, 1.53),
    target={"asked": "size=2MB"},
)


@pytest.fixture
def run(make_run):
    folder = make_run()
    (folder / "compression.json").write_text(json.dumps(CHAIN))
    return folder


def text_of(page):
    return re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))


def test_every_figure_is_on_the_page_in_both_languages(run):
    text = " ".join(text_of(write_page([run])).split())
    for figure in ("12 MB", "2 MB", "1.93 ± 0.05", "1.5300 ± 0.0100", "+0.1300 ± 0.0020", "91.3% ± 0.4%"):
        assert figure in text, figure
    assert "0.0321 ± 0.0010" in text and "60 MB" in text and "12.30 ms" in text
    assert "Quality against size" in text and "质量与体积" in text and "原模型" in text
    assert "size=2MB" in text and "1-depth(share=0.25)" in text
    assert "16.7%" in text, "the card: what is left of the bytes"


def test_the_summary_has_what_the_last_model_is_worth(run):
    figures = summary(run)
    assert figures["compressed_bytes"] == 2_000_000 and figures["compressed_speedup"] == 1.93
    write_summary(run, run / "report.html")
    assert json.loads((run / "summary.json").read_text())["compressed_quality"] == pytest.approx(1.4 / 1.53)


def test_points_stand_where_their_sizes_and_scores_are():
    picture = make_picture(Compression.model_validate(CHAIN))
    assert picture is not None and picture.better == "lower_better"
    first, second, third = picture.points
    assert first.x > second.x > third.x and first.y < second.y < third.y
    assert first.x / third.x == pytest.approx(6), "sizes begin at nothing"
    score = (first.y - second.y) / (second.y - third.y)
    assert score == pytest.approx((1.4 - 1.52) / (1.52 - 1.53))
    ends = [float(end) for end in re.findall(r"[\d.]+", third.bar)[1:]]
    half = (ends[0] - ends[1]) / 2 / HEIGHT / (third.y - second.y) * (1.53 - 1.52)
    assert half == pytest.approx(0.002, rel=0.1), "of the change, which is paired"


def test_names_of_near_points_do_not_lie_on_each_other():
    near = compression(*(model(f"{n}", 1_000_000 + n, 1.4 + n / 10_000) for n in range(4)))
    picture = make_picture(Compression.model_validate(near))
    assert picture is not None
    labels = sorted(point.label for point in picture.points)
    assert all(b - a >= APART - 1e-9 for a, b in pairwise(labels))


def test_a_model_without_text_has_a_table_and_no_picture(run):
    bare = {"quality": None, "agreement": None, "memory": None}
    found = compression(model("original", 9, 1.0, **bare), model("1-quantize", 3, 1.0, **bare))
    record = Compression.model_validate(found)
    assert make_picture(record) is None
    assert "kl" not in [key for key, _ in compression_rows(record)]
    (run / "compression.json").write_text(json.dumps(found))
    assert "1-quantize" in text_of(write_page([run]))


def test_a_folder_with_nothing_but_a_compression_is_reported(tmp_path):
    (tmp_path / "compression.json").write_text(json.dumps(CHAIN))
    assert "Quality against size" in text_of(write_page([tmp_path]))
    assert read_run(tmp_path).metrics == []


def test_examples_are_told_from_tokens():
    speed = {"speed": {"unit": "examples", "read_seconds": 0.1, "per_second": 3.0}}
    found = compression(model("original", 9, 1.0, **speed), model("1-quantize", 3, 1.0, **speed))
    assert "examples_per_second" in [key for key, _ in compression_rows(Compression.model_validate(found))]


def test_words_of_files_are_escaped_and_what_is_no_record_is_refused(run):
    hostile = compression(model("original", 9, 1.0), model(HOSTILE, 3, 1.0), target={"asked": HOSTILE})
    (run / "compression.json").write_text(json.dumps(hostile))
    assert HOSTILE not in write_page([run]).read_text()
    (run / "compression.json").write_text('{"original": 3}')
    with pytest.raises(DataError, match=r"compression\.json: .*; remove the file or write it anew"):
        write_page([run])
