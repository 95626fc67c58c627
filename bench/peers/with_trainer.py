"""The Trainer of transformers, on its GPT-2 or Llama."""

import tempfile

from peers.shapes import Shape
from peers.turns import ENDLESS_ROWS, LabelledRows, Turns, Voice
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)


def gpt2(shape: Shape) -> GPT2LMHeadModel:
    """Without dropout, as all systems here."""
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context,
        n_embd=shape.dim,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def llama(shape: Shape) -> LlamaForCausalLM:
    """With as much work as the others: three matrices of 8/3 of the width in its feed-forward layer."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.dim,
        intermediate_size=shape.gated_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        max_position_embeddings=shape.context,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def train(shape: Shape, voice: Voice, *, model: str, bf16: bool, compiled: bool) -> None:
    """Trainer with its own defaults (AdamW, clip 1.0), but for what is named here."""
    decoder: PreTrainedModel = {"gpt2": gpt2, "llama": llama}[model](shape)
    voice.tell(parameters=decoder.num_parameters())
    turns = Turns(voice, ahead=1)  # accelerate's loader reads one batch ahead
    turns.count_updates()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=shape.rows,
            max_steps=ENDLESS_ROWS // shape.rows,
            bf16=bf16,
            torch_compile=compiled,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(decoder, arguments, train_dataset=LabelledRows(shape, turns)).train()
