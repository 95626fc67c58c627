"""Floor 3: what a training minimises."""
