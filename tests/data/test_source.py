"""Sources become documents with stable names; what cannot be found says so."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from hasten.core.config import parse
from hasten.core.errors import ConfigError, DataError, MissingExtraError
from hasten.data.config import DataConfig, SourceConfig
from hasten.data.source import Document, documents, files, left_out, standard_library, text_bytes


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder with text, code, rows, and things that are none of these."""
    contents = {
        "b.txt": "bee",
        "a/a.md": "ay",
        "a/code.py": "x = 1\n",
        "a/rows.jsonl": '{"text": "one"}\n{"text": "two"}\n',
        "picture.png": "not text",
        ".hidden/h.txt": "hidden",
    }
    for name, text in contents.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tree"


def source(*paths, **settings):
    return SourceConfig(paths=paths, **settings)


def test_a_folder_gives_every_readable_file_below_it_by_sorted_name(tree):
    assert list(documents(source("tree"))) == [
        Document("a/a.md", "ay", "tree", "prose"),
        Document("a/code.py", "x = 1\n", "tree", "code"),
        Document("a/rows.jsonl:1", "one", "tree", "prose"),
        Document("a/rows.jsonl:2", "two", "tree", "prose"),
        Document("b.txt", "bee", "tree", "prose"),
    ]


def test_names_do_not_depend_on_where_the_folder_lies(tree, monkeypatch):
    here = [document.id for document in documents(source("tree"))]
    monkeypatch.chdir(tree)
    assert [document.id for document in documents(source("."))] == here
    assert [document.id for document in documents(source(str(tree)))] == here


def test_a_file_alone_is_called_by_its_name(tree):
    assert [document.id for document in documents(source("tree/a/a.md"))] == ["a.md"]


def test_a_glob_is_named_from_its_first_wildcard_on(tree):
    assert [d.id for d in documents(source("tree/**/*.md"))] == ["a/a.md"]
    assert [d.id for d in documents(source("tree/[ab]*.txt"))] == ["b.txt"]


def test_files_met_twice_are_read_once_and_names_stay_apart(tree):
    found = [document.id for document in documents(source("tree/a/a.md", "tree/a/*.md", "tree/b.txt"))]
    assert found == ["a/a.md", "tree/b.txt"]


def test_names_below_several_roots_stay_apart_wherever_the_roots_are(tree):
    for name in "one/texts", "two/texts":
        (tree / name).mkdir(parents=True)
        (tree / name / "same.txt").write_text(name)
    both = source("tree/one/texts", "tree/two/texts", "tree/b.txt", name="both")
    assert [d.id for d in documents(both)] == ["texts-0/same.txt", "texts-1/same.txt", "tree/b.txt"]


def test_files_of_other_kinds_in_a_folder_are_counted(tree):
    (tree / "a" / "Makefile").write_text("all:")
    assert left_out(source("tree", "stdlib")) == {".png": 1, "Makefile": 1}
    assert left_out(source("tree/b.txt")) == {}


def test_the_amount_of_text_is_known_where_sizes_of_files_tell_it(tree):
    assert text_bytes(source("tree/b.txt", "tree/a/code.py")) == len("bee" + "x = 1\n")
    (tree / "c.txt.gz").write_bytes(gzip.compress(b"see"))
    assert text_bytes(source("tree")) is None
    assert text_bytes(SourceConfig(hub="a/b")) is None


def test_a_separator_cuts_plain_text_into_numbered_documents(tree):
    (tree / "stories.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>")
    found = list(documents(source("tree/stories.txt", separator="<|endoftext|>")))
    assert [(d.id, d.text) for d in found] == [("stories.txt#0", "one\n"), ("stories.txt#1", "\ntwo\n")]


def test_the_extension_below_a_compression_says_what_a_file_holds(tree):
    path = tree / "c.py.gz"
    path.write_bytes(gzip.compress(b"y = 2\n"))
    assert [(d.text, d.kind) for d in documents(source(str(path)))] == [("y = 2\n", "code")]


def test_the_standard_library_is_pure_code_without_tests_or_installed_packages():
    found = list(documents(source("stdlib")))
    names = {document.id for document in found}
    assert {"json/decoder.py", "ast.py", "asyncio/base_events.py"} <= names
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(Path(name).parts)]
    assert {document.kind for document in found} == {"code"}
    assert sum(len(document.text) for document in found) > 5_000_000


def test_an_interpreter_without_sources_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("hasten.data.source.sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(DataError, match=r"stdlib: this interpreter keeps no .py files in .*give the path"):
        standard_library()


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (
            "tree/c.txt",
            r"tree/c.txt: there is no such file or folder. Did you mean 'b.txt'\? Paths are read from",
        ),
        ("nowhere/c.txt", "nowhere/c.txt: there is no such file or folder. Paths are read from"),
        ("tree/*.text", r"tree/\*.text: matches no file"),
        (
            "tree/*.png",
            r"tree/\*.png: matches picture.png, whose extension is not known. Read are .html .*each also as",
        ),
        ("tree/picture.png", "tree/picture.png: unknown extension '.png'"),
        (
            "tree/rows.jsonlines",
            r"tree/rows.jsonlines: unknown extension '.jsonlines'. Did you mean '.jsonl'\?",
        ),
        ("tree/empty.txt", "tree/empty.txt: is empty; give a file with text in it"),
        ("tree/none", "tree/none: this folder holds no file that can be read. Read are"),
    ],
)
def test_what_cannot_be_found_or_read_says_what_to_write(tree, path, complaint):
    (tree / "empty.txt").touch()
    (tree / "rows.jsonlines").write_text("{}")
    (tree / "none").mkdir()
    with pytest.raises(DataError, match=complaint):
        files(source(path))


def test_an_empty_file_in_a_folder_is_an_empty_document_for_the_rules_to_count(tree):
    (tree / "empty.txt").touch()
    assert [d.text for d in documents(source("tree")) if d.id == "empty.txt"] == [""]


def test_a_hub_data_set_is_streamed_by_rows(tree):
    pytest.importorskip("datasets")
    folder = tree / "hub"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(3)))
    found = list(documents(SourceConfig(hub=str(folder), name="local")))
    assert [(d.id, d.text, d.source) for d in found] == [
        (f"{folder}:{n + 1}", f"row {n}", "local") for n in range(3)
    ]


def test_a_hub_data_set_that_cannot_be_reached_says_so(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/some' on the Hub (offline)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    complaint = (
        r"hub data set someone/some, split train, cannot be read \(Couldn't reach .*\); check its name"
    )
    with pytest.raises(DataError, match=complaint):
        list(documents(SourceConfig(hub="someone/some")))


def test_without_datasets_a_hub_source_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"the hub data set a/b needs .*pip install 'hasten\[hub\]'"):
        list(documents(SourceConfig(hub="a/b")))


def test_a_recipe_may_write_a_source_as_a_string_or_in_full():
    short = parse(DataConfig, {"sources": ["stdlib"]}, "recipe")
    full = parse(DataConfig, {"sources": [{"paths": ["stdlib"]}]}, "recipe")
    assert short == full == DataConfig(sources=(SourceConfig(paths=("stdlib",)),))
    assert parse(DataConfig, {"sources": [{"paths": "a/b.txt"}]}, "recipe").sources[0].paths == ("a/b.txt",)


@pytest.mark.parametrize(
    ("paths", "title"),
    [
        ("stdlib", "stdlib"),
        ("a/books.v2", "books"),
        ("a/b.jsonl.gz", "b"),
        ("data/**/*.txt", "data"),
        ("*.md", "text"),
    ],
)
def test_a_source_without_a_name_is_called_after_its_first_path(paths, title):
    assert source(paths).title == title


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "recipe: sources is missing"),
        ({"sources": []}, "recipe: sources should"),
        ({"sources": [{"paths": ["a"], "hub": "b/c"}]}, "give exactly one of them"),
        ({"sources": [{"name": "x"}]}, "a source has either `paths"),
        ({"sources": [{"paths": ["a"], "name": "../x"}]}, r"name '../x' becomes a file name; use letters"),
        (
            {"sources": ["a/x.txt", "b/x.txt"]},
            "two sources are called 'x'; give one of them a `name:` of its own",
        ),
        ({"sources": [{"paths": ["a"], "weight": 1}, "b"]}, "give all of them one, or none"),
        ({"sources": [{"paths": ["a"], "weight": 0}]}, "weight should be greater than 0, got 0"),
        ({"sources": [{"path": "a"}]}, r"has no field 'path'. Did you mean 'paths'\?"),
        ({"sources": ["a"], "split": {"by": "hash"}}, "split.by cannot be 'hash'"),
        ({"sources": ["a"], "split": {"validation": 0.5, "test": 0.5}}, "leave nothing to train on"),
        ({"sources": ["a"], "tokenizer": {"vocab_siz": 300}}, "recipe: tokenizer has no field 'vocab_siz'"),
        (
            {"sources": ["a"], "clean": {"near_duplicates": 0.2}},
            "clean.near_duplicates should be greater than or equal to 0.5",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(data, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse(DataConfig, data, "recipe")


def test_a_tokenizer_is_a_path_or_a_way_to_train_one():
    assert parse(DataConfig, {"sources": ["a"], "tokenizer": "some/folder"}, "r").tokenizer == Path(
        "some/folder"
    )
    assert (
        parse(DataConfig, {"sources": ["a"], "tokenizer": {"vocab_size": 500}}, "r").tokenizer.vocab_size
        == 500
    )
