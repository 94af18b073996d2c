"""Tables for terminals of any width."""

from typing import Final

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_FOLDED: Final = 24
"""The width from which on a name may go on in the next line of its cell."""
_GAP: Final = 2


def fitting(console: Console, table: Table) -> RenderableType:
    """The table, or its rows as text if the terminal is too narrow for it.

    Nothing is ever cut off, because two names that are cut off may look the same. Columns that fold
    need 24 characters, others all of theirs.
    """
    columns = [
        (str(column.header), [str(cell) for cell in column.cells], column.overflow == "fold")
        for column in table.columns
    ]
    widths = []
    for heading, cells, folds in columns:
        longest = max(map(cell_len, [heading, *cells]))
        widths.append(min(longest, _FOLDED) if folds else longest)
    if sum(widths) + _GAP * (len(widths) - 1) <= console.width:
        return table
    lines = [] if table.title is None else [Text(str(table.title))]
    (first, names, _), *others = columns
    for row, name in enumerate(names):
        lines.append(Text(f"{first} {name}"))
        said = ", ".join(f"{heading} {cells[row]}" for heading, cells, _ in others)
        lines.append(Text(f"  {said}"))
    return Group(*lines)
