"""A pipeline's schedule as letters for a terminal, and as an SVG that needs nothing but itself."""

from collections.abc import Callable
from html import escape

from hasten.parallel.schedules import Op, Span, Timeline, program, simulate
from hasten.plan.layout import Layout

MOST_MICRO_BATCHES = 16  # of a drawing: more are a repetition
COLUMNS = 150  # of a terminal's drawing
WIDTH, ROW, GAP, LEFT = 1000.0, 26.0, 6.0, 60.0
STYLE = """
svg{font:12px system-ui,sans-serif;background:#fff}text{fill:#222}.f{fill:#1d6a9c}.b{fill:#c0502a}
.odd{opacity:.7}.op{fill:#fff;font-size:10px;text-anchor:middle}
@media(prefers-color-scheme:dark){svg{background:#14181c}text{fill:#e6e6e6}.f{fill:#3f86b5}.b{fill:#c9673f}}
"""


def timeline(layout: Layout, micro_batches: int, forward: float = 1.0, backward: float = 2.0) -> Timeline:
    """The schedule of a layout, of at most `MOST_MICRO_BATCHES` or two rounds; times are of one chunk."""
    shown = min(micro_batches, max(MOST_MICRO_BATCHES, 2 * layout.pipeline))
    if layout.interleave > 1:
        shown -= shown % layout.pipeline
    stages = program(layout.order, layout.pipeline, shown, layout.interleave)
    return simulate(stages, lambda op: forward if op.kind == "forward" else backward)


def symbol(op: Op) -> str:
    """A digit for a forward, a letter for a backward, by micro-batch."""
    place = op.micro_batch
    return str(place % 10) if op.kind == "forward" else chr(ord("a") + place % 26)


def as_text(line: Timeline) -> str:
    """One line a stage: `0123··aa4bb`; digits are forwards, letters backwards, dots idle."""
    step = min(float(span.end - span.start) for spans in line.stages for span in spans)
    step = max(step, float(line.makespan) / COLUMNS)
    width = max(len(str(len(line.stages) - 1)), 1)
    return "\n".join(
        f"stage {stage:>{width}}  {row(spans, step, line)}" for stage, spans in enumerate(line.stages)
    )


def row(spans: list[Span], step: float, line: Timeline) -> str:
    """One stage's line."""
    letters = ["·"] * max(round(float(line.makespan) / step), 1)
    for span in spans:
        for place in range(round(float(span.start) / step), round(float(span.end) / step)):
            if place < len(letters):
                letters[place] = symbol(span.op)
    return "".join(letters)


def as_svg(line: Timeline, title: str) -> str:
    """The schedule as a picture: blue forwards, red backwards, numbered by micro-batch."""
    scale = (WIDTH - LEFT) / float(line.makespan)
    height = len(line.stages) * (ROW + GAP) + 60
    bars = "".join(
        bar(span, LEFT, 40 + stage * (ROW + GAP), lambda time: float(time) * scale, len(line.stages))
        for stage, spans in enumerate(line.stages)
        for span in spans
    )
    names = "".join(
        f'<text x="4" y="{40 + stage * (ROW + GAP) + 17:.0f}">stage {stage}</text>'
        for stage in range(len(line.stages))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f'<text x="4" y="20">{escape(title)}</text>{names}{bars}</svg>\n'
    )


def bar(span: Span, left: float, top: float, place: Callable[[float], float], stages: int) -> str:
    """One operation's rectangle with its number."""
    x, width = left + place(float(span.start)), place(float(span.end - span.start))
    kind = span.op.kind[0] + (" odd" if span.op.chunk // stages % 2 else "")
    number = (
        f'<text class="op" x="{x + width / 2:.1f}" y="{top + 17:.1f}">{span.op.micro_batch}</text>'
        if width > 9
        else ""
    )
    shape = (
        f'<rect class="{kind}" x="{x:.1f}" y="{top:.1f}" width="{max(width - 0.6, 0.4):.1f}" height="{ROW}"/>'
    )
    return shape + number
