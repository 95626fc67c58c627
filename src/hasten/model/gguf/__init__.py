"""GGUF, the files of llama.cpp, in both directions: `load_gguf` and `save_gguf`."""

from hasten.model.gguf.convert import load_gguf, save_gguf

__all__ = ["load_gguf", "save_gguf"]
