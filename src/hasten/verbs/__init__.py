"""The verbs of the command line: words to a recipe, a stage, and what to show of its result.

A function's docstring is what `hasten VERB --help` prints.  Each verb imports what it needs.
"""
