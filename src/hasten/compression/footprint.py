"""The peak memory of a model at work in a process of its own: `python -m hasten.compression.footprint WORDS`.

WORDS are JSON: the model's folder, the device, how many tokens to read and to write.  The answer is one line
of JSON: bytes of the process before the model was there, and at most.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hasten.compression.speed import Load, turn_of
from hasten.core.errors import CheckpointError
from hasten.core.runtime import choose_device
from hasten.train.load import load_model
from hasten.train.memory import peak_memory, resident_memory


@dataclass(frozen=True)
class Footprint:
    """Bytes: what the process held before the model was there, and the most that it held with it at work."""

    before: int
    peak: int

    @property
    def of_model(self) -> int:
        """What the model, its work and its libraries came to."""
        return max(self.peak - self.before, 0)


def footprint(folder: Path, device: str, load: Load) -> Footprint:
    """The footprint of the model in a folder; CheckpointError where its process ends without an answer."""
    words = json.dumps({"folder": str(folder.resolve()), "device": device, "load": asdict(load)})
    command = [sys.executable, "-m", "hasten.compression.footprint", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2][-300:] or f"it ended with {done.returncode}"
        raise CheckpointError(
            f"{folder}: could not be run in a process of its own ({said}); write"
            " compress.measure.memory=false"
        )
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The process's part."""
    words = json.loads(sys.argv[1])
    device = choose_device(words["device"])
    before = resident_memory(device)
    model = load_model(Path(words["folder"]), device)[0]
    with turn_of(model, Load(**words["load"]).within(model)) as turn:
        turn()
    print(json.dumps(asdict(Footprint(before, peak_memory(device)))))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
