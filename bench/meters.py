# SPDX-License-Identifier: Apache-2.0
"""Metering a capture file: whole processes, one core, every meter in turn, medians over the rounds."""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.peers import METERS, Counted, Meter, udp_sink

_TEXT_HEADINGS = ("meter", "version")
_NUMBER_HEADINGS = ("wall s", "Mpackets/s", "CPU s", "RSS MiB", "packets counted", "flows counted", "ours is faster by")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One whole process: seconds, MiB, and what it counted."""

    wall: float
    cpu: float
    rss_mib: float
    counted: Counted


def run_once(meter: Meter, capture: Path, cpu: int) -> Run:
    """Runs a meter over the capture, pinned to one core."""
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as directory:
        work = Path(directory)
        output = work / "output"
        flows = work / "flows"
        flows.mkdir()
        command = ["taskset", "-c", str(cpu), *meter.command(capture, flows)]
        with output.open("wb") as sink:
            began = time.perf_counter()
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        printed = output.read_text(errors="replace")
        if process.returncode != 0:
            raise RuntimeError(f"{meter.name} exited with {process.returncode}:\n{printed[-2000:]}")
        return Run(
            wall=wall, cpu=usage.ru_utime + usage.ru_stime, rss_mib=usage.ru_maxrss / 1024, counted=meter.counted(printed, flows)
        )


def start_up(*, runs: int, cpu: int) -> str:
    """One line: how long `jarvis-agent meter` takes for a capture without packets, the whole process."""
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as directory:
        empty = Path(directory) / "empty.pcap"
        empty.write_bytes(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        seconds = [run_once(METERS[0], empty, cpu).wall for _ in range(runs)]
    median, low, high = statistics.median(seconds), min(seconds), max(seconds)
    return f"start-up: {METERS[0].name} of an empty capture: median {median:.3f} s, {low:.3f} to {high:.3f} s over {runs} runs"


def measure(capture: Path, *, rounds: int, cpu: int, console: Console) -> dict[str, list[Run]]:
    """Every usable meter once a round, after one warm-up of the page cache."""
    meters: list[Meter] = []
    for meter in METERS:
        if reason := meter.missing():
            console.print(f"left out: {meter.name}: {reason}")
        else:
            meters.append(meter)
    with capture.open("rb") as warm:
        while warm.read(16 << 20):
            pass
    runs: dict[str, list[Run]] = {meter.name: [] for meter in meters}
    with udp_sink():
        for number in range(rounds):
            for meter in meters:
                console.print(f"round {number + 1}/{rounds}: {meter.name}", style="dim")
                runs[meter.name].append(run_once(meter, capture, cpu))
    return runs


def table(runs: dict[str, list[Run]], *, packets: int, flows: int) -> Table:
    """Medians, what was counted beside the truth, and how much faster ours is, paired by round."""
    ours = next(iter(runs.values()))
    result = Table(title=f"a file of {packets:,} packets, {flows:,} biflows: whole process, one core, medians of {len(ours)}")
    for heading in _TEXT_HEADINGS + _NUMBER_HEADINGS:
        result.add_column(heading, justify="left" if heading in _TEXT_HEADINGS else "right")
    versions = {meter.name: meter.version() for meter in METERS if meter.name in runs}
    for name, own in runs.items():
        wall = statistics.median(run.wall for run in own)
        counted = own[-1].counted
        result.add_row(
            name,
            versions[name],
            f"{wall:.2f}",
            f"{packets / wall / 1e6:.2f}",
            f"{statistics.median(run.cpu for run in own):.2f}",
            f"{statistics.median(run.rss_mib for run in own):.0f}",
            _beside(counted.packets, packets),
            _beside(counted.flows, flows) if counted.biflows else f"{counted.flows:,} uniflows" if counted.flows else "?",
            f"{_ratio(own, ours):.1f}x",
        )
    return result


def _ratio(theirs: Sequence[Run], ours: Sequence[Run]) -> float:
    return statistics.median(their.wall / our.wall for their, our in zip(theirs, ours, strict=True))


def _beside(seen: int | None, truth: int) -> str:
    if seen is None:
        return "?"
    return f"{seen:,}" if seen == truth else f"{seen:,} ({seen - truth:+,})"
