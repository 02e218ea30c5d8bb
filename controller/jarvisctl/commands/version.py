# SPDX-License-Identifier: Apache-2.0
"""`jarvisctl version`."""

import typer

from jarvisctl import __version__
from jarvisctl.format.output import Output
from jarvisctl.settings import settings_of

app = typer.Typer(add_completion=False)


@app.command()
def version(context: typer.Context) -> None:
    """Prints the version of this program."""
    output = Output(json=settings_of(context).json)
    if output.json:
        output.line({"program": "jarvisctl", "version": __version__})
    else:
        output.text(f"jarvisctl {__version__}\n")
