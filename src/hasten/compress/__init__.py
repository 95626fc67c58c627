"""A model with fewer numbers, or with shorter ones: quantised, pruned, or in matrices of low rank.

Each method is a configuration with `kind` and `apply(model, batches)`, from a model to a smaller one; what it
has to know about the texts that a model reads it takes from a few batches of them (`statistics.py`).
"""
