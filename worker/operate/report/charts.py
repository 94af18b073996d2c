"""Charts as inline SVG and HTML. Shapes stretch with the page, and text keeps its size.

Every chart is a figure with a sentence that says what it shows, and with its numbers as a table for
people who can't see it.
"""

from collections.abc import Sequence
from html import escape
from typing import Final

_HEIGHT: Final = 100.0
_GAP: Final = 0.2


def columns(values: Sequence[int], title: str) -> str:
    """One column for each value. The first has the accent color."""
    most = max([*values, 1])
    bars = "".join(
        f'<rect class="{"now" if place == 0 else "bar"}" x="{place + _GAP / 2:.2f}"'
        f' y="{_HEIGHT * (1 - value / most):.2f}" width="{1 - _GAP:.2f}"'
        f' height="{_HEIGHT * value / most:.2f}"/>'
        for place, value in enumerate(values)
        if value
    )
    return _svg(len(values), bars, title)


def shares(
    values: Sequence[float | None], guesses: Sequence[float | None], target: float, title: str
) -> str:
    """A column from 0 to 1 for each value that exists, a dash across it at what was predicted, and
    a line at `target`.
    """
    bars = "".join(
        f'<rect class="bar" x="{place + _GAP / 2:.2f}" y="{_HEIGHT * (1 - value):.2f}"'
        f' width="{1 - _GAP:.2f}" height="{max(_HEIGHT * value, 0.5):.2f}"/>'
        for place, value in enumerate(values)
        if value is not None
    )
    dashes = "".join(
        f'<rect class="guess" x="{place:.2f}" y="{_HEIGHT * (1 - guess) - 1:.2f}"'
        ' width="1" height="2"/>'
        for place, guess in enumerate(guesses)
        if guess is not None
    )
    at = _HEIGHT * (1 - target)
    line = f'<line class="target" x1="0" x2="{len(values)}" y1="{at:.2f}" y2="{at:.2f}"/>'
    return _svg(len(values), bars + line + dashes, title)


def stacked(parts: Sequence[tuple[str, int]], title: str) -> str:
    """One bar that is divided among the parts (class of color, value)."""
    whole = max(sum(value for _, value in parts), 1)
    rects, x = "", 0.0
    for name, value in parts:
        width = 100 * value / whole
        rects += f'<rect class="{name}" x="{x:.2f}" y="0" width="{width:.2f}" height="{_HEIGHT}"/>'
        x += width
    return _svg(100, rects, title)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The numbers as a table. The first cell of each row is its header."""
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def numbers(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The numbers of the chart next to it, which the reader can open."""
    return f"<details><summary>The numbers</summary>{table(heads, rows)}</details>"


def _svg(width: float, inside: str, title: str) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {width} {_HEIGHT:.0f}" preserveAspectRatio="none"'
        f' aria-label="{escape(title)}">{inside}</svg>'
    )
