# SPDX-License-Identifier: Apache-2.0
"""What the options before the command say; carried as the context's object to every command."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import typer


class OutputFormat(StrEnum):
    """How answers are printed."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The global options."""

    #: None: JARVISCTL_CONFIG, then the user's configuration directory.
    config: Path | None = None
    output: OutputFormat = OutputFormat.TABLE
    #: Seconds the controller has to answer; streams that follow have no end.
    timeout_s: float = 30.0

    @property
    def json(self) -> bool:
        """Whether programs read the output."""
        return self.output is OutputFormat.JSON


def settings_of(context: typer.Context) -> Settings:
    """The settings that the root command put into the context."""
    settings = context.find_object(Settings)
    if settings is None:
        raise RuntimeError("a command ran without the root command")
    return settings
