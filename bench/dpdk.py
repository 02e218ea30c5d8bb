# SPDX-License-Identifier: Apache-2.0
"""Packets per CPU second of one core through backend dpdk, from virtual devices: no card and no link bounds them.

python -m bench.dpdk [--rounds 5] [--seconds 2] [--cpu 1]

net_null makes 64-byte frames of zeros and copies nothing: what receiving, handing over, refusing and freeing a frame costs.
net_pcap with infinite_rx copies the frames of a capture into fresh mbufs again and again: the same with decoding and metering,
and the driver's copy. Each run is a process of its own (dpdk_run.py); its one worker is pinned and always busy, so packets are
counted by second of CPU time, which other work on the machine does not take away. DPDK is not asked for huge pages.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jarvis_native import PacketCaptureEngine
from rich.console import Console
from rich.table import Table

from bench.captures import capture_file
from bench.rounds import in_rounds

PACKETS, FLOWS = 20_000, 1_000
"""Of the capture: all its frames are held in mbufs."""
SECONDS = 2.0
_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A device and what is done with its frames."""

    name: str
    device: str
    filter: str = ""
    metering: bool = False
    missing: Callable[[], str] = lambda: ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Frames in so much CPU time of the one worker."""

    received: int
    cpu_s: float
    flows: int
    lost: int

    @property
    def rate(self) -> float:
        """Frames a CPU second."""
        return self.received / self.cpu_s


def missing() -> str:
    """Why backend dpdk cannot be used here; empty when it can."""
    for info in PacketCaptureEngine.get_available_backends():
        if info.name == "dpdk":
            return "" if info.usable else info.reason
    return "this build has no backend dpdk"


def sources(capture: Path) -> tuple[Source, ...]:
    """The rows of the table."""
    pcap = f"net_pcap0,rx_pcap={capture.absolute()},infinite_rx=1"
    return (
        Source(name="net_null, refused by its type (non-IP)", device="net_null0,size=64"),
        Source(name="net_null, driver copies 64 bytes", device="net_null0,size=64,copy=1"),
        Source(name="net_pcap infinite_rx, refused by a filter", device=pcap, filter="ip proto 132"),
        Source(name="net_pcap infinite_rx, decoded, not metered", device=pcap),
        Source(name="net_pcap infinite_rx, metered", device=pcap, metering=True),
    )


def command(source: Source, *, cpu: int, **bound: float) -> list[str]:
    """The command line of one run; `bound` is seconds or packets."""
    options = {"device": source.device, "filter": source.filter, "metering": source.metering, "cpu": cpu, **bound}
    return [sys.executable, "-m", "bench.dpdk_run", json.dumps(options)]


def run(source: Source, *, seconds: float, cpu: int) -> Run:
    """One capture in a process of its own."""
    done = subprocess.run(
        command(source, cpu=cpu, seconds=seconds), capture_output=True, text=True, check=False, timeout=_LIMIT_S
    )
    if done.returncode != 0:
        raise RuntimeError(f"exited with {done.returncode}: {done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def report(console: Console, *, rounds: int = 5, seconds: float = SECONDS, cpu: int = 1) -> dict[str, Any]:
    """Prints the table, or why there is none; returns everything for JSON."""
    if reason := missing():
        console.print(f"left out: dpdk: {reason}", markup=False)
        return {"left_out": reason}
    capture, _ = capture_file(PACKETS, FLOWS, console)
    measured = in_rounds(sources(capture), lambda source: run(source, seconds=seconds, cpu=cpu), rounds=rounds, console=console)
    rows = [_row(name, runs) for name, runs in measured.runs.items()]
    console.print(_table(rows, rounds=rounds, seconds=seconds))
    return {"sources": rows, "seconds": seconds, "left_out": measured.left_out}


def _row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    rates = [run.rate for run in runs]
    return {
        "name": name,
        "packets_per_cpu_second": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "flows": runs[-1].flows,
        "lost": sum(run.lost for run in runs),
        "rounds": [asdict(run) for run in runs],
    }


def _table(rows: Sequence[dict[str, Any]], *, rounds: int, seconds: float) -> Table:
    shown = Table("source", title=f"backend dpdk, one worker, packets a second of its core: medians of {rounds} x {seconds:g} s")
    for heading in ("Mpackets/s", "range", "ns a packet", "flows", "lost"):
        shown.add_column(heading, justify="right")
    for row in rows:
        median = row["packets_per_cpu_second"]
        spread = f"{row['lowest'] / 1e6:.1f} to {row['highest'] / 1e6:.1f}"
        shown.add_row(row["name"], f"{median / 1e6:.1f}", spread, f"{1e9 / median:.0f}", f"{row['flows']:,}", f"{row['lost']:,}")
    return shown


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.dpdk", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--cpu", type=int, default=1)
    arguments = parser.parse_args()
    report(Console(width=170), rounds=arguments.rounds, seconds=arguments.seconds, cpu=arguments.cpu)


if __name__ == "__main__":
    main()
