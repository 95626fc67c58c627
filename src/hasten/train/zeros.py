"""Zeros that stay while a pruned model is trained on."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hasten.core.errors import ConfigError
from hasten.model.layout import role


class Zeros:
    """Which weights of a model's matrices are zero now; they have no gradient and are not moved.

    Whatever an optimizer does: a step of Muon or of weight decay is taken back where a zero was.  The
    parameters are by name what is here of each; zeros are found before the first step and before a resume, in
    the model that the training begins with.  ConfigError where there is none, or a matrix is nothing else.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []
        for name, parameter in parameters.items():
            kept = parameter != 0
            if role(name) != "matrix" or bool(kept.all()):
                continue
            if not bool(kept.any()):
                raise ConfigError(
                    f"train.keep_zeros: {name} is zero throughout and would stay so; begin with a pruned"
                    " model (base), or leave keep_zeros out"
                )
            self.kept.append((parameter, kept))
        if not self.kept:
            raise ConfigError(
                "train.keep_zeros: no matrix has a zero; begin with a pruned model (base), or leave it out"
            )

    @torch.no_grad()
    def hold_gradients(self) -> None:
        """Forget the gradients of what stays zero, before they are looked at."""
        for parameter, kept in self.kept:
            if parameter.grad is not None:
                parameter.grad.mul_(kept)

    @torch.no_grad()
    def hold(self) -> None:
        """Take back what a step did where a zero was; not a bit of anything else changes."""
        for parameter, kept in self.kept:
            parameter.mul_(kept)
