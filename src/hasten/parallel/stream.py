"""Random numbers of a process alone, where it drops parts of a tensor that is divided.

Processes that share matrices draw the same numbers, so that they drop the same of what they all hold.  Of
heads, or tokens, that each has for itself, they must not: what is dropped would repeat itself.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class OwnStream:
    """Between `begin` and `end` another stream for each `place`, told by one number of the common stream."""

    place: int
    device: torch.device
    kept: list[Tensor] = field(default_factory=list)

    @torch.compiler.disable
    def begin(self) -> None:
        """Leave the common stream."""
        seed = int(torch.randint(2**48, ()))  # on the CPU, also where a GPU draws: no one waits for it
        self.kept = [torch.get_rng_state()]
        if self.device.type == "cuda":
            self.kept.append(torch.cuda.get_rng_state(self.device))
        torch.manual_seed(seed + self.place)

    @torch.compiler.disable
    def end(self) -> None:
        """Go on with the common stream, whatever was drawn in between."""
        torch.set_rng_state(self.kept[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.kept[1], self.device)
