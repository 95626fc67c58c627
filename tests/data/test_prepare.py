"""Prepared text holds what went in, once, whatever came between; nothing is prepared twice."""

import gzip
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hasten.core.errors import DataError
from hasten.core.files import MANIFEST
from hasten.data import stage
from hasten.data.config import CleanConfig, DataConfig, SourceConfig, SplitConfig
from hasten.data.identity import input_fingerprint
from hasten.data.prepare import Prepared, largest_row, prepare
from hasten.data.source import documents
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.tokenizer.train import TokenizerConfig

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "in")]


def story(generator, words=60):
    """Some sentences of invented words."""
    lines = []
    for _ in range(words // 10):
        names = ["".join(generator.choices(SYLLABLES, k=generator.randint(1, 3))) for _ in range(10)]
        lines.append(" ".join(names).capitalize() + ".")
    return "\n".join(lines) + "\n"


def write_stories(folder, count, seed=0, words=60):
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04}.txt").write_text(story(generator, words))
    return folder


@pytest.fixture
def stories(tmp_path):
    return write_stories(tmp_path / "stories", 150)


def config(tmp_path, *sources, **settings):
    settings = {
        "split": SplitConfig(validation=0.1, test=0.1),
        "tokenizer": TokenizerConfig(vocab_size=300),
        "row_tokens": 32,
        "cache": tmp_path / "cache",
    } | settings
    sources = tuple(s if isinstance(s, SourceConfig) else SourceConfig(paths=(str(s),)) for s in sources)
    return DataConfig(sources=sources, **settings)


def contents(folder):
    """{relative path: bytes} of every file but the manifest, which holds the same digests."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def all_texts(prepared):
    """{name: text} of what the shards decode to."""
    tokenizer = Tokenizer.load(prepared.tokenizer)
    return {
        shards.name(number): tokenizer.decode(shards.ids(number).tolist())
        for split in prepared.splits
        for shards in prepared.shards(split).values()
        for number in range(shards.num_documents)
    }


def test_the_shards_decode_to_every_document_once(tmp_path, stories):
    prepared = prepare(config(tmp_path, stories), progress=False)
    originals = {path.name: path.read_text() for path in stories.iterdir()}
    assert all_texts(prepared) == originals
    assert sum(prepared.total(split).documents for split in prepared.splits) == len(originals)


def test_the_record_counts_what_the_shards_hold(tmp_path, stories):
    prepared = prepare(config(tmp_path, stories), progress=False)
    for split, by_source in prepared.splits.items():
        shards = prepared.shards(split)["stories"]
        assert by_source["stories"].documents == shards.num_documents
        assert by_source["stories"].tokens == shards.num_tokens - shards.num_documents  # n ids, n - 1 targets
        assert by_source["stories"].bytes == shards.text_bytes.sum()
        assert shards.text_bytes.tolist() == [
            len((stories / shards.name(number)).read_bytes()) for number in range(shards.num_documents)
        ]


def test_the_texts_of_held_out_splits_are_kept_and_those_of_training_are_not(tmp_path, stories):
    prepared = prepare(config(tmp_path, stories), progress=False)
    for split in "validation", "test":
        kept = {document.id: document.text for document in prepared.texts(split)}
        shards = prepared.shards(split)["stories"]
        assert list(kept) == [shards.name(number) for number in range(shards.num_documents)]
        assert all(text == (stories / name).read_text() for name, text in kept.items())
    with pytest.raises(
        DataError, match=r"keeps the texts of validation and test; read train from data\.sources"
    ):
        list(prepared.texts("train"))


def test_the_same_inputs_give_the_same_folder_and_no_work(tmp_path, stories, monkeypatch):
    first = prepare(config(tmp_path, stories), progress=False)
    moved = tmp_path / "elsewhere" / "stories"
    moved.parent.mkdir()
    stories.rename(moved)
    os.utime(moved / "0000.txt")
    monkeypatch.setattr("hasten.data.prepare.Preparation.run", lambda self: pytest.fail("was prepared again"))
    again = prepare(config(tmp_path, moved, row_tokens=16), progress=False)
    assert again == first
    assert Prepared.load(first.folder) == first


@pytest.mark.parametrize(
    "settings",
    [
        {"split": SplitConfig(test=0.06)},
        {"clean": CleanConfig(min_words=4)},
        {"tokenizer": TokenizerConfig(vocab_size=301)},
        {"on_bad_line": "skip"},
    ],
)
def test_other_settings_give_another_folder(tmp_path, stories, settings):
    assert input_fingerprint(config(tmp_path, stories)) != input_fingerprint(
        config(tmp_path, stories, **settings)
    )


def test_other_content_or_names_give_another_folder(tmp_path, stories):
    before = input_fingerprint(config(tmp_path, stories))
    (stories / "0000.txt").write_text((stories / "0000.txt").read_text().upper())
    changed = input_fingerprint(config(tmp_path, stories))
    (stories / "0000.txt").rename(stories / "9999.txt")
    assert len({before, changed, input_fingerprint(config(tmp_path, stories))}) == 3


def test_the_digest_of_a_large_file_is_remembered_until_it_changes(tmp_path, stories, monkeypatch):
    monkeypatch.setattr("hasten.data.identity.MEMO_BYTES", 1)
    first = input_fingerprint(config(tmp_path, stories))
    with monkeypatch.context() as patch:
        patch.setattr(
            "hasten.data.identity.content_digest", lambda file: pytest.fail(f"{file} was read again")
        )
        assert input_fingerprint(config(tmp_path, stories)) == first
    (stories / "0000.txt").write_text("other " + (stories / "0000.txt").read_text())
    assert input_fingerprint(config(tmp_path, stories)) != first


def small_parts(monkeypatch):
    monkeypatch.setattr(stage, "PART_BYTES", 5_000)
    monkeypatch.setattr(stage, "SIGNED_WORDS", 100)


def test_the_size_of_parts_changes_where_shards_end_and_nothing_else(tmp_path, stories, monkeypatch):
    (stories / "copy.txt").write_text((stories / "0003.txt").read_text())
    whole = prepare(config(tmp_path / "a", stories), progress=False)
    small_parts(monkeypatch)
    parts = prepare(config(tmp_path / "b", stories), progress=False)
    assert len(list((parts.folder / "train").iterdir())) > 5
    assert (parts.splits, parts.report, all_texts(parts)) == (whole.splits, whole.report, all_texts(whole))


WRITES = ["os.replace", "os.rename", "os.fsync"]


@pytest.mark.slow
@pytest.mark.parametrize("call", WRITES)
def test_interrupted_at_any_write_the_next_run_goes_on_and_ends_with_equal_bytes(
    tmp_path, stories, monkeypatch, call
):
    small_parts(monkeypatch)
    expected = contents(prepare(config(tmp_path / "whole", stories), progress=False).folder)
    broken = config(tmp_path / "broken", stories)
    original = getattr(os, call.removeprefix("os."))
    interruptions = calls = 0

    def interrupt(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == 1 + 3 * interruptions:  # each run gets a little further by itself
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(call, interrupt)
    while True:
        try:
            prepare(broken, progress=False)
            break
        except KeyboardInterrupt:
            interruptions, calls = interruptions + 1, 0
    assert interruptions > 3
    found = contents(broken.cache / input_fingerprint(broken))
    without_paths = {name: data for name, data in found.items() if name != "prepared.json"}
    assert without_paths == {name: data for name, data in expected.items() if name != "prepared.json"}
    assert not list(broken.cache.glob("*.work")) and not list(broken.cache.rglob("*.tmp-*"))


PROGRAM = """
import sys
from pathlib import Path
from hasten.core.config import parse
from hasten.data import stage
from hasten.data.config import DataConfig
from hasten.data.prepare import prepare
stage.PART_BYTES = 20_000
prepare(parse(DataConfig, __import__("json").loads(sys.argv[1]), "test"))
"""


@pytest.mark.slow
def test_killed_at_random_instants_the_next_run_ends_with_equal_bytes(tmp_path):
    stories = write_stories(tmp_path / "stories", 400, words=120)

    def start(cache):
        data = {
            "sources": [str(stories)],
            "tokenizer": {"vocab_size": 400},
            "row_tokens": 32,
            "cache": str(cache),
        }
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(data)], stdout=subprocess.PIPE, text=True
        )

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - began
    generator, kills = random.Random(0), 0
    while True:
        process = start(tmp_path / "killed")
        try:
            process.wait(generator.uniform(0.4, 1.0) * seconds if kills < 4 else None)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert process.returncode == 0
    (whole,) = (path.parent for path in (tmp_path / "whole").glob("*/prepared.json"))
    (killed,) = (path.parent for path in (tmp_path / "killed").glob("*/prepared.json"))
    expected, found = contents(whole), contents(killed)
    assert expected.pop("prepared.json") != found.pop("prepared.json")  # names the cache
    assert found == expected


def run_prepare(settings, path):
    path.write_text(str(prepare(settings, progress=False).folder))


def test_two_at_once_make_one_folder(tmp_path, stories):
    settings = config(tmp_path, stories)
    context = multiprocessing.get_context("fork")
    outputs = [tmp_path / "one", tmp_path / "two"]
    processes = [context.Process(target=run_prepare, args=(settings, path)) for path in outputs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert outputs[0].read_text() == outputs[1].read_text()
    assert Prepared.load(Path(outputs[0].read_text())).total("train").documents > 100


def test_a_damaged_folder_is_made_again_and_says_so(tmp_path, stories, capsys):
    prepared = prepare(config(tmp_path, stories), progress=False)
    shard = next((prepared.folder / "train").glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"train/stories-00000.safetensors does not match .*; delete the"):
        Prepared.load(prepared.folder)
    assert prepare(config(tmp_path, stories), progress=False) == prepared
    assert "; it is made again" in capsys.readouterr().out
    assert shard.read_bytes() == whole


def test_what_each_rule_dropped_is_printed_and_stored_with_examples(tmp_path, stories, capsys):
    original = (stories / "0005.txt").read_text()
    (stories / "b-copy.txt").write_text(original + "\n")
    (stories / "b-near.txt").write_text(original.replace(original.split()[5], "changed", 1))
    (stories / "b-short.txt").write_text("Home\n")
    rows = [json.dumps({"text": original.upper()}), "{broken", json.dumps({"text": story(random.Random(9))})]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "exam.txt").write_text((stories / "0007.txt").read_text())
    settings = config(
        tmp_path,
        stories,
        tmp_path / "rows.jsonl",
        on_bad_line="skip",
        decontaminate_against=(SourceConfig(paths=(str(tmp_path / "exam.txt"),)),),
    )
    report = prepare(settings).report
    dropped = {rule: [example["id"] for example in entry.examples] for rule, entry in report.dropped.items()}
    assert dropped == {
        "exact duplicate": ["b-copy.txt"],
        "near-duplicate": ["b-near.txt", "rows.jsonl:1"],
        "too few words": ["b-short.txt"],
        "contaminated": ["0007.txt"],
    }
    assert report.dropped["near-duplicate"].examples[0]["note"] == "like 0005.txt"
    assert report.dropped["contaminated"].examples[0]["note"] == "holds a passage of exam.txt"
    assert report.dropped["too few words"].bytes == 5
    assert (report.documents, report.kept, report.bad_rows) == (155, 150, 1)
    printed = capsys.readouterr().out
    assert "near-duplicate: 2 dropped" in printed
    assert "b-near.txt (like 0005.txt): " in printed
    assert f"{tmp_path}/rows.jsonl:2: is not JSON" in printed


def test_a_held_out_document_is_never_in_training_under_another_name(tmp_path, stories):
    held_out = tmp_path / "held.txt"
    held_out.write_text((stories / "0004.txt").read_text() + "One more line of text.\n")
    split = SplitConfig(test=0.0, validation_sources=(SourceConfig(paths=(str(held_out),)),))
    prepared = prepare(config(tmp_path, stories, split=split), progress=False)
    assert [document.id for document in prepared.texts("validation")] == ["held.txt"]
    assert prepared.splits["validation"].keys() == {"held"}
    assert "test" not in prepared.splits
    names = {
        prepared.shards("train")["stories"].name(number)
        for number in range(prepared.total("train").documents)
    }
    assert names == {path.name for path in stories.iterdir()} - {"0004.txt"}


def test_held_out_sources_are_kept_as_they_are(tmp_path, stories):
    """Rules, duplicates and protected passages thin out training only."""
    exam = tmp_path / "exam"
    exam.mkdir()
    original = (stories / "0004.txt").read_text()
    for name, text in {
        "a": original,
        "b": original,
        "c": "Two",
        "d": original + "More of it.",
        "e": "",
    }.items():
        (exam / f"{name}.txt").write_text(text)
    held_out = SourceConfig(paths=(str(exam),))
    settings = config(
        tmp_path,
        stories,
        split=SplitConfig(validation=0.1, test_sources=(held_out,)),
        decontaminate_against=(held_out,),
    )
    prepared = prepare(settings, progress=False)
    assert [document.id for document in prepared.texts("test")] == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert {rule: entry.documents for rule, entry in prepared.report.dropped.items()} == {
        "empty": 1,
        "contaminated": 1,
    }


def test_files_that_are_not_read_are_told(tmp_path, stories, capsys):
    (stories / "cover.png").write_bytes(b"\x89PNG")
    prepare(config(tmp_path, stories))
    assert "sources    stories: files of kinds that are not read: 1 .png" in capsys.readouterr().out


def test_one_long_text_is_split_by_position(tmp_path):
    text = "".join(story(random.Random(seed)) for seed in range(100))
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(text.encode()))
    prepared = prepare(config(tmp_path, tmp_path / "book.txt.gz"), progress=False)
    held_out = [next(iter(prepared.texts(split))).text for split in ("validation", "test")]
    assert text.endswith(held_out[0] + held_out[1])
    assert {split: prepared.total(split).documents for split in prepared.splits} == dict.fromkeys(
        prepared.splits, 1
    )


def test_a_tokenizer_that_exists_is_used_and_kept_beside_the_shards(tmp_path, stories):
    trained = prepare(config(tmp_path, stories), progress=False)
    other = write_stories(tmp_path / "other", 120, seed=5)
    used = prepare(config(tmp_path, other, tokenizer=trained.tokenizer), progress=False)
    assert Tokenizer.load(used.tokenizer).fingerprint == Tokenizer.load(trained.tokenizer).fingerprint
    assert all_texts(used) == {path.name: path.read_text() for path in other.iterdir()}


def test_several_sources_keep_their_names_and_weights_change_no_folder(tmp_path, stories):
    other = write_stories(tmp_path / "other", 120, seed=5)

    def weighed(*weights):
        pairs = zip((stories, other), weights, strict=True)
        return config(tmp_path, *(SourceConfig(paths=(str(path),), weight=weight) for path, weight in pairs))

    prepared = prepare(weighed(1.0, 2.0), progress=False)
    assert set(prepared.shards("train")) == {"stories", "other"}
    assert prepared.splits["train"]["other"].documents < prepared.splits["train"]["stories"].documents
    assert input_fingerprint(weighed(3.0, 1.0)) == prepared.folder.name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"row_tokens": 10**6},
            r"data: the training text has at most \d+,\d+ tokens, less than one row of 1,000,000; give",
        ),
        (
            {"clean": CleanConfig(min_words=10**6)},
            r"data: cleaning left no document of stories \(train\); see above",
        ),
        (
            {"split": SplitConfig(by="document", test=1e-9)},
            "of 150 documents none fell to test; write data.split.by=position",
        ),
        ({"tokenizer": TokenizerConfig(vocab_size=50_000)}, "write vocab_size: "),
    ],
)
def test_settings_that_cannot_work_say_what_to_write_and_leave_nothing(tmp_path, stories, change, complaint):
    settings = config(tmp_path, stories, **change)
    with pytest.raises(DataError, match=complaint):
        prepare(settings, progress=False)
    assert not [path for path in settings.cache.iterdir() if path.is_dir()]


def test_a_text_shorter_than_a_row_says_which_row_would_do(tmp_path):
    (tmp_path / "short.txt").write_text(story(random.Random(0), 200))
    settings = config(tmp_path, tmp_path / "short.txt", row_tokens=4096)
    with pytest.raises(
        DataError, match=r"less than one row of 4,096; give more text, or write data.row_tokens=\d+"
    ) as caught:
        prepare(settings, progress=False)
    suggested = int(str(caught.value).rpartition("=")[2])
    fitting = config(tmp_path, tmp_path / "short.txt", row_tokens=suggested // 4)
    assert prepare(fitting, progress=False).total("train").tokens >= suggested // 4


def test_the_largest_row_is_a_power_of_two_that_fits():
    assert [largest_row(tokens) for tokens in (1, 2, 3, 4, 5, 1_023, 1_024)] == [2, 2, 2, 4, 4, 512, 1_024]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"", "a.txt: is empty"),
        ("a.txt", b"\x89PNG\r\n\0\0", "a.txt: is a binary file"),
        ("a.txt", b"fine\nnot \xe9 fine", "a.txt:2: is not UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\n{"text"\n', "a.jsonl:2: is not JSON"),
    ],
)
def test_a_source_that_cannot_be_read_leaves_nothing(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    settings = config(tmp_path, tmp_path / name)
    with pytest.raises(DataError, match=complaint):
        prepare(settings, progress=False)
    assert not settings.cache.exists() or not [path for path in settings.cache.iterdir() if path.is_dir()]


def test_a_full_disk_says_so_and_the_next_run_goes_on(tmp_path, stories, monkeypatch):
    small_parts(monkeypatch)
    settings = config(tmp_path, stories)
    original, calls = os.fsync, 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(28, "No space left on device")
        return original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            DataError, match=r"data.cache: .* cannot be written \(No space left on device\); make room"
        ):
            prepare(settings, progress=False)
    kept = len(list(settings.cache.glob("*.work/stage/parts/*/manifest.json")))
    assert kept > 0
    assert prepare(settings, progress=False).total("train").documents > 100


def test_a_cache_that_cannot_be_written_says_so(tmp_path, stories):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(
        DataError, match=r"data.cache: .*cache cannot be written \(File exists\); make room or choose"
    ):
        prepare(config(tmp_path, stories), progress=False)


def test_documents_of_the_standard_library_are_prepared_as_they_are(tmp_path):
    """One package of it, to be quick: shards give back every file that is no duplicate, byte for byte."""
    package = Path(json.__file__).parents[1]
    paths = tuple(str(package / name) for name in ("json", "asyncio", "email", "http"))
    whole_files = SplitConfig(by="document", validation=0.1, test=0.1)
    settings = config(tmp_path, SourceConfig(name="library", paths=paths), split=whole_files)
    prepared = prepare(settings, progress=False)
    originals = {document.id: document.text for document in documents(settings.sources[0])}
    decoded = all_texts(prepared)
    assert all(originals[name] == text for name, text in decoded.items())
    assert (
        len(decoded)
        == prepared.report.kept
        == len(originals) - sum(entry.documents for entry in prepared.report.dropped.values())
    )
    assert prepared.report.dropped.keys() <= {"empty", "exact duplicate", "near-duplicate"}
