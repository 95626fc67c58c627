"""Floor 5: a run's files as a page."""
