# SPDX-License-Identifier: Apache-2.0
"""Where a command's words go: results to stdout, remarks to stderr."""

import importlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from jarvisctl.format.table import Table, is_terminal


class Output:
    """Prints results as the operator asked: `json` gives one object a line and no tables."""

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def line(self, value: Mapping[str, Any]) -> None:
        """One JSON object, flushed so that a reader of a pipe sees it now."""
        sys.stdout.write(json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """Lines that end with a newline already."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def table(self, table: Table) -> None:
        """On a terminal through rich, which a pipe need not wait for."""
        if is_terminal():
            importlib.import_module("jarvisctl.format.terminal").print_table(table)
        else:
            self.text(table.plain())

    def remark(self, text: str) -> None:
        """For people, beside the results."""
        sys.stdout.flush()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
