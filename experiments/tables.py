"""Tables that fit the terminal: they drop columns, or stack rows, rather than break words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.table import Table

from jaxrl.experiments.console import print_line
from jaxrl.experiments.streams import terminal_width, wrapped

_GAP = 2  # spaces between columns


class Column(NamedTuple):
    """A column of texts.

    Attributes:
      name: its heading.
      cells: one text per row.
      rank: 0 for a column that is never dropped; the highest rank is dropped first.
      left: whether texts are aligned on the left.
    """

    name: str
    cells: Sequence[str]
    rank: int = 0
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(cell_len, (self.name, *self.cells)))


def print_table(columns: Sequence[Column]) -> list[str]:
    """Prints a table in the width of the terminal and returns the names of its columns.

    Columns of the highest ranks are dropped until the others fit, and named below. If those of rank
    0 do not fit either, all columns are printed as one block of lines per row.
    """
    width, shown = terminal_width(), list(columns)
    while width is not None and _width(shown) > width and any(column.rank for column in shown):
        last = max(column.rank for column in shown)
        shown = [column for column in shown if column.rank < last]
    if width is not None and _width(shown) > width:
        _print_stacked(columns)
        return [column.name for column in columns]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in shown:
        table.add_column(column.name, justify="left" if column.left else "right", no_wrap=True)
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    print_line(table)
    hidden = [column.name for column in columns if column not in shown]
    if hidden:
        print_words(f"a wider terminal also shows: {', '.join(hidden)}")
    return [column.name for column in shown]


def print_words(text: str) -> None:
    """Prints a sentence, wrapped between words in a terminal."""
    print_line(wrapped(text, terminal_width()))


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width + _GAP for column in columns) - _GAP


def _print_stacked(columns: Sequence[Column]) -> None:
    """One block per row, with one line per column."""
    wide = max(cell_len(column.name) for column in columns)
    for row in zip(*(column.cells for column in columns), strict=True):
        for column, cell in zip(columns, row, strict=True):
            print_line(f"{column.name}{' ' * (wide - cell_len(column.name))}  {cell}")
        print_line("")
