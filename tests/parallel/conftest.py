"""What tests of several processes share with `bench/parity.py` is there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
