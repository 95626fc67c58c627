"""Floor 0: contracts. Imports nothing of ours."""
