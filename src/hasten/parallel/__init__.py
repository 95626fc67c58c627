"""Floor 3: arrangements around a model, applied from outside."""
