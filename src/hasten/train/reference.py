"""What the model that a training begins with gives every answer, computed once and kept on the disk.

A preference is compared with that model (`objective/preference.py`).  One pass before the first step replaces
a second model in memory and a second forward in every step.  With adapters, the model of the beginning is the
one whose adapters are switched off; without, it must be asked before the first step changes it.

Letters in shapes: B rows, M texts of a row, E texts in all.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, distributed, nn

from hasten.core.batch import Batch
from hasten.core.console import Progress, say
from hasten.core.errors import DataError
from hasten.core.files import fingerprint, write_bytes
from hasten.core.runtime import Runtime
from hasten.objective.preference import Preference
from hasten.parallel.arrangement import Arrangement, local
from hasten.train.agree import Agreement
from hasten.train.engines import make_engine

Numbered = tuple[np.ndarray, Batch]
"""The numbers [B, M] int64 of the texts in a batch, -1 where a row holds fewer, and the batch."""
BLOCK = 16
"""Batches between two looks at what is known by now."""
SAVE_SECONDS = 30.0
TENSOR = "log_probs"
VERSION = 1
"""Of what the figures mean; another one, and none that were kept are used."""


class LogProbs:
    """An objective that learns nothing and keeps what the model gives each answer."""

    def __init__(self, preference: Preference) -> None:
        self.preference = preference
        self.seen: list[Tensor] = []  # [B, M] of each batch whose hidden states came out here

    def count(self, batch: Batch) -> Tensor:
        """The number of pairs, []."""
        return self.preference.count(batch)

    def enrich(self, batch: Batch) -> Batch:
        """Nothing to add."""
        return batch

    def inputs(self, batch: Batch) -> dict[str, Tensor | None]:
        """As those of the preference."""
        return self.preference.inputs(batch)

    def loss(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """Zero []; the log-probabilities of all answers are in `seen`."""
        self.seen.append(self.preference.texts(model, hidden, batch).log_probs.cpu())
        return torch.zeros((), device=hidden.device)

    def correct(self, model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """Zero []."""
        return torch.zeros((), device=hidden.device)


def reference(
    model: nn.Module,
    objective: Preference,
    batches: Iterable[Numbered],
    count: int,
    *,
    runtime: Runtime,
    arrangement: Arrangement,
    folder: Path,
    data: str,
    precision: str = "fp32",
) -> np.ndarray:
    """The summed log-probability of each of `count` texts under `model` as it is: [E] float32, on every rank.

    `batches` are this replica's share: every text once over all replicas, and equally many batches on each
    (`Corpus.sweep`).  What `folder` holds under the name of these weights, `data` (a fingerprint) and
    `precision` is taken from there; what is missing is computed and kept, from time to time while it grows.
    Raises DataError where a figure is not finite, or a text is in no batch.
    """
    name = f"reference-{name_of(model, runtime, data, precision)}.safetensors"
    agreement = Agreement(runtime)
    known = agreement.led(read(folder / name, count) if agreement.leads else None)
    if not np.isnan(known).any():
        return known
    if agreement.leads:
        say(f"reference  {count:,} answers under the model that training begins with, kept as {name}")
    asked = Pass(model, objective, runtime, arrangement=arrangement, agreement=agreement, precision=precision)
    saved = time.monotonic()
    with Progress("reference", count, "answers") if agreement.leads else nullcontext() as progress:
        for block in blocks(batches):
            if agreement.any(bool(np.isnan(known[numbers_in(block)]).any())):
                asked.fill(known, block)
            if progress is not None:
                progress.update(int(np.count_nonzero(~np.isnan(known))))
            if agreement.leads and time.monotonic() - saved > SAVE_SECONDS:
                keep(folder / name, known)
                saved = time.monotonic()
    check(known)
    if agreement.leads:
        keep(folder / name, known)
    return known


class Pass:
    """One look at every text, by all processes of a mesh."""

    def __init__(
        self,
        model: nn.Module,
        objective: Preference,
        runtime: Runtime,
        *,
        arrangement: Arrangement,
        agreement: Agreement,
        precision: str,
    ) -> None:
        self.objective, self.agreement = LogProbs(objective), agreement
        # Of equal figures on several processes one counts.
        self.speaks = not any(arrangement.grid.place[axis] for axis in ("context", "tensor"))
        self.engine = make_engine(
            model, self.objective, runtime, arrangement, precision=precision, compiled=False
        )

    def fill(self, known: np.ndarray, block: Sequence[Numbered]) -> None:
        """Put the figures of some batches, of every rank's, into `known` [E]."""
        self.objective.seen = []
        self.engine.measure([batch for _, batch in block])
        found, times = torch.zeros(len(known)), torch.zeros(len(known))
        if self.speaks:
            for (numbers, _), seen in zip(block, self.objective.seen, strict=False):  # none on early stages
                asked = torch.from_numpy(numbers)
                there = asked >= 0
                found[asked[there]] = seen.float()[:, : asked.shape[1]][there]
                times[asked[there]] = 1
        if self.agreement.group is not None:
            distributed.all_reduce(found, group=self.agreement.group)
            distributed.all_reduce(times, group=self.agreement.group)
        new = (times > 0).numpy()
        # What is not a number was asked for all the same.
        known[new] = np.nan_to_num((found / times).numpy()[new], nan=-np.inf, neginf=-np.inf)


def blocks(batches: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """Some batches at a time."""
    rest = iter(batches)
    while block := list(islice(rest, BLOCK)):
        yield block


def numbers_in(block: Sequence[Numbered]) -> np.ndarray:
    """The numbers of all texts in some batches."""
    numbers = np.concatenate([numbers.reshape(-1) for numbers, _ in block])
    return numbers[numbers >= 0]


def check(known: np.ndarray) -> None:
    """Refuse figures that no training can use."""
    bad = np.flatnonzero(~np.isfinite(known))
    if len(bad):
        what = "is in no batch" if np.isnan(known[bad[0]]) else "has no finite log-probability"
        raise DataError(
            f"answer {int(bad[0])} (of pair {int(bad[0]) // 2}, counted from 0) {what} under the model that"
            " training begins with; look at that pair, or begin with another model"
        )


def name_of(model: nn.Module, runtime: Runtime, data: str, precision: str) -> str:
    """What the figures depend on, in sixteen digits: weights, data, precision."""
    about = {"weights": weights_name(model, runtime), "data": data, "precision": precision}
    return fingerprint({**about, "version": VERSION})


@torch.no_grad()
def weights_name(model: nn.Module, runtime: Runtime) -> str:
    """A name of all weights: one for a model that is whole on each process, another for each mesh."""
    state = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(local(tensor).detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    digests = Agreement(runtime).gathered((state.hexdigest(),))
    return " ".join(sorted(set(digests)))


def read(path: Path, count: int) -> np.ndarray:
    """What was kept of `count` figures: [E] float32, NaN where nothing is known."""
    nothing = np.full(count, np.nan, np.float32)
    if not path.is_file():
        return nothing
    try:
        kept = load(path.read_bytes())[TENSOR]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        say(f"{path} cannot be read and is made again ({error})")
        return nothing
    if kept.shape != (count,) or kept.dtype != np.float32:
        say(f"{path} does not hold {count:,} figures and is made again")
        return nothing
    return kept.copy()


def keep(path: Path, known: np.ndarray) -> None:
    """Write the figures, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save({TENSOR: known}))
