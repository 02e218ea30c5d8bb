# SPDX-License-Identifier: Apache-2.0
"""The rich side of tables; imported only when stdout is a terminal."""

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from jarvisctl.format.table import STATE_STYLES, Table


def render(table: Table) -> RenderableType:
    """A rich table; cells are Text, so that nothing in them is taken for markup."""
    rich_table = RichTable(box=box.SIMPLE_HEAD, title=table.title or None, title_justify="left", pad_edge=False)
    for column in table.columns:
        rich_table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
        )
    for row in table.rows:
        cells = []
        for cell, column in zip(row, table.columns, strict=True):
            shown = cell[: column.cut] if column.cut else cell
            cells.append(Text(shown, style=STATE_STYLES.get(cell, "") if column.states else ""))
        rich_table.add_row(*cells)
    return rich_table


def print_table(table: Table) -> None:
    """On stdout; NO_COLOR is respected by rich."""
    Console().print(render(table))
