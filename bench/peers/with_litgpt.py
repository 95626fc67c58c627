"""litgpt: its model, and what its `pretrain.py` does for a step."""

import lightning
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy
from peers.shapes import Shape
from peers.turns import Rows, Turns, Voice
from torch.utils.data import DataLoader


def decoder(shape: Shape) -> Config:
    """The configuration that litgpt has for TinyLlama, in our size."""
    return Config(
        block_size=shape.context,
        vocab_size=shape.vocab_size,
        padding_multiple=64,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_embd=shape.dim,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.gated_width,
    )


def train(shape: Shape, voice: Voice, *, precision: str, compiled: bool) -> None:
    """Fabric, the compiled model, its chunked loss, clip 1.0, AdamW.

    `pretrain.py` fuses AdamW on CUDA only; here it is fused, which is five times faster on a CPU.
    """
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    fabric.launch()
    gpt = GPT(decoder(shape))
    voice.tell(parameters=sum(p.numel() for p in gpt.parameters()))
    turns = Turns(voice)
    turns.count_updates()
    model = fabric.setup(torch.compile(gpt) if compiled else gpt)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    optimizer = fabric.setup_optimizers(adam)
    loader = fabric.setup_dataloaders(DataLoader(Rows(shape, turns), batch_size=shape.rows))
    for rows in loader:
        inputs, targets = rows[:, :-1].contiguous().long(), rows[:, 1:].contiguous().long()
        loss = chunked_cross_entropy(model(inputs), targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
