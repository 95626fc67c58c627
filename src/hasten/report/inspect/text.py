"""A look as text for a terminal of a hundred columns, and as JSON for programs."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len, set_cell_size
from torch import Tensor

from hasten.report.inspect.expect import Candidate, Expectation
from hasten.report.inspect.look import Kind, Look, View
from hasten.report.inspect.page import chance
from hasten.report.inspect.pieces import Piece
from hasten.report.inspect.words import WORDS

WIDTH = 96
LINKS = 8  # looked for; as many are shown as there is room for
DIGITS = 5  # of a probability in JSON
COLUMNS = {
    "entropy": ("bits", 5, "{:.2f}"),
    "distance": ("dist", 5, "{:.1f}"),
    "first": ("first", 6, "{:.0%}"),
    "last": ("last", 6, "{:.0%}"),
    "previous": ("prev", 6, "{:.0%}"),
    "own": ("self", 6, "{:.0%}"),
    "following": ("next", 6, "{:.0%}"),
    "induction": ("induc", 6, "{:.0%}"),
}
TITLES = {
    "decoder": "Attention of the decoder on itself",
    "encoder": "Attention of the encoder on itself",
    "cross": "Attention of the decoder on the source",
}

LEFT_OUT = {
    "decoder": ", without those to itself and to the first token",
    "encoder": ", without those to itself, to the first and to the last token",
    "cross": "",
}


def as_text(look: Look, name: str) -> str:
    """The strongest links of each head, and what the model expected."""
    parts = [[f"{name}: {sizes(look)}"]]
    parts += [list(head_lines(view)) for view in look.views]
    parts += [list(expected_lines(look))]
    return "\n\n".join("\n".join(lines) for lines in parts)


def sizes(look: Look) -> str:
    """What was looked at, in a few words."""
    view = look.views[-1]
    tokens = f"{len(view.queries)} tokens"
    if view.kind == "cross":
        tokens = f"{len(view.keys)} tokens read, {len(view.queries)} written"
        tokens += " by the model itself" if look.written else ""
    layers = f"{len(view.layers)} {'layer' if len(view.layers) == 1 else 'layers'}"
    return f"{layers} of {view.weights.shape[1]} heads, {tokens}"


def head_lines(view: View) -> Iterator[str]:
    """A line for each head: its figures and its strongest links."""
    columns = [COLUMNS[name] for name in view.figures]
    yield f"{TITLES[view.kind]}; layers and heads are counted from 0"
    yield f"links from→to: the strongest{LEFT_OUT[view.kind]}"
    yield "head ".rjust(7) + "".join(title.rjust(width) for title, width, _ in columns)
    for index, layer in enumerate(view.layers):
        for head in range(view.weights.shape[1]):
            values = [value[index, head].item() for value in view.figures.values()]
            cells = [
                text.format(value).rjust(width)
                for value, (_, width, text) in zip(values, columns, strict=True)
            ]
            line = f"{layer}.{head} ".rjust(7) + "".join(cells)
            yield with_links(line, view, view.weights[index, head])


def with_links(line: str, view: View, weights: Tensor) -> str:
    """A line with as many of a head's links [T, S] behind it as there is room for, one at least."""
    for share, query, key in strongest(weights, view.kind):
        link = f"  {view.queries[query].text}→{view.keys[key].text} {share:.0%}"
        if cell_len(line) + cell_len(link) > WIDTH:
            break
        line += link
    return line


def strongest(weights: Tensor, kind: Kind) -> list[tuple[float, int, int]]:
    """The largest of weights [T, S]: (share, query, key), the first of each query alone.

    On its own side a token looks at itself and at the marks around the text as a matter of course: what
    LEFT_OUT says is left out.
    """
    weights = weights.clone()
    if kind != "cross":
        weights.fill_diagonal_(0)
        weights[:, 0] = 0
    if kind == "encoder":
        weights[:, -1] = 0
    best = weights.max(dim=1)
    order = best.values.argsort(descending=True, stable=True)[:LINKS].tolist()
    found = [(best.values[query].item(), query, int(best.indices[query])) for query in order]
    return [link for link in found if link[0] >= 0.005]


def expected_lines(look: Look) -> Iterator[str]:
    """A line for each place: what came, how surprising it was, and what was expected."""
    yield from textwrap.wrap(f"What the model expected. {WORDS[look.note][0]}", WIDTH)
    if not look.expected:
        return
    any_came = any(entry.came for entry in look.expected)
    longest = max((cell_len(entry.came.text) for entry in look.expected if entry.came), default=0)
    width = min(max(longest, 4), 20)
    came_titles = f"  {'came'.ljust(width)}  {'bits':>6} {'rank':>6}" if any_came else ""
    yield f"{'place':>5}{came_titles}  expected"
    for entry in look.expected:
        line = f"{entry.place:>5}"
        if any_came:
            line += came_cells(entry, width)
        for candidate in entry.candidates:
            part = f"  {candidate.piece.text} {chance(candidate.probability)}"
            if cell_len(line) + cell_len(part) > WIDTH:
                break
            line += part
        yield line
    bits = [entry.bits for entry in look.expected if entry.bits is not None]
    if bits:
        yield f"mean surprise {sum(bits) / len(bits):.2f} bits per token"


def came_cells(entry: Expectation, width: int) -> str:
    """What came at a place, in columns; nothing has after the last token."""
    if entry.came is None or entry.bits is None or entry.rank is None:
        return f"  {'':{width}}  {'':>6} {'':>6}"
    return f"  {set_cell_size(entry.came.text, width)}  {entry.bits:6.2f} {entry.rank:6,}"


def as_json(look: Look, name: str) -> dict[str, Any]:
    """All numbers, probabilities to five digits: attention[layer][head][query][key]."""
    return {
        "model": name,
        "kind": look.config.kind,
        "target_written_by_model": look.written,
        "views": [view_json(view) for view in look.views],
        "expected": [expectation_json(entry) for entry in look.expected],
    }


def view_json(view: View) -> dict[str, Any]:
    """One stack's attention."""
    return {
        "kind": view.kind,
        "layers": view.layers,
        "queries": pieces_json(view.queries),
        "keys": pieces_json(view.keys),
        "figures": {name: rounded(value) for name, value in view.figures.items()},
        "attention": rounded(view.weights),
    }


def rounded(values: Tensor) -> Any:
    """Nested lists of numbers with DIGITS decimals."""
    exact = (values.double() * 10**DIGITS).round() / 10**DIGITS
    return exact.tolist()


def pieces_json(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Tokens with their ids."""
    return [asdict(piece) for piece in pieces]


def expectation_json(entry: Expectation) -> dict[str, Any]:
    """What was expected at a place."""
    return {**asdict(entry), "candidates": [candidate_json(c) for c in entry.candidates]}


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """A candidate on one level."""
    return {**asdict(candidate.piece), "probability": candidate.probability}
