"""What a teacher said is kept once, found in any row, order and epoch, and gone on with after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import CPU, VOCAB, write_corpus

from hasten.core.batch import IGNORE, Batch
from hasten.core.errors import ConfigError, DataError
from hasten.data.config import MaskingConfig
from hasten.data.corpus import Corpus
from hasten.data.masked import MaskedCorpus
from hasten.data.pair_corpus import PairCorpus
from hasten.model.config import ModelConfig
from hasten.model.transformer import Transformer, build
from hasten.objective.distillation import Distillation
from hasten.objective.inner import Inner
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train import spoken_file
from hasten.train import teacher_cache as module
from hasten.train.spoken import Spoken, files_in
from hasten.train.spoken_file import Form, Said, SpokenFile, SpokenWriter, packed, unpacked
from hasten.train.teacher import Teaching
from hasten.train.teacher_cache import spoken

ROW = 16


def make(seed: int, kind: str = "decoder") -> Transformer:
    shape = {"vocab_size": VOCAB, "dim": 16, "num_layers": 1, "num_heads": 2, "init_std": 0.5, "kind": kind}
    shape |= {"start_id": 0} if kind == "seq2seq" else {}
    return build(ModelConfig.model_validate({**shape, "max_positions": 64}), seed=seed).eval()


def teaching(kind: str = "decoder", seed: int = 1, temperature: float = 1.0, **cache: Any) -> Teaching:
    teacher = make(seed, kind)
    config = Distillation.model_validate({"teacher": "t", "temperature": temperature, "cache": cache})
    return Teaching(config, teacher, Inner(config, teacher.config, teacher.config), VOCAB)


def asked(
    taught: Teaching,
    corpus: Corpus,
    folder: Path,
    *,
    data: str = "data",
    share: tuple[int, int] = (0, 1),
    rows: int | None = None,
) -> Spoken:
    place = {"folder": folder, "data": data, "runtime": CPU, "precision": "fp32"}
    return spoken(taught, corpus, **place, share=share, rows=rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "prepared")


def corpus(folder: Path, seed: int = 0) -> Corpus:
    return Corpus(folder, "train", ROW, seed)


def losses(taught: Teaching, batch: Batch, *, reads_along: bool) -> tuple[float, torch.Tensor]:
    """A student's loss, and its gradient by its head."""
    student = make(0, taught.teacher.config.kind).train()
    config = taught.config.model_copy(update={"cache": None}) if reads_along else taught.config
    made = replace(taught, config=config).objective(student, "fp32")
    batch = made.enrich(batch)
    loss = made.loss(student, student(**made.inputs(batch)), batch)
    loss.backward()
    return loss.item(), student.head.weight.grad


@pytest.mark.parametrize("cache", [{"samples": "all"}, {"top": VOCAB}], ids=["all", "top"])
@pytest.mark.parametrize("kind", ["decoder", "seq2seq"])
def test_all_that_was_said_teaches_as_a_teacher_that_reads_along(kind, cache, data, tmp_path):
    if kind == "seq2seq":
        rows = PairCorpus(data, "train", 48, 0, source_tokens=48, start_id=0, pad_id=0)
    else:
        rows = corpus(data)
    taught = teaching(kind, temperature=2.0, **cache)
    said = asked(taught, rows, tmp_path)
    for step in (0, rows.num_rows // 4 + 1, 3 * rows.num_rows):  # of several epochs
        for batch in rows.batches(step, rows=4, micro_rows=2):
            kept, slope = losses(taught, said(batch), reads_along=False)
            online, wanted = losses(taught, batch, reads_along=True)
            assert kept == pytest.approx(online, rel=1e-4)  # the entropy is apart
            torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-5)


def test_samples_are_the_same_in_every_row_order_and_share(data, tmp_path):
    """Two processes, another seed: the same pieces with the same draws."""
    alone = asked(teaching(), corpus(data), tmp_path / "alone")
    other = corpus(data, seed=5)
    for rank in (0, 1):
        if rank:
            next(
                (tmp_path / "two" / name).unlink()
                for name in [next((tmp_path / "two").glob("*/complete.json"))]
            )
        two = asked(teaching(), other, tmp_path / "two", share=(rank, 2))
    first, second = (
        {int(k): f.said(n) for f in s.pieces.files for n, k in enumerate(f.keys)} for s in (alone, two)
    )
    assert first.keys() == second.keys() and len(first) > 60
    for key, said in first.items():
        for name in ("sizes", "tokens", "weights"):
            np.testing.assert_array_equal(getattr(said, name), getattr(second[key], name))


def test_another_student_asks_nothing_and_another_teacher_everything(data, tmp_path, monkeypatch):
    asked(teaching(), corpus(data), tmp_path)
    monkeypatch.setattr(module.Asking, "hear", lambda *_: pytest.fail("the teacher was asked"))
    asked(teaching(), corpus(data, seed=3), tmp_path)
    for other in (teaching(seed=2), teaching(temperature=2.0), teaching(samples=11), teaching(seed=1, top=3)):
        with pytest.raises(pytest.fail.Exception):
            asked(other, corpus(data), tmp_path)
    with pytest.raises(pytest.fail.Exception):
        asked(teaching(), corpus(data), tmp_path, data="other")


def test_a_short_training_asks_about_its_own_rows_and_a_longer_one_about_the_rest(
    data, tmp_path, monkeypatch
):
    rows, heard, hear = corpus(data), list[int](), module.Asking.hear

    def counted(self: module.Asking, batch: Batch, pieces: list[Any]) -> None:
        heard.append(len(pieces))
        hear(self, batch, pieces)

    monkeypatch.setattr(module, "SWEEP_TOKENS", 2 * ROW)
    monkeypatch.setattr(module.Asking, "hear", counted)
    said = asked(teaching(), rows, tmp_path, rows=12)
    for batch in rows.batches(0, rows=12, micro_rows=4):
        said(batch)
    with pytest.raises(DataError, match="start the training again with another `output`"):
        [said(batch) for batch in rows.batches(1, rows=40, micro_rows=4)]
    first = sum(heard)
    again = asked(teaching(), rows, tmp_path, rows=12)
    assert sum(heard) == first == len(again.pieces.keys)
    whole = asked(teaching(), rows, tmp_path)
    assert sum(heard) == len(whole.pieces.keys) > 2 * first
    assert (whole.folder / "complete.json").exists()


def test_the_size_is_said_beforehand_and_holds(data, tmp_path, capsys):
    said = asked(teaching(samples=12), corpus(data), tmp_path)
    most = 12 * 2 + 6
    count = corpus(data).num_tokens
    assert (
        f"{count:,} targets x at most {most} bytes = {count * most / 1e9:,.3f} GB" in capsys.readouterr().out
    )
    arrays = sum(
        a.nbytes
        for f in said.pieces.files
        for n, a in f.arrays.items()
        if n in ("tokens", "counts", "sizes", "entropy")
    )
    assert arrays <= count * most
    places = json.loads((said.folder / "complete.json").read_text())["places"]
    assert 0.5 * count < places <= count  # what comes twice is kept once


def test_the_likeliest_are_said_to_be_biased(data, tmp_path, capsys):
    asked(teaching(top=3), corpus(data), tmp_path)
    assert "what is learnt is biased" in capsys.readouterr().out


def test_a_disk_without_room_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("D", (), {"free": 10})()
    )
    with pytest.raises(DataError, match=r"the disk has 0\.00 GB left; write fewer objective\.cache\.samples"):
        asked(teaching(), corpus(data), tmp_path)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import test_teacher_cache as t
from hasten.train import spoken_file
from hasten.train import teacher_cache as module
module.BLOCK_PLACES = 40
hear = module.Asking.hear
def slow(*given):
    time.sleep(0.05)
    hear(*given)
module.Asking.hear = slow
module.SWEEP_TOKENS = t.ROW
t.asked(t.teaching(), t.corpus(Path({data!r})), Path({folder!r}))
"""


def test_a_killed_asking_is_gone_on_with_and_ends_as_a_straight_one(data, tmp_path, monkeypatch):
    """Killed twice at no particular moment, and a file cut short: every piece is there in the end."""
    folder = tmp_path / "cut"
    program = KILLED.format(here=str(Path(__file__).parent), data=str(data), folder=str(folder))
    for wanted in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 300
        while (
            len(list(folder.glob("*/block-*.safetensors"))) < wanted
            and time.monotonic() < until
            and process.poll() is None
        ):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (place,) = (path for path in folder.iterdir() if path.is_dir())
    whole = files_in(place)
    assert len(whole) >= 5 and not (place / "complete.json").exists()
    whole[1].write_bytes(whole[1].read_bytes()[:-9])
    (place / "block-00000-000099.safetensors.tmp-shard").write_bytes(b"half")
    heard = []
    hear = module.Asking.hear
    monkeypatch.setattr(
        module.Asking, "hear", lambda self, batch, pieces: heard.extend(pieces) or hear(self, batch, pieces)
    )
    said, straight = (
        asked(teaching(), corpus(data), folder),
        asked(teaching(), corpus(data), tmp_path / "straight"),
    )
    half = len(straight.pieces.keys)
    assert 0 < len(heard) - half < half  # the second asked all, the first what was missing
    assert not list(place.glob("*.tmp-*"))
    np.testing.assert_array_equal(said.pieces.keys, straight.pieces.keys)
    batch = corpus(data).batches(0, rows=4, micro_rows=4)[0]
    for name, values in straight(batch).extra.items():
        torch.testing.assert_close(said(batch).extra[name], values, rtol=1e-6, atol=1e-6)


def test_text_that_was_not_asked_about_is_an_error(data, tmp_path):
    said = asked(teaching(), corpus(data), tmp_path)
    batch = corpus(data).batches(0, rows=1, micro_rows=1)[0]
    batch.tokens[0, 0] = (batch.tokens[0, 0] + 1) % VOCAB
    with pytest.raises(DataError, match="does not hold what the teacher says of train/"):
        said(batch)


def test_hidden_tokens_that_change_with_the_epoch_are_refused(
    data, tmp_path, byte_tokenizer: Callable[..., Tokenizer]
):
    tokenizer = byte_tokenizer("<|endoftext|>", "<|mask|>")
    rows = MaskedCorpus(data, "train", ROW, 0, tokenizer=tokenizer, masking=MaskingConfig())
    with pytest.raises(ConfigError, match=r"drawn anew in every epoch.*write objective\.cache=null"):
        asked(teaching(), rows, tmp_path)


@pytest.mark.parametrize("vocab_size", [2, 256, 257, 65_536, 65_537, 200_000])
def test_ids_take_as_few_bytes_as_the_vocabulary_needs(vocab_size):
    width = Form(vocab_size, samples=3).token_bytes
    assert 256**width >= vocab_size > 256 ** (width - 1) or width == 1
    tokens = np.random.default_rng(0).integers(0, vocab_size, 50)
    np.testing.assert_array_equal(unpacked(packed(tokens, width), width), tokens)


@pytest.mark.parametrize(
    "form", [Form(300, samples=4), Form(300, top=2), Form(300)], ids=["samples", "top", "all"]
)
def test_a_file_gives_back_what_was_written_and_refuses_what_was_not(form, tmp_path):
    draw, path = np.random.default_rng(0), tmp_path / "block-0.safetensors"
    said = []
    for places in (3, 1, 4):
        sizes = np.full(places, form.most or 0)
        tokens = draw.integers(0, 300, int(sizes.sum()))
        weights = (draw.integers(1, 4, len(tokens)) / 4).astype(np.float32)
        entropy = draw.random(places).astype(np.float32)
        logits = draw.random((places, 300)).astype(np.float32) if form.most is None else None
        said.append(Said(sizes, tokens, weights, entropy, logits))
    writer = SpokenWriter(form)
    for key, each in enumerate(said):
        writer.add(key, each)
    writer.write(path)
    file = SpokenFile(path, form)
    for number, each in enumerate(said):
        found = file.said(number)
        names = ("logits",) if form.most is None else ("sizes", "tokens", "weights", "entropy")
        for name in names:
            np.testing.assert_array_equal(getattr(found, name), getattr(each, name))
    with pytest.raises(DataError, match="it knows 300 tokens, not 299"):
        SpokenFile(path, Form(299, form.samples, form.top))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="is damaged"):
        SpokenFile(path, form)


@pytest.mark.parametrize(
    ("array", "change", "said"),
    [
        ("bounds", lambda a: a[::-1], "bounds does not rise"),
        ("ends", lambda a: a + 1, "ends does not rise"),
        ("entropy", lambda a: a[:-1], "not of one length"),
        ("sizes", lambda a: a * 0 + 9, "the sizes of piece 0"),
        ("tokens", lambda a: a * 0 + 255, "a token beyond the vocabulary"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, change, said, tmp_path, monkeypatch):
    form, path = Form(200, samples=4), tmp_path / "block-0.safetensors"
    write = spoken_file.write_arrays

    def changed(path: Path, arrays: dict[str, Any], note: dict[str, Any]) -> None:
        write(path, {**arrays, array: np.ascontiguousarray(change(arrays[array]))}, note)

    monkeypatch.setattr(spoken_file, "write_arrays", changed)
    writer = SpokenWriter(form)
    for key in (0, 1):
        writer.add(key, Said(np.array([2]), np.array([5, 6]), np.array([0.5, 0.5]), np.array([1.0])))
    writer.write(path)
    with pytest.raises(DataError, match=said):
        SpokenFile(path, form).said(0)


def test_places_without_a_target_hear_nothing(data, tmp_path):
    said = asked(teaching(), corpus(data), tmp_path)
    for batch in corpus(data).batches(0, rows=8, micro_rows=4):
        weights = said(batch).extra["teacher.weights"].sum(-1)
        torch.testing.assert_close(weights, (batch.targets != IGNORE).float())
