# SPDX-License-Identifier: Apache-2.0
"""Metering a capture file: whole processes, one core (two for two workers), every meter in turn, medians over the rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.outputs import Counted
from bench.peers import METERS, OURS, Meter, udp_sink
from bench.programs import pinned, run_to_end
from bench.rounds import Measured, in_rounds, median_of, paired_ratio

LARGE = 10_000_000
"""Packets from which on a capture is large: a slow meter runs once."""
LIMIT_S = 1200.0
"""For one run of one meter."""

_TEXT_HEADINGS = ("meter", "version")
_NUMBER_HEADINGS = ("rounds", "wall s", "CPU s", "Mpackets/s", "RSS MiB", "packets counted", "flows counted", "time over ours")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One whole process: seconds, MiB, what it counted."""

    wall: float
    cpu: float
    rss_mib: float
    counted: Counted

    def seconds(self, meter: Meter) -> float:
        """The time by which the meter is compared."""
        return self.cpu if meter.clock == "cpu" else self.wall


def run_once(meter: Meter, capture: Path, cpu: int) -> Run:
    """Runs a meter over the capture, pinned."""
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as directory:
        work = Path(directory) / "flows"
        work.mkdir()
        command = pinned(range(cpu, cpu + meter.cpus), meter.command(capture, work))
        done = run_to_end(command, log=Path(directory) / "output", limit_s=LIMIT_S, stop_when_idle=not meter.ends)
        return Run(wall=done.wall, cpu=done.cpu, rss_mib=done.rss_mib, counted=meter.counted(done.printed, work))


def measure(capture: Path, meters: Sequence[Meter], *, packets: int, rounds: int, cpu: int, console: Console) -> Measured[Run]:
    """Every usable meter once a round, after one warm-up of the page cache."""
    with capture.open("rb") as warm:
        while warm.read(16 << 20):
            pass
    with udp_sink():
        return in_rounds(
            meters,
            lambda meter: run_once(meter, capture, cpu),
            rounds=rounds,
            rounds_of=lambda meter: 1 if meter.slow and packets >= LARGE else rounds,
            console=console,
        )


def report(
    capture: Path, truth: dict[str, int], *, rounds: int, cpu: int, console: Console, meters: Sequence[Meter] = METERS
) -> dict[str, Any]:
    """Measures, prints the table, returns everything for JSON. Truth: "packets" and "biflows" of the capture."""
    packets, flows = truth["packets"], truth["biflows"]
    measured = measure(capture, meters, packets=packets, rounds=rounds, cpu=cpu, console=console)
    rows = [_row(meter, measured, packets) for meter in meters if meter.name in measured.runs]
    console.print(_table(rows, packets=packets, flows=flows))
    if any(row["clock"] == "cpu" for row in rows):
        console.print("* compared by its CPU time: it sleeps for seconds before and after it reads a file")
    return {"packets": packets, "biflows": flows, "meters": rows, "left_out": measured.left_out}


def _row(meter: Meter, measured: Measured[Run], packets: int) -> dict[str, Any]:
    runs, ours = measured.runs[meter.name], measured.runs.get(OURS.name)
    seconds = median_of(runs, lambda run: run.seconds(meter))
    ratio = paired_ratio(runs, ours, lambda run: run.seconds(meter)) if ours else None
    return {
        "name": meter.name,
        "version": meter.version(),
        "clock": meter.clock,
        "cpus": meter.cpus,
        "wall_s": median_of(runs, lambda run: run.wall),
        "cpu_s": median_of(runs, lambda run: run.cpu),
        "packets_per_second": packets / seconds,
        "rss_mib": median_of(runs, lambda run: run.rss_mib),
        "time_over_ours": ratio,
        "counted": asdict(runs[-1].counted),
        "rounds": [asdict(run) for run in runs],
    }


def _table(rows: Sequence[dict[str, Any]], *, packets: int, flows: int) -> Table:
    result = Table(title=f"a file of {packets:,} packets, {flows:,} biflows: whole processes, one core, medians of paired rounds")
    for heading in _TEXT_HEADINGS + _NUMBER_HEADINGS:
        result.add_column(heading, justify="left" if heading in _TEXT_HEADINGS else "right")
    for row in rows:
        counted = row["counted"]
        uniflows = "?" if counted["flows"] is None else f"{counted['flows']:,} uniflows"
        result.add_row(
            row["name"],
            row["version"],
            str(len(row["rounds"])),
            f"{row['wall_s']:.2f}",
            f"{row['cpu_s']:.2f}" + ("*" if row["clock"] == "cpu" else ""),
            f"{row['packets_per_second'] / 1e6:.2f}",
            f"{row['rss_mib']:.0f}",
            _beside(counted["packets"], packets),
            _beside(counted["flows"], flows) if counted["biflows"] else uniflows,
            "?" if row["time_over_ours"] is None else f"{row['time_over_ours']:.2f}x",
        )
    return result


def _beside(seen: int | None, truth: int) -> str:
    if seen is None:
        return "?"
    return f"{seen:,}" if seen == truth else f"{seen:,} ({seen - truth:+,})"
