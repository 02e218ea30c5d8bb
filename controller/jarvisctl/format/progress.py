# SPDX-License-Identifier: Apache-2.0
"""A line on the terminal that says how many agents have answered, while a command waits for the rest."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jarvisctl.format.output import Output


@contextmanager
def progress(what: str, output: Output) -> Iterator[Callable[[], None]]:
    """Gives a function to call for each answer; silent unless a person looks at both outputs."""
    if output.json or not sys.stderr.isatty() or not sys.stdout.isatty():
        yield lambda: None
        return
    console = importlib.import_module("rich.console").Console(stderr=True)
    answers = 0
    with console.status(f"{what} ...") as status:

        def answered() -> None:
            nonlocal answers
            answers += 1
            status.update(f"{what} ... {answers} answered")

        yield answered
