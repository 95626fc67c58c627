"""A model that is looked at, not trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; the model's mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        # Not inference_mode: what a module caches in it could not be trained through later.
        with torch.no_grad():
            yield
    finally:
        model.train(training)
