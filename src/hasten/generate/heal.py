"""Where a prompt ends inside what the tokenizer would make one token.

`def f():` ends in the token `):`, but in all text that the model has read, `):` and the line's end and the
indentation after it are one token: after `):` alone it has never seen a new line.  So the last token is taken
back and chosen anew among those that begin with its bytes ("token healing", as in the guidance library).
"""

from hasten.tokenizer.tokenizer import Tokenizer


def heal(ids: list[int], tokenizer: Tokenizer) -> tuple[list[int], list[int] | None]:
    """A prompt's ids without the last, and the ids that may take its place.

    The ids as they are, and None, where nothing longer begins like the last, or where it is no plain text: a
    special token, or a token of a tokenizer that does not work on bytes.
    """
    if not ids or not tokenizer.is_byte_level or ids[-1] in tokenizer.special_ids:
        return ids, None
    candidates = beginning_like(ids[-1], tokenizer)
    return (ids[:-1], candidates) if len(candidates) > 1 else (ids, None)


def beginning_like(token: int, tokenizer: Tokenizer) -> list[int]:
    """Every id whose bytes begin with those of `token`, itself among them."""
    spellings, special = tokenizer.token_bytes, tokenizer.special_ids
    beginning = spellings[token]
    return [id for id, other in enumerate(spellings) if other.startswith(beginning) and id not in special]
