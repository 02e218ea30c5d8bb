# SPDX-License-Identifier: Apache-2.0
"""The export encoder alone (bench/encoder.c over the built library): flow records a second and core, by protocol and profile.

python -m bench.run --only encoder
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_native.export import PROFILES, PROTOCOLS, ExportProfile, ExportProtocol
from jarvis_native.loader import default_directory
from rich.console import Console
from rich.table import Table

from bench.programs import HERE, pinned, run_to_end
from bench.rounds import in_rounds, median_of
from testbed.generator import built

ALL_STATISTICS = 15
SECONDS = 1.0
_LIMIT_S = 60.0
_LIBRARY = default_directory() / "libjarvis_capture.so"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What records look like."""

    protocol: ExportProtocol
    profile: ExportProfile
    biflow: bool = False
    statistics: int = 0

    @property
    def name(self) -> str:
        """As the table shows it."""
        return (
            f"{self.protocol}, {self.profile}" + (", biflow" if self.biflow else "") + (", statistics" if self.statistics else "")
        )

    def missing(self) -> str:
        """Why it cannot run here."""
        return "" if _LIBRARY.exists() else f"{_LIBRARY} is not there: make setup"


FORMS = (
    Form(protocol="ipfix", profile="minimal"),
    Form(protocol="ipfix", profile="default"),
    Form(protocol="ipfix", profile="default", biflow=True),
    Form(protocol="ipfix", profile="full", statistics=ALL_STATISTICS),
    Form(protocol="ipfix", profile="full", biflow=True, statistics=ALL_STATISTICS),
    Form(protocol="netflow9", profile="default"),
)


def run_once(form: Form, cpu: int) -> dict[str, float]:
    """The program's one line."""
    numbers = (PROTOCOLS[form.protocol], PROFILES[form.profile], int(form.biflow), form.statistics, SECONDS)
    command = [str(built(HERE / "encoder.c")), str(_LIBRARY), *map(str, numbers)]
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as directory:
        done = run_to_end(pinned([cpu], command), log=Path(directory) / "log", limit_s=_LIMIT_S)
    figures: dict[str, float] = json.loads(done.printed)
    return figures


def report(console: Console, *, rounds: int, cpu: int) -> dict[str, Any]:
    """Prints the table; returns every figure."""
    measured = in_rounds(FORMS, lambda form: run_once(form, cpu), rounds=rounds, console=console)
    shown = Table("records", title="the export encoder alone, one core")
    for heading in ("M records/s", "M flows/s", "bytes a record", "GB/s"):
        shown.add_column(heading, justify="right")
    for name, runs in measured.runs.items():
        shown.add_row(
            name,
            f"{median_of(runs, lambda run: run['records'] / run['seconds']) / 1e6:.1f}",
            f"{median_of(runs, lambda run: run['flows'] / run['seconds']) / 1e6:.1f}",
            f"{median_of(runs, lambda run: run['octets'] / run['records']):.0f}",
            f"{median_of(runs, lambda run: run['octets'] / run['seconds']) / 1e9:.2f}",
        )
    console.print(shown)
    return {"runs": measured.runs, "left_out": measured.left_out}
