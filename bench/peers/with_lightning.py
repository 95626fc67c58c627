"""Lightning's Trainer around the GPT-2 of transformers."""

import lightning
import torch
from peers.shapes import Shape
from peers.turns import LabelledRows, Turns, Voice
from peers.with_trainer import gpt2
from torch import Tensor
from torch.utils.data import DataLoader


class LanguageModel(lightning.LightningModule):
    """What a user writes."""

    def __init__(self, shape: Shape, compiled: bool) -> None:
        super().__init__()
        self.decoder = gpt2(shape)
        self.step = torch.compile(self.decoder) if compiled else self.decoder

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return self.step(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Lightning does not clip for a fused optimizer.
        return torch.optim.AdamW(self.decoder.parameters(), lr=1e-3, foreach=True)


def train(shape: Shape, voice: Voice, *, precision: str, compiled: bool) -> None:
    """Trainer in mixed precision, clip 1.0, without logger and bars."""
    model = LanguageModel(shape, compiled)
    voice.tell(parameters=model.decoder.num_parameters())
    turns = Turns(voice)
    turns.count_updates()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        gradient_clip_val=1.0,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(LabelledRows(shape, turns), batch_size=shape.rows))
