"""Floor 5: what a run's files tell, as one page and as a table."""
