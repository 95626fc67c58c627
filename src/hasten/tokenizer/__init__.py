"""Floor 1: text to token ids and back."""
