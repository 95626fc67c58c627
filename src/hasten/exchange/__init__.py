"""Models from elsewhere and back: Hugging Face folders, models of the hub, GGUF files."""
