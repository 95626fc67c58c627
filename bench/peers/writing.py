"""One way to write text in a process of its own: python -m peers.writing FAMILY OPTIONS, driven over stdin.

A line of stdin is {"prompts": [[ids], ...], "count": n}; the answer, a line of JSON, has the seconds and the
tokens that were chosen, each time the likeliest.  `peers/write_FAMILY.py` has `opened(**options)`, which
loads the weights and gives a function of prompts and count.
"""

import importlib
import json
import sys
import time

from peers.machine import memory
from peers.turns import Voice
from peers.worker import versions


def main() -> None:
    """Load the weights, say hello, and write until stdin ends."""
    family, options = sys.argv[1:]
    voice = Voice()
    try:
        module = importlib.import_module(f"peers.write_{family}")
    except ModuleNotFoundError as error:
        voice.tell(missing=str(error))
        return
    began = time.perf_counter()
    write = module.opened(**json.loads(options))
    voice.tell(versions=versions(), load_seconds=time.perf_counter() - began)
    for line in sys.stdin:
        wanted = json.loads(line)
        began = time.perf_counter()
        tokens = write(wanted["prompts"], wanted["count"])
        voice.tell(seconds=time.perf_counter() - began, tokens=tokens, peak_bytes=memory("self")["VmHWM"])


if __name__ == "__main__":
    main()
