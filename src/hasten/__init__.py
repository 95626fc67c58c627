"""hasten: from raw text to a trained, tested, resumable Transformer."""

__version__ = "0.1.0"
__all__ = ["__version__"]
