"""Floor 5: scores on held-out text."""
