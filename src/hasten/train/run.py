"""The loop: look, save, step; and what happens when a step goes wrong or someone asks to stop."""

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hasten.core.batch import Batch
from hasten.core.errors import HastenError
from hasten.core.runtime import Runtime
from hasten.data.corpus import Corpus
from hasten.data.prefetch import Prefetch
from hasten.model.transformer import Transformer
from hasten.objective.cross_entropy import CrossEntropy
from hasten.objective.distilled import Distilled
from hasten.objective.protocol import Objective
from hasten.parallel.arrangement import Arrangement
from hasten.parallel.recompute import recompute
from hasten.tokenizer.tokenizer import Tokenizer
from hasten.train.agree import Agreement
from hasten.train.begin import adaptation_of
from hasten.train.config import TrainConfig
from hasten.train.engine import pinned
from hasten.train.engines import make_engine
from hasten.train.horizon import Moment
from hasten.train.journal import Journal
from hasten.train.look import METRICS, SCORE, VALIDATION, Looks, Probe
from hasten.train.memory import peak_memory
from hasten.train.metrics import Window
from hasten.train.optim import Optimizer, Rates
from hasten.train.pace import Pace
from hasten.train.plan import make_plan, settle_machine
from hasten.train.restore import restore
from hasten.train.saves import Saves
from hasten.train.signals import StopSignals
from hasten.train.state import State
from hasten.train.step import Outcome, train_step
from hasten.train.times import CHECKPOINTS, DATA, LOOKS, MODEL, REST, make_times
from hasten.train.validate import Validation
from hasten.train.warm import remember
from hasten.train.watchdog import Watchdog

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Decision:
    """What comes next, the same on all ranks."""

    moment: Moment
    looks: list[str]
    save: bool
    stop: bool


@dataclass(frozen=True)
class Taken:
    """A step that nobody has looked at yet."""

    step: int
    data_step: int
    documents: tuple[str, ...]
    outcome: Outcome


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    steps: int
    tokens: int
    seconds: float
    skipped: int  # steps that were not finite
    rollbacks: int
    validation: dict[str, float]  # the last figures, a score among them
    times: dict[str, float]  # seconds of each of `times.PARTS`, which add up to `seconds`
    peak_memory: int  # bytes: a GPU's for tensors, else all that the process held
    completed: bool  # False: asked to stop before the end
    step_seconds: float = 0.0  # of a step, the median of the last; 0 where none was taken
    predicted: dict[str, float | None] = field(default_factory=dict)  # `step_seconds` and `peak_memory`


class Run:
    """One training, begun or continued in `folder`; `fit` takes it to its end.

    The folder gets metrics.jsonl, quarantine.jsonl and checkpoints/.  A run told how many minutes to take
    counts them from `started`, a `time.monotonic()`, by default from here.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        *,
        model: Transformer,
        corpus: Corpus,
        runtime: Runtime,
        objective: Objective,
        validation: Corpus | None = None,
        probes: Sequence[Probe] = (),
        tokenizer: Path | None = None,
        parent: str | None = None,
        started: float | None = None,
        arrangement: Arrangement | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.notes = notes or {}
        self.arrangement = arrangement or Arrangement.of(model, runtime)
        self.grid = self.arrangement.grid
        self.started = time.monotonic() if started is None else started
        self.times = make_times(self.started, runtime.device)
        self.folder, self.config, self.runtime, self.model = folder, config, runtime, model
        self.corpus, self.tokenizer, self.parent = corpus, tokenizer, parent
        self.objective = objective
        given = config, model.config, corpus, objective, runtime
        self.plan = make_plan(*given, grid=self.grid, adaptation=adaptation_of(model))
        recompute(model, self.plan.work.recompute, self.plan.work.recompute_layers)
        self.state = State(self.plan.batch_rows, self.plan.row_tokens, config.seed, self.plan.micro_rows)
        self.rates = Rates.at(config.optimizer, model.config, self.plan.batch_tokens)
        self.optimizer = Optimizer(
            model, config.optimizer, self.rates, self.arrangement, keep_zeros=config.keep_zeros
        )
        self.metric = METRICS[config.metric]
        self.looks = Looks(self.open_validation(validation), config.validate_every, probes)
        self.agreement = Agreement(runtime)
        self.leads = self.agreement.leads
        self.watchdog = Watchdog(runtime, self.agreement)
        self.pace = Pace(runtime.device, self.plan, self.plan.flops_per_token, runtime.world_size)
        self.signals = StopSignals()
        self.taken: deque[Taken] = deque()
        self.journal = Journal(folder, self.plan, tensorboard=config.tensorboard, leads=self.leads)
        self.saves = Saves(folder / "checkpoints", config, leads=self.leads, arrangement=self.arrangement)

    def open_validation(self, corpus: Corpus | None) -> Validation | None:
        """The rows to validate on, read once."""
        if corpus is None:
            return None
        return Validation(
            corpus,
            self.runtime,
            max_tokens=self.config.validation_tokens,
            micro_rows=self.plan.micro_rows,
            tokenizer=Tokenizer.load(self.tokenizer) if self.tokenizer else None,
            grid=self.grid,
            words=isinstance(self.objective, CrossEntropy | Distilled)
            and self.model.config.head == "vocabulary",
        )

    def fit(self) -> Summary:
        """Train to the end, or until SIGTERM or SIGINT; all is saved then, and a new run goes on from it."""
        self.resume()
        self.pace.peak, compiled = settle_machine(
            self.plan, self.config, self.model.config, self.runtime, self.state.step
        )
        self.engine = make_engine(
            self.model,
            self.objective,
            self.runtime,
            self.arrangement,
            precision=self.plan.precision,
            compiled=compiled,
            packed=self.corpus.packed,
        )
        with (
            self.signals,
            self.watchdog,
            Prefetch(self.make_batches, self.state.data_step) as self.batches,
            self.journal,
            # On a GPU attention may be compiled where the model is not.
            self.times.watching_compiler(compiled or self.runtime.device.type == "cuda"),
        ):
            self.times.enter(REST)
            decision = self.loop()
            if compiled:
                remember(self.plan.note)
            with self.times.of(CHECKPOINTS):
                self.saves.wait()
            return self.summary(decision)

    def loop(self) -> Decision:
        """Look, save, step, until there is nothing left or someone asks to stop."""
        while True:
            decision = self.decide()
            if self.settle(keep=0 if decision.looks or decision.save else 1):
                continue
            if decision.save and not self.sound():
                self.roll_back()
                continue
            with self.times.of(LOOKS):
                for name in decision.looks:
                    self.watchdog.beat(self.state.step, name)
                    self.look(name, decision.moment)
            if self.no_longer_learns() and not decision.moment.ended:
                continue  # to decide anew, with nothing left to train
            if decision.save:
                with self.times.of(CHECKPOINTS):
                    self.watchdog.beat(self.state.step, CHECKPOINT)
                    self.save(decision)
            if decision.stop or decision.moment.ended:
                return decision
            self.watchdog.beat(self.state.step)
            self.advance(decision.moment)
            self.watchdog.beat(self.state.step)

    def decide(self) -> Decision:
        """What comes next: rank 0's clock counts, and any rank may have been asked to stop."""
        stop = self.agreement.any(self.signals.stopping)
        return self.agreement.led(self.own_decision(stop) if self.leads else None)

    def own_decision(self, stop: bool) -> Decision:
        """What comes next by this rank's clock."""
        step_seconds = self.pace.step_seconds
        token_seconds = step_seconds / self.plan.batch_tokens
        moment = self.plan.horizon.moment(
            self.state.step,
            self.elapsed(),
            reserve=self.looks.estimate_all(token_seconds) + self.saves.seconds,
            step_seconds=step_seconds,
        )
        if self.state.finished == self.plan.horizon.total or self.no_longer_learns():
            moment = replace(moment, ended=True)
        looks = [] if stop else self.looks.due(moment, token_seconds)
        return Decision(moment, looks, self.saves.due(moment, stop), stop)

    def no_longer_learns(self) -> bool:
        """Whether validations have not become better for as long as the recipe has patience."""
        return self.config.patience is not None and self.state.worse >= self.config.patience

    def elapsed(self) -> float:
        """Seconds of the run, those before a resume included."""
        return self.state.elapsed + time.monotonic() - self.started

    def make_batches(self, data_step: int) -> list[Batch]:
        """This rank's micro-batches of one step."""
        batches = self.corpus.batches(
            data_step,
            rows=self.plan.batch_rows,
            micro_rows=self.state.micro_rows,
            rank=self.grid.replica,
            world_size=self.grid.replicas,
        )
        return [pinned(batch) for batch in batches] if self.runtime.device.type == "cuda" else batches

    def advance(self, moment: Moment) -> None:
        """Take a step, then see how the one before went: looking back keeps a GPU's queue filled."""
        began = time.perf_counter()
        with self.times.of(DATA):
            batches = next(self.batches)
        # Dropout too is a function of the step alone, on any number of ranks, whatever was drawn before.
        torch.manual_seed(step_seed(self.config.seed, self.state.data_step, self.grid.seed_place))
        multiplier = self.config.schedule.multiplier(moment.progress, self.state.step)
        with self.times.step() as halfway:
            outcome = train_step(
                self.engine,
                self.optimizer,
                batches,
                multiplier=multiplier,
                max_norm=self.config.max_grad_norm,
                turn=self.state.step,
                halfway=halfway,
            )
        self.state.step += 1
        documents = tuple(name for batch in batches for name in batch.documents)
        self.taken.append(Taken(self.state.step, self.state.data_step, documents, outcome))
        self.state.data_step += 1
        if self.settle(keep=1):
            return
        self.pace.add(outcome, began)
        if self.state.step % self.config.log_every == 0:
            self.write_line(multiplier)
        self.journal.show(self.state.step, self.elapsed(), self.pace.step_seconds)

    def settle(self, keep: int) -> bool:
        """Look at all steps taken but the last `keep`; True if that led back to a checkpoint."""
        while len(self.taken) > keep:
            taken = self.taken.popleft()
            with self.times.of(MODEL):  # here a GPU's step is waited for
                finite = bool(taken.outcome.finite)
            if finite:
                self.state.skips = 0
                continue
            self.state.skips += 1
            self.state.skipped += 1
            documents = self.agreement.gathered(taken.documents)
            loss, norm = taken.outcome.loss.item(), taken.outcome.norm.item()
            self.journal.skipped(taken.step, taken.data_step, documents, loss, norm)
            if self.state.skips >= self.config.max_skips:
                self.roll_back()
                return True
        return False

    def sound(self) -> bool:
        """Whether all weights are finite: nothing else may become a checkpoint to go back to."""
        held = self.optimizer.parameters.values()
        return not self.agreement.any(not torch.stack([p.isfinite().all() for p in held]).all())

    def roll_back(self) -> None:
        """Weights and optimizer as last saved; the data goes on behind the batches that did harm."""
        now = self.state
        folder = self.newest_checkpoint()
        if folder is None or now.rollbacks >= self.config.max_rollbacks:
            back = f"after going back {now.rollbacks} times" if folder else "and there is no checkpoint yet"
            raise HastenError(
                f"{self.folder}: loss or weights are not finite around step {now.step}, {back}; lower the"
                " learning rates in train.optimizer, or clean the documents that quarantine.jsonl names"
            )
        with self.times.of(CHECKPOINTS):
            self.load(folder)
        self.state.data_step, self.state.elapsed = now.data_step, now.elapsed
        self.state.skips, self.state.skipped, self.state.rollbacks = 0, now.skipped, now.rollbacks + 1
        self.taken.clear()
        self.journal.say(f"back to {folder.name}, and on with data that was not seen yet")

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, or begin."""
        folder = self.newest_checkpoint()
        if folder is None:
            self.journal.keep(-1)  # lines of a run that ended before it saved anything
            return
        self.load(folder)
        self.times.before = self.state.times
        self.journal.say(f"going on from {folder.name}")

    def newest_checkpoint(self) -> Path | None:
        """Where to go back to, the same on all ranks."""
        found = self.saves.latest()
        return self.agreement.led((found,) if self.leads else None)[0]

    def load(self, folder: Path) -> None:
        """Everything as it was when `folder` was saved."""
        planned = self.state.micro_rows
        saved = restore(folder, self.model, self.optimizer, self.arrangement)
        self.state = State.from_json(saved, self.state, folder)
        cut = self.state.micro_rows * self.grid.replicas
        if self.config.micro_batch_tokens != "auto" or self.plan.batch_rows % cut:
            self.state.micro_rows = planned
        self.pace.restore(Window(**self.state.window))
        self.looks.restore(self.state.cadences, self.state.costs)
        self.saves.restore(self.state.cadences[CHECKPOINT], self.state.costs[CHECKPOINT])
        self.journal.keep(self.state.step)

    def save(self, decision: Decision) -> None:
        """Write everything down; what the run ends with is waited for."""
        moment = decision.moment
        self.saves.done(moment)
        if moment.ended:
            self.state.finished = self.plan.horizon.total
        if self.leads:
            self.journal.sync()
        self.saves.save(
            moment.step,
            last=decision.stop or moment.ended,
            model=self.model,
            optimizer=self.optimizer,
            state=self.state_to_save(),
            tokenizer=self.tokenizer,
            metric=self.state.judged,
            parent=self.parent,
            notes=self.notes,
        )

    def state_to_save(self) -> dict[str, Any]:
        """Where the run stands, as `load` wants it."""
        self.state.window = asdict(self.pace.meter.read())
        self.state.cadences = {CHECKPOINT: self.saves.cadence.state(), **self.looks.state()}
        self.state.costs = {CHECKPOINT: self.saves.seconds, **self.looks.seconds}
        return {**self.state.to_json(), "elapsed": self.elapsed(), "times": self.times.read()}

    def look(self, name: str, moment: Moment) -> None:
        """Take a look and write down what was seen."""
        figures = self.looks.take(name, self.engine, self.model, moment, self.leads)
        if name in (VALIDATION, SCORE):  # what rank 0 alone has seen, all are to stop by
            figures = self.agreement.led(dict(figures) if self.leads else None)
            self.state.validation |= figures
        if name == self.metric.look:
            self.state.judge(self.metric.of(figures))
        if figures:
            self.journal.write(moment.step, name, {**figures, **self.place()})

    def place(self) -> dict[str, float]:
        """Where in the run and in the data a line was written."""
        return {
            "tokens": self.state.step * self.plan.batch_tokens,
            "seconds": round(self.elapsed(), 3),
            "epoch": self.corpus.epoch(self.state.data_step, self.plan.batch_rows),
        }

    def write_line(self, multiplier: float) -> None:
        """One line of means since the last: the only time that the loop waits for the device."""
        with self.times.of(MODEL):
            figures = self.pace.take()
        rates = {"learning_rate": multiplier * self.rates["matrix"]}
        self.journal.write(self.state.step, "train", {**figures, **rates, **self.place()})

    def summary(self, decision: Decision) -> Summary:
        """What the run came to, and where its time went."""
        times = self.times.read()
        return Summary(
            steps=self.state.step,
            tokens=self.state.step * self.plan.batch_tokens,
            seconds=sum(times.values()),
            skipped=self.state.skipped,
            rollbacks=self.state.rollbacks,
            validation=self.state.validation,
            times=times,
            peak_memory=peak_memory(self.runtime.device),
            completed=decision.moment.ended,
            step_seconds=self.pace.step_seconds,
        )


def step_seed(seed: int, data_step: int, place: int) -> int:
    """A seed of 63 bits for the randomness inside one step at one place of the batch."""
    digest = hashlib.sha256(f"{seed} {data_step} {place}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
