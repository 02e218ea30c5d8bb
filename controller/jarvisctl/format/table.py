# SPDX-License-Identifier: Apache-2.0
"""Tables: rich and coloured on a terminal; aligned, complete and plain in a pipe."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Styles of the words that say how something is; anything else is plain.
STATE_STYLES: Mapping[str, str] = {
    "verified": "green",
    "running": "green",
    "active": "green",
    "connected": "green",
    "ok": "green",
    "passed": "green",
    "enrolled": "cyan",
    "stale": "yellow",
    "paused": "yellow",
    "connecting": "yellow",
    "ending": "yellow",
    "not_allowed": "bold red",
    "quarantined": "bold red",
    "failed": "bold red",
    "reported": "yellow",
    "retired": "dim",
    "warning": "yellow",
    "error": "red",
    "critical": "bold red",
    "idle": "dim",
    "stopped": "dim",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one column is shown."""

    title: str
    right: bool = False
    #: Characters shown on a terminal; 0 = all. A pipe always gets the whole value.
    cut: int = 0
    #: Whether long text may take several lines on a terminal.
    fold: bool = False
    #: Whether words of state are coloured.
    states: bool = False


@dataclass(slots=True, kw_only=True)
class Table:
    """Columns and rows of text that is already printable."""

    columns: Sequence[Column]
    rows: list[Sequence[str]] = field(default_factory=list)
    title: str = ""

    def add(self, *cells: str) -> None:
        """One row; as many cells as columns."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)

    def plain(self) -> str:
        """For pipes: two spaces between columns, nothing cut, no colour."""
        titles = [column.title for column in self.columns]
        lines = [titles, *self.rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
        text = [f"{self.title}"] if self.title else []
        for line in lines:
            cells = [
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(line, widths, self.columns, strict=True)
            ]
            text.append("  ".join(cells).rstrip())
        return "\n".join(text) + "\n"


def is_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()
