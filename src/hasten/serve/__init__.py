"""Floor 5: talking to a model."""
