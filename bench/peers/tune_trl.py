"""trl's SFTTrainer teaches a decoder to answer: packed rows, loss on answers only, peft's thin matrices."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from peers.looks import Looks
from peers.tuning import arguments, read_rows
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

ROWS_AT_ONCE = 4
IGNORE = -100
MARKED = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\n' + SYSTEM + '<|im_end|>\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's template with the marks that `assistant_only_loss` needs, as trl has them for other models."""
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def train(options: Mapping[str, Any], output: str) -> dict[str, Any]:
    """As trl's guide to supervised fine-tuning does, with `packing` and `assistant_only_loss`."""
    rows, dev = read_rows(options["rows"], "train"), read_rows(options["rows"], "dev")
    tokenizer = marked(AutoTokenizer.from_pretrained(options["folder"]), rows[0]["messages"])
    looks = Looks(loss_on(dev), options["looks"], options["started"])
    settings = SFTConfig(
        **arguments(options, output),
        gradient_accumulation_steps=options["accumulate"],
        max_length=options["max_length"],
        gradient_checkpointing=options["checkpointing"],
        packing=True,
        assistant_only_loss=True,
    )
    SFTTrainer(
        AutoModelForCausalLM.from_pretrained(options["folder"], dtype=torch.float32),
        settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **options["lora"]),
        callbacks=[looks],
    ).train()
    return looks.record()


def marked(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> PreTrainedTokenizerBase:
    """The tokenizer with the marked template, which must write what the model's own one writes."""
    own = tokenizer.apply_chat_template(messages, tokenize=False)
    tokenizer.chat_template = MARKED.replace("SYSTEM", repr(SYSTEM))
    if tokenizer.apply_chat_template(messages, tokenize=False) != own:
        raise SystemExit("the marked chat template does not write what the model's own template writes")
    return tokenizer


def loss_on(dev: list[dict[str, Any]]) -> Callable[[torch.nn.Module], float]:
    """What gives a model's mean loss in nats over the targets of the rows `dev`, in float32."""
    ordered = sorted(dev, key=lambda row: len(row["ids"]))

    @torch.no_grad()
    def loss(model: torch.nn.Module) -> float:
        decoder = model.get_base_model()
        total, count = 0.0, 0
        for first in range(0, len(ordered), ROWS_AT_ONCE):
            batch = ordered[first : first + ROWS_AT_ONCE]
            ids = pad_sequence([torch.tensor(row["ids"]) for row in batch], batch_first=True)
            targets = pad_sequence([torch.tensor(row["targets"]) for row in batch], True, IGNORE)
            hidden = decoder.model(input_ids=ids).last_hidden_state  # what is padded comes after all targets
            wanted = targets != IGNORE
            logits = decoder.lm_head(hidden[wanted])
            total += float(cross_entropy(logits, targets[wanted], reduction="sum"))
            count += int(wanted.sum())
        return total / count

    return loss
