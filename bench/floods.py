# SPDX-License-Identifier: Apache-2.0
"""Floods against the flow table, as captures: one-packet flows, and keys chosen against FNV-1a, beside ordinary traffic.

bench/flood.c writes three captures of as many packets, all of the same 42-byte frames: `ordinary`, 1 M random flows; `chosen`,
1 M flows whose public ids (FNV-1a 64) all end in the same 24 bits, drawn in the same order; `distinct`, a flow a packet. Each is
metered in turn into the default table of 1,048,576 flows, and its speed is compared with that of `ordinary` in the same round, by
the whole process's CPU time. The captures (0.9 GB each by default) are deleted at the end.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.captures import WORK
from bench.programs import HERE, beside_python, pinned, run_to_end
from bench.rounds import Measured, in_rounds, median_of, paired_ratio
from testbed.generator import built

PACKETS = 16_000_000
FLOWS = 1_000_000
TABLE = 1_048_576
LIMIT_S = 600.0
_RECORD = 58
"""Bytes of a packet in these captures, record header included."""

_TEXT_HEADINGS = ("capture", "what it is")
_NUMBER_HEADINGS = ("rounds", "CPU s", "Mpackets/s", "time over ordinary", "packets", "flows", "evicted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """One capture."""

    name: str
    """What flood.c calls it."""
    shows: str
    missing: Callable[[], str] = lambda: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One whole process: CPU seconds, and what it says it metered, how many flow records it made and evicted."""

    cpu: float
    packets: int
    flows: int
    evicted: int


ORDINARY = Flood(name="ordinary", shows="1 M random flows")
FLOODS = (
    ORDINARY,
    Flood(name="chosen", shows="1 M keys that collide in 24 bits of FNV-1a"),
    Flood(name="distinct", shows="a flow a packet, into a table of 1 M"),
)


def run_once(capture: Path, *, table: int, cpu: int) -> Run:
    """Meters one capture, pinned to one core, and writes no records."""
    command = [beside_python("jarvis-agent"), "meter", str(capture), "--output", "none", "--max-flows", str(table)]
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as directory:
        done = run_to_end(pinned([cpu], command), log=Path(directory) / "output", limit_s=LIMIT_S)
    said = json.loads(done.printed.splitlines()[0])
    return Run(cpu=done.cpu, packets=said["packets"], flows=said["flows"], evicted=said["evicted"])


@contextmanager
def _captures(packets: int, flows: int, console: Console) -> Iterator[dict[str, Path]]:
    """The captures by name, in the page cache; gone afterwards."""
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="floods-", dir=WORK) as directory:
        made = {flood.name: Path(directory) / f"{flood.name}.pcap" for flood in FLOODS}
        for name, path in made.items():
            console.print(f"making {path.name} ...", style="dim")
            subprocess.run([str(built(HERE / "flood.c")), name, str(packets), str(flows), str(path)], check=True)
        yield made


def report(
    console: Console, *, rounds: int, cpu: int, packets: int = PACKETS, flows: int = FLOWS, table: int = TABLE
) -> dict[str, Any]:
    """Measures, prints the table, returns everything for JSON."""
    needed = 4 * packets * _RECORD  # three captures, and some room
    WORK.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(WORK).free) < needed:
        reason = f"{WORK} has {free >> 20:,} MiB free, the captures need {needed >> 20:,}"
        console.print(f"left out: floods: {reason}", markup=False)
        return {"left_out": reason}
    with _captures(packets, flows, console) as captures:
        measured = in_rounds(
            FLOODS, lambda flood: run_once(captures[flood.name], table=table, cpu=cpu), rounds=rounds, console=console
        )
    rows = [_row(flood, measured) for flood in FLOODS if flood.name in measured.runs]
    console.print(_table(rows, packets=packets, table=table))
    return {"packets": packets, "flows": flows, "table": table, "floods": rows, "left_out": measured.left_out}


def _row(flood: Flood, measured: Measured[Run]) -> dict[str, Any]:
    runs, ordinary = measured.runs[flood.name], measured.runs.get(ORDINARY.name)
    return {
        "name": flood.name,
        "shows": flood.shows,
        "cpu_s": median_of(runs, lambda run: run.cpu),
        "packets_per_cpu_second": median_of(runs, lambda run: run.packets / run.cpu),
        "time_over_ordinary": paired_ratio(runs, ordinary, lambda run: run.cpu / run.packets) if ordinary else None,
        "rounds": [asdict(run) for run in runs],
    }


def _table(rows: list[dict[str, Any]], *, packets: int, table: int) -> Table:
    title = f"floods: {packets:,} packets into a table of {table:,} flows, whole processes, one core, medians of paired rounds"
    result = Table(title=title)
    for heading in _TEXT_HEADINGS + _NUMBER_HEADINGS:
        result.add_column(heading, justify="left" if heading in _TEXT_HEADINGS else "right")
    for row in rows:
        last, ratio = row["rounds"][-1], row["time_over_ordinary"]
        result.add_row(
            row["name"],
            row["shows"],
            str(len(row["rounds"])),
            f"{row['cpu_s']:.2f}",
            f"{row['packets_per_cpu_second'] / 1e6:.2f}",
            "?" if ratio is None else f"{ratio:.2f}x",
            f"{last['packets']:,}",
            f"{last['flows']:,}",
            f"{last['evicted']:,}",
        )
    return result
