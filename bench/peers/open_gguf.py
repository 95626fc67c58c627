"""llama.cpp opens GGUF files in a process of its own: python open_gguf.py, driven over stdin.

A line of stdin is {"path": file, "texts": [...], "tokens": [ids], "count": n}; the answer, a line of JSON,
has the ids of each text with what the model puts around it ("ids") and without ("bare"), the scores after
`tokens` ("logits"), and the `count` likeliest tokens that follow ("greedy").  "error" says why a file was not
opened.
"""

import ctypes
import json
import os
import sys
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

complaints: list[str] = []


@llama_cpp.llama_log_callback
def note(level: int, text: bytes, data: object) -> None:
    """Keep what is logged as an error (4) or a warning (3)."""
    if level in (3, 4):
        complaints.append(text.decode(errors="replace").strip())


class Opened:
    """A model and a context of 1024 tokens at most, one thread, the keys and values in float32."""

    def __init__(self, path: str) -> None:
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise ValueError("; ".join(complaints[-4:]))
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx = min(1024, llama_cpp.llama_model_n_ctx_train(self.model))
        wanted.n_threads = wanted.n_threads_batch = 1
        wanted.type_k = wanted.type_v = 0  # GGML_TYPE_F32
        wanted.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED: its sums are rounded to float16
        self.context = llama_cpp.llama_init_from_model(self.model, wanted)

    def ids(self, text: str, around: bool) -> list[int]:
        """A text as tokens; `around`: with what the model puts around it."""
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), room, len(room), around, False)
        return list(room[:count])

    def read(self, tokens: list[int]) -> NDArray[np.float32]:
        """The scores after `tokens` and those before."""
        room = (llama_cpp.llama_token * len(tokens))(*tokens)  # the batch only points to it
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(room, len(tokens))):
            raise ValueError("llama_decode has failed")
        scores = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(scores, (self.size,)).copy()

    def greedy(self, scores: NDArray[np.float32], count: int) -> list[int]:
        """The likeliest token, `count` times."""
        chosen: list[int] = []
        while len(chosen) < count:
            chosen.append(int(scores.argmax()))
            scores = self.read(chosen[-1:])
        return chosen

    def close(self) -> None:
        """Give the memory back."""
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def answer(wanted: dict[str, Any]) -> dict[str, Any]:
    """What one file gives."""
    complaints.clear()
    try:
        opened = Opened(wanted["path"])
    except ValueError as error:
        return {"error": str(error)}
    told: dict[str, Any] = {"ids": [opened.ids(text, True) for text in wanted["texts"]]}
    told["bare"] = [opened.ids(text, False) for text in wanted["texts"]]
    if wanted["tokens"]:
        scores = opened.read(wanted["tokens"])
        told["logits"] = [round(float(score), 6) for score in scores]
        told["greedy"] = opened.greedy(scores, wanted["count"])
    opened.close()
    return told


def main() -> None:
    """Answer until stdin ends; what llama.cpp prints goes to stderr."""
    voice = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llama_cpp.llama_log_set(note, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    for line in sys.stdin:
        voice.write(json.dumps(answer(json.loads(line))) + "\n")
        voice.flush()


if __name__ == "__main__":
    main()
