"""llama.cpp quantises GGUF files and scores texts with them: python quantize_llama.py, driven over stdin.

A line of stdin is {"source": file, "target": file, "type": name of a llama_ftype}, answered by the bytes of
the new file, or {"path": file, "rows": [[ids]], "reference": .npy}, answered by the sum over each row of -log
p of every id after its first, and of the KL divergence from the log-probabilities in the reference, float16
[ids, V].
"""

import ctypes
import json
import os
import sys
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray
from open_gguf import Opened, note

PIECE = 64
"""Ids whose scores are looked at together."""


def quantize(wanted: dict[str, Any]) -> dict[str, Any]:
    """Make a file of another type."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{wanted['type']}")
    options.nthread = 1
    source, target = wanted["source"].encode(), wanted["target"].encode()
    if llama_cpp.llama_model_quantize(source, target, ctypes.byref(options)):
        raise ValueError("llama_model_quantize has failed")
    return {"bytes": os.path.getsize(wanted["target"])}


class Scored(Opened):
    """A model that gives the scores at every place of a row."""

    def scores(self, tokens: list[int]) -> NDArray[np.float32]:
        """[T, V], each after its token and those before."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for place, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, True
            if llama_cpp.llama_decode(self.context, batch):
                raise ValueError("llama_decode has failed")
            found = llama_cpp.llama_get_logits(self.context)
            return np.ctypeslib.as_array(found, (len(tokens), self.size)).copy()
        finally:
            llama_cpp.llama_batch_free(batch)


def score(wanted: dict[str, Any]) -> dict[str, Any]:
    """How surprising rows are."""
    opened, reference = Scored(wanted["path"]), np.load(wanted["reference"], mmap_mode="r")
    nll, divergence, count = [], [], 0
    for row in wanted["rows"]:
        scores, surprise, apart = opened.scores(row[:-1]), 0.0, 0.0
        for start in range(0, len(scores), PIECE):
            piece = log_softmax(scores[start : start + PIECE])
            targets = row[1 + start : 1 + start + len(piece)]
            true = reference[count : count + len(piece)].astype(np.float32)
            surprise -= float(piece[np.arange(len(piece)), targets].sum(dtype=np.float64))
            apart += float((np.exp(true) * (true - piece)).sum(dtype=np.float64))
            count += len(piece)
        nll.append(surprise)
        divergence.append(apart)
    opened.close()
    return {"nll": nll, "divergence": divergence, "bytes": os.path.getsize(wanted["path"])}


def log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """log p of every token: [N, V] -> [N, V]."""
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def main() -> None:
    """Answer line after line; llama.cpp's own words go to stderr."""
    llama_cpp.llama_log_set(note, ctypes.c_void_p(0))
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            result = score(wanted) if "rows" in wanted else quantize(wanted)
        except ValueError as error:
            result = {"error": str(error)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
