"""One arm of bench/gpu.py in a process of its own: `python gpu_worker.py JOB`, one JSON object in, one out.

Both libraries train the same architecture on the same random tokens with AdamW and clipping at 1.0, in bf16
on fp32 weights, compiled.  Windows of a few steps are timed, the device's queue empty at both ends.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from hasten.core.batch import Batch
from hasten.core.runtime import Runtime, start
from hasten.data.prefetch import Prefetch
from hasten.model.config import ModelConfig
from hasten.model.transformer import build
from hasten.objective.cross_entropy import CrossEntropy
from hasten.train.engine import Whole, pinned
from hasten.train.memory import peak_memory
from hasten.train.metrics import measure_peak
from hasten.train.optim import AdamWConfig, Optimizer
from hasten.train.step import train_step

Job = dict[str, Any]
TABLE_ROWS = 256
"""Rows of random tokens, read again and again."""
DOCUMENTS = 4
"""In each row of the arm with documents."""
PACKAGES = ("torch", "triton", "transformers", "accelerate")


class Watch:
    """When the first step ended, and how long each window of steps took after those that warm up."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device, self.steps = job, device, 0
        self.began = self.last = time.perf_counter()
        self.windows: list[float] = []
        self.first_step_seconds = 0.0

    @property
    def total(self) -> int:
        """Steps of the whole arm."""
        return int(self.job["warm_steps"] + self.job["windows"] * self.job["window_steps"])

    def step(self) -> None:
        """Note that a step was queued."""
        self.steps += 1
        timed = self.steps - self.job["warm_steps"]
        if self.steps == 1:
            self.wait()
            self.first_step_seconds = time.perf_counter() - self.began
        if timed >= 0 and timed % self.job["window_steps"] == 0:
            self.wait()
            now = time.perf_counter()
            if timed:
                self.windows.append((now - self.last) / self.job["window_steps"])
            self.last = now

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_rows(job: Job) -> Tensor:
    """Tokens with one more for the last target, [TABLE_ROWS, T + 1]."""
    vocabulary = ModelConfig.model_validate(job["model"]).vocabulary
    random = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (TABLE_ROWS, job["row_tokens"] + 1), generator=random)


def make_batches(job: Job, table: Tensor, step: int, gpu: bool) -> list[Batch]:
    """The micro-batches of a step."""
    batches = []
    for start_row in range(0, job["rows"], job["micro_rows"]):
        first = (step * job["rows"] + start_row) % TABLE_ROWS
        rows = table[torch.arange(first, first + job["micro_rows"]) % TABLE_ROWS]
        batch = Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        batch = with_documents(batch, step) if job["documents"] else batch
        batches.append(pinned(batch) if gpu else batch)
    return batches


def with_documents(batch: Batch, seed: int) -> Batch:
    """The same rows, each cut into DOCUMENTS pieces at random places."""
    rows, length = batch.tokens.shape
    random = torch.Generator().manual_seed(seed)
    starts = torch.rand(rows, length, generator=random).argsort(dim=1)[:, : DOCUMENTS - 1]
    begins = torch.zeros(rows, length, dtype=torch.int64).scatter(1, starts, 1)
    begins[:, 0] = 1
    at = torch.arange(length)
    positions = at - torch.where(begins.bool(), at, 0).cummax(dim=1).values
    return Batch(batch.tokens, batch.targets, begins.cumsum(dim=1), positions)


def train_hasten(job: Job, runtime: Runtime, watch: Watch) -> int:
    """The parts of `hasten train`, put together as `train/run.py` does; the number of parameters."""
    model = build(ModelConfig.model_validate(job["model"]), seed=0, device=runtime.device)
    engine = Whole(
        model,
        CrossEntropy(),
        runtime,
        precision=job["precision"],
        compiled=job["compiled"],
        packed=job["documents"],
    )
    optimizer, table = Optimizer(model, AdamWConfig(learning_rate=1e-4)), random_rows(job)
    gpu = runtime.device.type == "cuda"
    with Prefetch(lambda step: make_batches(job, table, step, gpu)) as batches:
        finite: list[Tensor] = []
        for step in range(watch.total):
            torch.manual_seed(step)
            finite.append(train_step(engine, optimizer, next(batches), max_norm=1.0).finite)
            if len(finite) > 1 and not finite.pop(0):  # the step before, as the loop does
                raise SystemExit(f"step {step} is not finite")
            watch.step()
    return sum(p.numel() for p in model.parameters())


def train_transformers(job: Job, runtime: Runtime, watch: Watch) -> int:
    """transformers' Trainer with its settings for speed; the number of parameters."""
    from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: PLC0415 (one arm only)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    table, gpu = random_rows(job), runtime.device.type == "cuda"

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for row in range(watch.total * job["rows"]):
                tokens = table[row % TABLE_ROWS, :-1]
                yield {"input_ids": tokens, "labels": tokens}  # the model shifts its labels itself

    model = their_model(ModelConfig.model_validate(job["model"]))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=job["micro_rows"],
            gradient_accumulation_steps=job["rows"] // job["micro_rows"],
            max_steps=watch.total,
            learning_rate=1e-4,
            bf16=True,
            tf32=True if gpu else None,
            torch_compile=job["compiled"],
            optim="adamw_torch_fused",
            use_cpu=not gpu,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    return model.num_parameters()


def their_model(config: ModelConfig) -> Any:
    """The same architecture in transformers: GPT-2 where positions are learned, else Llama."""
    from transformers import (  # noqa: PLC0415 (one arm only)
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    ends = {"bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "sdpa"}
    if config.position == "learned":
        drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = {"n_embd": config.dim, "n_layer": config.num_layers, "n_head": config.num_heads}
        sizes = {"vocab_size": config.vocabulary, "n_positions": config.max_positions}
        return GPT2LMHeadModel(GPT2Config(**shape, **sizes, **drops, **ends))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tied,
            **ends,
        )
    )


def versions() -> dict[str, str]:
    """What is installed here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def run(job: Job) -> dict[str, Any]:
    """Train one arm; what came of it."""
    runtime = start(job["device"])
    peak = measure_peak(runtime.device, "bf16")
    watch = Watch(job, runtime.device)
    train = train_hasten if job["library"] == "hasten" else train_transformers
    parameters = train(job, runtime, watch)
    gpu = runtime.device.type == "cuda"
    return {
        "step_seconds": watch.windows,
        "first_step_seconds": watch.first_step_seconds,
        "parameters": parameters,
        "peak_flops": peak,
        "peak_bytes": peak_memory(runtime.device),
        "reserved_bytes": torch.cuda.max_memory_reserved(runtime.device) if gpu else None,
        "gpu": torch.cuda.get_device_name(runtime.device) if gpu else None,
        "versions": versions(),
    }


def main() -> None:
    job = json.loads(sys.argv[1])
    try:
        answer = run(job)
    except torch.OutOfMemoryError:
        answer = {"out_of_memory": True}
    except ImportError as error:
        answer = {"missing": str(error).strip().partition("\n")[0]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
