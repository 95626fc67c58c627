"""Rows of two fields to token shards: what is read, dropped, split and kept of pairs."""

import gzip
import json
import random

import pytest

from hasten.core.config import parse
from hasten.core.errors import ConfigError, DataError
from hasten.data.config import DataConfig, SourceConfig, SplitConfig
from hasten.data.corpora import open_corpus
from hasten.data.formats import BETWEEN
from hasten.data.pairs import sides
from hasten.data.prepare import Prepared, prepare
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig

WORDS = ["red", "old", "tall", "house", "river", "bird", "sings", "runs", "sees", "the", "a", "of"]


def sentences(count, seed=0):
    """Distinct sentences with a translation that is the same words spelt backwards."""
    draw = random.Random(seed)
    texts = {" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(2 * count)}
    return [(text, text[::-1]) for text in sorted(texts)[:count]]


def write_tsv(path, rows):
    lines = "".join(f"{number}\t{en}\t{de}\n" for number, (en, de) in enumerate(rows))
    data = ("id\ten\tde\n" + lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def source(path, **fields):
    return SourceConfig(paths=(str(path),), source_field="en", target_field="de", **fields)


def config(tmp_path, *sources, **settings):
    settings = {
        "split": SplitConfig(validation=0.1, test=0.1),
        "tokenizer": TokenizerConfig(vocab_size=300),
        "row_tokens": 64,
        "cache": tmp_path / "cache",
    } | settings
    return DataConfig(sources=sources, **settings)


def decoded(prepared: Prepared, settings: DataConfig, split="train"):
    """Every pair of a split, through the corpus and back to text."""
    tokenizer = Tokenizer.load(prepared.tokenizer)
    corpus = open_corpus(settings, "pairs", prepared.folder, split, seed=0, tokenizer=tokenizer)
    found = []
    for batch in corpus.sweep(1):
        for segment in range(1, int(batch.segments.max()) + 1):
            read = batch.extra["source"][batch.extra["source_segments"] == segment]
            written = batch.targets[batch.segments == segment]
            assert read[-1] == written[-1] == tokenizer.eot_id
            found.append((tokenizer.decode(read[:-1].tolist()), tokenizer.decode(written[:-1].tolist())))
    return found


def test_pairs_come_back_as_they_went_in_and_each_is_in_one_split(tmp_path):
    pairs = sentences(300)
    settings = config(tmp_path, source(write_tsv(tmp_path / "talk.tsv.gz", pairs)))
    prepared = prepare(settings, progress=False)
    found = {split: decoded(prepared, settings, split) for split in ("train", "validation", "test")}
    assert sorted(pair for some in found.values() for pair in some) == pairs
    assert all(10 < len(found[split]) < 60 for split in ("validation", "test"))
    held_out = [(pair.source, pair.target) for pair in prepared.pairs("test")]
    assert sorted(held_out) == sorted(found["test"])
    assert prepared.total("train").documents == len(found["train"])


def test_all_translations_of_a_sentence_are_in_one_split(tmp_path):
    pairs = [(en, f"{de} {n}") for en, de in sentences(120) for n in range(3)]
    settings = config(tmp_path, source(write_tsv(tmp_path / "talk.tsv", pairs)))
    prepared = prepare(settings, progress=False)
    groups = [
        {en for en, _ in decoded(prepared, settings, split)} for split in ("train", "validation", "test")
    ]
    assert sum(map(len, groups)) == 120 == len(set.union(*groups))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_of_rows_is_read(tmp_path, kind):
    pairs = sentences(60)
    path = tmp_path / f"talk.{kind}"
    if kind == "csv":
        path.write_text("en,de\n" + "".join(f'"{en}","{de}"\n' for en, de in pairs))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"en": en, "de": de}) + "\n" for en, de in pairs))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"en": [p[0] for p in pairs], "de": [p[1] for p in pairs]}), path)
    settings = config(tmp_path, source(path), split=SplitConfig(validation=0, test=0))
    assert sorted(decoded(prepare(settings, progress=False), settings)) == pairs


def test_rules_drop_and_count_pairs_but_of_held_out_sources_only_empty_ones(tmp_path):
    good = sentences(80)
    bad = [
        ("", "leer"),
        ("empty", "  "),
        ("one", " ".join(["viel"] * 12)),
        (" ".join(["x"] * 30), "kurz kurz kurz kurz"),
    ]
    rows = [*good, *bad, good[0], (good[1][0], "eine andere")]
    path, held_out = write_tsv(tmp_path / "talk.tsv", rows), write_tsv(tmp_path / "test.tsv", [good[2], *bad])
    settings = config(
        tmp_path,
        source(path),
        split=SplitConfig(validation=0, test_sources=(source(held_out),)),
        pairs={"max_words": 20},
    )
    prepared = prepare(settings, progress=False)
    dropped = {rule: entry.documents for rule, entry in prepared.report.dropped.items()}
    assert dropped == {"empty side": 4, "uneven lengths": 1, "too many words": 1, "exact duplicate": 2}
    assert sorted(decoded(prepared, settings)) == sorted([*good[:2], *good[3:], (good[1][0], "eine andere")])
    assert [(p.source, p.target) for p in prepared.pairs("test")] == [good[2], *bad[2:]]
    assert BETWEEN not in json.dumps(prepared.report.to_json())


def test_benchmarks_are_kept_out_of_training_pairs(tmp_path):
    long = [(f"{a} {' '.join(WORDS)} {n}", f"{n} {a}") for n, (a, _) in enumerate(sentences(40))]
    protected = write_tsv(tmp_path / "benchmark.tsv", long[:3])
    settings = config(
        tmp_path,
        source(write_tsv(tmp_path / "talk.tsv", sentences(80) + [(en, "anders") for en, _ in long[:3]])),
        split=SplitConfig(validation=0, test=0),
        decontaminate_against=(source(protected),),
        pairs={"max_ratio": None},
    )
    prepared = prepare(settings, progress=False)
    assert prepared.report.dropped["contaminated"].documents == 3


def test_bad_rows_are_errors_or_counted(tmp_path):
    lines = [{"en": en, "de": de} for en, de in sentences(60)]
    odd = [{"en": "no other side"}, {"en": 5, "de": "x"}, {"en": f"a{BETWEEN}b", "de": "x"}]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *odd]))
    settings = config(tmp_path, source(path), split=SplitConfig(validation=0, test=0))
    with pytest.raises(DataError, match=r"talk.jsonl:61: has no field 'de'"):
        prepare(settings, progress=False)
    prepared = prepare(settings.model_copy(update={"on_bad_line": "skip"}), progress=False)
    assert prepared.report.bad_rows == 3
    assert "U+001E" in prepared.report.bad_examples[2]


def test_a_wrong_column_is_named(tmp_path):
    path = write_tsv(tmp_path / "talk.tsv", sentences(5))
    wrong = SourceConfig(paths=(str(path),), source_field="en", target_field="fr")
    with pytest.raises(
        DataError, match=r"has no column 'fr'.* write source_field: ... and target_field: ..."
    ):
        prepare(config(tmp_path, wrong), progress=False)


def test_pairs_are_not_read_from_plain_text(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(DataError, match="pairs are rows with two fields"):
        prepare(config(tmp_path, source(tmp_path / "a.txt")), progress=False)


def test_equal_pairs_are_prepared_once_and_row_lengths_change_nothing(tmp_path):
    path = write_tsv(tmp_path / "talk.tsv", sentences(100))
    first = prepare(config(tmp_path, source(path)), progress=False)
    longer = config(tmp_path, source(path), row_tokens=128, source_row_tokens=96, pairs={"too_long": "drop"})
    assert prepare(longer, progress=False).folder == first.folder
    stricter = config(tmp_path, source(path), pairs={"max_words": 5})
    assert prepare(stricter, progress=False).folder != first.folder


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"sources": [{"paths": ["a.tsv"], "source_field": "en"}]}, "has both source_field and target_field"),
        (
            {"sources": [{"paths": ["a.tsv"], "source_field": "en", "target_field": "de"}, "b.txt"]},
            "some sources are pairs and some are not",
        ),
        (
            {
                "sources": [{"paths": ["a.tsv"], "source_field": "en", "target_field": "de"}],
                "split": {"by": "position"},
            },
            "split.by: position cuts texts, and pairs and records stay whole",
        ),
    ],
)
def test_sources_that_make_no_sense_are_refused(data, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse(DataConfig, data, "recipe.yaml")


def test_a_text_that_is_no_pair_is_refused():
    with pytest.raises(DataError, match="exactly two sides"):
        sides("one side")
