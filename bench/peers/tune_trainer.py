"""The Trainer of transformers teaches an encoder labels, all of it or peft's thin matrices beside it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from peers.looks import Looks
from peers.tuning import arguments, read_rows
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

MAX_LENGTH = 256  # no row is so long
ROWS_AT_ONCE = 32


def train(options: Mapping[str, Any], output: str) -> dict[str, Any]:
    """As transformers' guide to text classification does."""
    set_seed(options["seed"])
    rows, dev = read_rows(options["rows"], "train"), read_rows(options["rows"], "dev")
    tokenizer = AutoTokenizer.from_pretrained(options["folder"])
    looks = Looks(accuracy_on(dev, tokenizer), options["looks"], options["started"])
    settings = TrainingArguments(
        **arguments(options, output),
        num_train_epochs=options["epochs"],
        train_sampling_strategy="group_by_length" if options["by_length"] else "random",
    )
    Trainer(
        model_of(options, rows),
        settings,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encoded(rows, tokenizer),
        processing_class=tokenizer,
        callbacks=[looks],
    ).train()
    return looks.record()


def model_of(options: Mapping[str, Any], rows: list[dict[str, Any]]) -> torch.nn.Module:
    """The encoder with a new head, whole or with thin matrices to train."""
    classes = 1 + max(row["label"] for row in rows)
    model = AutoModelForSequenceClassification.from_pretrained(options["folder"], num_labels=classes)
    if "lora" not in options:
        return model
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **options["lora"]))


def encoded(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Token ids and labels."""

    def ids(batch: dict[str, Any]) -> dict[str, Any]:
        return dict(tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH))

    return Dataset.from_list(rows).map(ids, batched=True, remove_columns=["text"])


def accuracy_on(
    dev: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> Callable[[torch.nn.Module], float]:
    """What gives a model's accuracy on the rows `dev`, in float32."""
    ordered = sorted(dev, key=lambda row: len(row["text"]))

    @torch.no_grad()
    def accuracy(model: torch.nn.Module) -> float:
        forward = getattr(model, "_original_forward", model.forward)  # without accelerate's autocast
        right = 0
        for first in range(0, len(ordered), ROWS_AT_ONCE):
            batch = ordered[first : first + ROWS_AT_ONCE]
            texts = [row["text"] for row in batch]
            read = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
            labels = torch.tensor([row["label"] for row in batch])
            right += int((forward(**read).logits.argmax(-1) == labels).sum())
        return right / len(ordered)

    return accuracy
