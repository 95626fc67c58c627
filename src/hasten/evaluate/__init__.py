"""Floor 5: what a model is worth, measured on text it has not seen."""
