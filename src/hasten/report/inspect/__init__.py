"""Attention made visible: what each head of a model looks at in a text, and what the model expected there."""
