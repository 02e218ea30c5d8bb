# SPDX-License-Identifier: Apache-2.0
"""Instructions per packet by callgrind: a measure that neither other work nor the machine's speed changes.

python -m bench.instructions

Each source runs twice, with few and with many packets of the same flows, the whole process under valgrind --tool=callgrind; the
difference in instructions over the difference in packets is what a packet costs, with start-up and first packets of flows taken
out. For backend dpdk it holds the driver's part. valgrind has no AVX-512: a build for it takes another path there than measured.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import dpdk, outputs
from bench.captures import capture_file
from bench.programs import beside_python, not_installed, run_to_end
from bench.rounds import in_rounds

FLOWS = 10_000
FEW, MANY = 50_000, 250_000
_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured."""

    name: str
    command: Callable[[int], list[str]]
    """From a number of packets to the command line."""
    packets: Callable[[str], int]
    """From what it printed to the packets it had."""
    missing: Callable[[], str] = lambda: ""


def subjects(console: Console) -> list[Subject]:
    """Files, and what backend dpdk has."""
    files = {packets: capture_file(packets, FLOWS, console)[0] for packets in (FEW, MANY)}
    ring, _ = capture_file(dpdk.PACKETS, dpdk.FLOWS, console)
    return [
        Subject(
            name="file, metered",
            command=lambda packets: [beside_python("jarvis-agent"), "meter", str(files[packets]), "--output", "none"],
            packets=lambda printed: outputs.jarvis_summary(_own(printed)).packets or 0,
        ),
        *(
            Subject(
                name=source.name,
                command=lambda packets, source=source: dpdk.command(source, cpu=1, packets=packets),  # type: ignore[misc]
                packets=lambda printed: int(json.loads(_own(printed))["received"]),
                missing=dpdk.missing,
            )
            for source in dpdk.sources(ring)
        ),
    ]


def _own(printed: str) -> str:
    """The program's one line of JSON among valgrind's."""
    return next(line for line in printed.splitlines() if line.startswith("{"))


def count(subject: Subject, packets: int) -> tuple[int, int]:
    """Instructions of one whole process, and packets it had."""
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as directory:
        out = Path(directory) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *subject.command(packets)]
        done = run_to_end(command, log=Path(directory) / "log", limit_s=_LIMIT_S)
    collected = outputs.number(r"Collected\s*:\s*(\d+)", done.printed)
    if collected is None:
        raise RuntimeError(f"callgrind gave no count: {done.printed[-2000:]}")
    return collected, subject.packets(done.printed)


def report(console: Console) -> dict[str, Any]:
    """Prints the table, or why there is none; returns everything for JSON."""
    if reason := not_installed("valgrind")():
        console.print(f"left out: instructions a packet: {reason}")
        return {"left_out": reason}
    measured = in_rounds(
        subjects(console), lambda subject: (count(subject, FEW), count(subject, MANY)), rounds=1, console=console
    )
    rows = [
        {"name": name, "few": few, "many": many, "instructions_per_packet": _difference(few, many)}
        for name, ((few, many),) in measured.runs.items()
    ]
    console.print(_table(rows))
    return {"sources": rows, "left_out": measured.left_out}


def _difference(few: tuple[int, int], many: tuple[int, int]) -> float:
    return (many[0] - few[0]) / (many[1] - few[1])


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    shown = Table("source", title="instructions a packet, by callgrind")
    shown.add_column("instructions a packet", justify="right")
    for row in rows:
        shown.add_row(row["name"], f"{row['instructions_per_packet']:.0f}")
    return shown


if __name__ == "__main__":
    report(Console(width=170))
