"""Floor 4: from a prompt to text."""
