"""Floor 4: the loop."""
