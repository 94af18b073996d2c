"""Tables in terminals of any width: whatever is in a cell can be read."""

from collections import Counter
from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from worker.cli.tables import fitting

# Nothing that is in a heading, or between two cells.
NAMES = st.text("αβγδε.-", min_size=1, max_size=60)
CELLS = st.text("0123456789", min_size=1, max_size=12)


def _shown(table: Table, width: int) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(fitting(console, table), markup=False, highlight=False)
    return [line.rstrip() for line in out.getvalue().split("\n")]


def _table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    table.add_column("ready", justify="right", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


@given(
    rows=st.lists(st.tuples(NAMES, CELLS, NAMES), min_size=1, max_size=4),
    width=st.integers(16, 120),
)
def test_nothing_is_cut_off(rows: list[tuple[str, str, str]], width: int) -> None:
    lines = _shown(_table(rows), width)
    assert all(len(line) <= width for line in lines)
    text = "".join(lines)
    wanted = Counter(character for row in rows for cell in row for character in cell)
    assert {character: text.count(character) for character in wanted} == wanted


def test_what_is_too_narrow_for_the_table_has_each_row_as_text() -> None:
    rows = [("study.attempts.retry.1000", "7", "x"), ("study.attempts.retry.10000", "8", "y")]
    assert _shown(_table(rows), 36) == [
        "name study.attempts.retry.1000",
        "  ready 7, detail x",
        "name study.attempts.retry.10000",
        "  ready 8, detail y",
        "",
    ]
    wide = _shown(_table(rows), 60)
    assert wide[0].split() == ["name", "ready", "detail"]
    assert wide[1].split() == ["study.attempts.retry.1000", "7", "x"]
