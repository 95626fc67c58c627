"""`hasten compress`: a chain of methods from a model to a smaller one, from files to files, and measured.

`config.py` says what a recipe may ask, `chain.py` takes the steps, `measure.py` what each model is worth
beside the original, `search.py` finds the chain for a target, `run.py` is the verb.
"""
