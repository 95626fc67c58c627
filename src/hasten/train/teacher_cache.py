"""What a teacher says of all training data, asked once and kept for every student.

    teachers/NAME/block-00000-000000.safetensors   pieces, file after file (`spoken_file.py`)
    teachers/NAME/complete.json                    written last: all pieces are there

Each file appears whole.  After a kill the pieces of the files that are there are known; the rest is asked.
Letters in shapes: N places with a target, V vocabulary.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.core.batch import Batch
from hasten.core.console import Progress, say
from hasten.core.errors import ConfigError, DataError
from hasten.core.files import fingerprint, sweep, write_json
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.data.identity import only_one
from hasten.data.masked import MaskedCorpus
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.drawn import drawn, likeliest
from hasten.train.agree import Agreement
from hasten.train.load import digest_of
from hasten.train.spoken import Piece, Spoken, files_in, pieces_of
from hasten.train.spoken_file import Form, Said, SpokenFile, SpokenWriter
from hasten.train.teacher import Teaching

TEACHERS = "teachers"
"""The folder beside prepared data with what teachers said of it."""
COMPLETE = "complete.json"
VERSION = 1
"""Of what is kept and how a piece is known; another one, and nothing that was kept is used."""
SWEEP_TOKENS = 4096
"""Read at once by the teacher."""
BLOCK_PLACES, BLOCK_SECONDS = 1 << 20, 30.0
"""A file is written after so many places, or so much time: what a kill can cost."""
AT_ONCE = 1 << 22
"""Numbers of a distribution that are looked at together."""


def spoken(
    teaching: Teaching,
    corpus: Corpus,
    *,
    folder: Path,
    data: str,
    runtime: Runtime,
    precision: str,
    share: tuple[int, int],
    rows: int | None = None,
) -> Spoken:
    """What the teacher says of a corpus, from the disk where it was asked before, else asked now.

    `folder` holds what all teachers said, `data` names the corpus.  `share` is this process's number among
    those that share the rows, and how many they are: all of them call this, and see one folder.  A training
    that reads less than all of the corpus asks about its first `rows`.
    Raises ConfigError for rows that are not the same in every epoch.
    """
    config = teaching.config.cache
    assert config is not None
    check_rows(corpus)
    form = form_of(teaching)
    place = (config.folder or folder) / name_of(teaching, data, precision)
    asking = Asking(teaching, form, place, runtime, precision)
    with only_one(place) if asking.agreement.leads else nullcontext():
        if not asking.complete():
            asking.ask(corpus, share, None if rows is None or rows >= corpus.num_rows else rows)
    return Spoken(place, form)


def check_rows(corpus: Corpus) -> None:
    """Refuse rows that are not the same in every epoch."""
    if isinstance(corpus, MaskedCorpus):
        raise ConfigError(
            "objective.cache: which tokens are hidden is drawn anew in every epoch, so what a teacher said of"
            " them does not come again; write objective.cache=null"
        )


def form_of(teaching: Teaching) -> Form:
    """What is kept of a place."""
    config = teaching.config.cache
    assert config is not None
    samples = config.samples if isinstance(config.samples, int) else None
    return Form(teaching.known, None if config.top else samples, config.top)


def name_of(teaching: Teaching, data: str, precision: str) -> str:
    """What is kept depends on the teacher's weights, the data, the temperature and how it is drawn."""
    config = teaching.config.cache
    assert config is not None
    kept = config.model_dump(mode="json", exclude={"folder"})
    about = [digest_of(dict(teaching.teacher.named_parameters())), data, kept, teaching.known, precision]
    temperature = teaching.config.temperature if config.sparse else None  # logits serve all temperatures
    asked = [] if teaching.reading is None else [teaching.reading.encoding.config.prompt]
    return fingerprint([*about, temperature, VERSION, *asked])


class Asking:
    """The work of asking a teacher about every piece that is not known yet, by all processes together."""

    def __init__(
        self, teaching: Teaching, form: Form, folder: Path, runtime: Runtime, precision: str
    ) -> None:
        self.teaching, self.form, self.folder, self.runtime = teaching, form, folder, runtime
        self.half, self.agreement = precision != "fp32", Agreement(runtime)
        self.writer, self.saved = SpokenWriter(form), time.monotonic()

    def complete(self) -> bool:
        """Whether nothing is left to ask, the same on all processes."""
        there = self.agreement.leads and (self.folder / COMPLETE).is_file()
        return self.agreement.any(there)

    def ask(self, corpus: Corpus, share: tuple[int, int], rows: int | None) -> None:
        """Look at the rows, of all or the first ones, ask about what is new, write it down as it grows."""
        count, at_once = rows or corpus.num_rows, max(SWEEP_TOKENS // corpus.row_tokens, 1)
        if self.agreement.leads:
            self.begin(corpus.num_supervised * count // corpus.num_rows)
        self.agreement.any(False)  # nobody looks before what is damaged is gone
        known = {int(key) for path in files_in(self.folder) for key in SpokenFile(path, self.form).keys}
        rank, world_size = share
        self.writer, self.saved = SpokenWriter(self.form), time.monotonic()
        batches = (
            corpus.sweep(at_once, rank=rank, world_size=world_size)
            if rows is None
            else first_rows(corpus, rows, at_once, share)
        )
        with Progress("teacher", count, "rows") as progress:
            for number, batch in enumerate(batches, 1):
                fresh = {piece.key: piece for piece in pieces_of(batch) if piece.key not in known}
                if fresh:
                    self.hear(batch, list(fresh.values()))
                known |= fresh.keys()
                if self.agreement.leads:
                    progress.update(min(number * at_once * world_size, count))
                self.write(rank, last=False)
        self.write(rank, last=True)
        self.agreement.any(False)  # all have written
        if self.agreement.leads:
            self.end(complete=rows is None)

    def begin(self, count: int) -> None:
        """Say what it will take, refuse a disk without room, and drop what a kill or a fault left damaged."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        for path in files_in(self.folder):
            try:
                SpokenFile(path, self.form)
            except DataError as error:
                say(f"teacher    {error}")
                path.unlink()
        each = self.form.place_bytes
        size = f"{count:,} targets x at most {each:,} bytes = {count * each / 1e9:,.3f} GB"
        say(f"teacher    {size}, kept in {self.folder}")
        if self.teaching.config.cache and self.teaching.config.cache.top:
            say("teacher    the likeliest tokens alone are kept: what is learnt is biased; samples are not")
        there = sum(path.stat().st_size for path in files_in(self.folder))
        free = shutil.disk_usage(self.folder).free
        if count * each - there > free:
            raise DataError(
                f"{self.folder}: what the teacher says may take {count * each / 1e9:,.2f} GB, and the disk"
                f" has {free / 1e9:,.2f} GB left; write fewer objective.cache.samples, or another"
                " objective.cache.folder"
            )

    def end(self, complete: bool) -> None:
        """Say what there is, and note whether that is all."""
        paths = files_in(self.folder)
        places = sum(int(SpokenFile(path, self.form).bounds[-1]) for path in paths)
        size = sum(path.stat().st_size for path in paths)
        if complete:
            write_json(self.folder / COMPLETE, {"files": len(paths), "places": places, "bytes": size})
        say(f"teacher    {places:,} places in {size / 1e9:,.3f} GB: {size / max(places, 1):,.1f} bytes each")

    @torch.no_grad()
    def hear(self, batch: Batch, pieces: list[Piece]) -> None:
        """Ask the teacher about some texts of a batch."""
        teacher = self.teaching.teacher
        cuts = np.cumsum([len(piece.places) for piece in pieces])
        with torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=self.half):
            states = self.states(batch, pieces)
            chance = torch.from_numpy(np.concatenate([self.chances(piece) for piece in pieces]))
            size = max(1, AT_ONCE // teacher.config.vocabulary)
            parts = zip(states.split(size), chance.split(size), strict=True)
            said = joined(
                [self.kept(teacher.logits(some)[:, : self.form.vocab_size], its) for some, its in parts]
            )
        for piece, own in zip(pieces, cut(said, cuts), strict=True):
            self.writer.add(piece.key, own)

    def states(self, batch: Batch, pieces: list[Piece]) -> Tensor:
        """The teacher's states [N, D] at the places of some texts of a batch, as it reads them."""
        device, teacher = self.runtime.device, self.teaching.teacher
        if self.teaching.reading is not None:
            names = dict(zip((piece.key for piece in pieces_of(batch)), batch.documents, strict=True))
            return self.teaching.reading.states(teacher, [names[piece.key] for piece in pieces], device)
        places = np.concatenate([piece.row * batch.tokens.shape[1] + piece.places for piece in pieces])
        hidden = teacher(**CrossEntropy().inputs(batch.to(device))).flatten(0, 1)
        return hidden[torch.from_numpy(places).to(device)]

    def chances(self, piece: Piece) -> NDArray[np.float64]:
        """The random number of each place: the piece's own, whoever asks and when."""
        seed = self.teaching.config.cache.seed if self.teaching.config.cache else 0
        return np.random.Generator(np.random.Philox(key=piece.key + (seed << 64))).random(len(piece.places))

    def kept(self, logits: Tensor, chance: Tensor) -> Said:
        """What is kept of logits [n, V]."""
        if self.form.most is None:
            nothing = np.empty(0, np.float32)
            return Said(
                np.zeros(len(logits), np.int64), nothing, nothing, nothing, logits.float().cpu().numpy()
            )
        log_p = (logits.float() / self.teaching.config.temperature).log_softmax(dim=-1)
        found = (
            drawn(log_p, chance, self.form.most)
            if self.form.top is None
            else likeliest(log_p, self.form.most)
        )
        there = torch.arange(found.tokens.shape[1], device=log_p.device) < found.sizes[:, None]
        return Said(
            *(
                x.cpu().numpy()
                for x in (found.sizes, found.tokens[there], found.weights[there], found.entropy)
            )
        )

    def write(self, rank: int, last: bool) -> None:
        """Put what was heard into a file, once it is enough."""
        late = time.monotonic() - self.saved > BLOCK_SECONDS
        if not self.writer.keys or not (last or late or self.writer.num_places >= BLOCK_PLACES):
            return
        number = len(list(self.folder.glob(f"block-{rank:05}-*.safetensors")))
        while (path := self.folder / f"block-{rank:05}-{number:06}.safetensors").exists():
            number += 1
        self.writer.write(path)
        self.writer, self.saved = SpokenWriter(self.form), time.monotonic()


def first_rows(corpus: Corpus, count: int, at_once: int, share: tuple[int, int]) -> Iterator[Batch]:
    """The first `count` rows that a training reads, as `Corpus.sweep` gives all."""
    rank, world_size = share
    together = at_once * world_size
    for start in range(0, count, together):
        numbers = np.arange(start, min(start + together, count))[rank * at_once :][:at_once]
        yield corpus.read(corpus.order, numbers, at_once)


def joined(parts: list[Said]) -> Said:
    """What is said at the places of all parts."""
    names = ("sizes", "tokens", "weights", "entropy")
    logits = [part.logits for part in parts if part.logits is not None]
    sizes, tokens, weights, entropy = (
        np.concatenate([getattr(part, name) for part in parts]) for name in names
    )
    return Said(sizes, tokens, weights, entropy, np.concatenate(logits) if logits else None)


def cut(said: Said, cuts: NDArray[np.int64]) -> Iterator[Said]:
    """What is said in each of several pieces, whose places end at `cuts`."""
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(said.sizes)])
    start = 0
    for stop in cuts.tolist():
        places, tokens = slice(start, stop), slice(int(ends[start]), int(ends[stop]))
        logits = None if said.logits is None else said.logits[places]
        yield Said(
            said.sizes[places], said.tokens[tokens], said.weights[tokens], said.entropy[places], logits
        )
        start = stop
