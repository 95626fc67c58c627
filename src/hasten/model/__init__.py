"""Floor 2: the Transformer, single-device."""
