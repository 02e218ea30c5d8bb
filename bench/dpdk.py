# SPDX-License-Identifier: Apache-2.0
"""Packets per CPU second of one core through backend dpdk, from virtual devices: no card and no link bounds them.

python -m bench.dpdk [--rounds 5] [--seconds 3] [--cpu 1]

net_null makes 64-byte frames of zeros and copies nothing: what receiving, handing over, refusing and freeing a frame costs.
net_pcap with infinite_rx copies the frames of a capture into fresh mbufs again and again: the same with decoding and metering,
and the driver's copy. Each run is a process of its own, for a process has one EAL; its one worker is pinned and always busy, so
packets are counted by second of CPU time, which other work on the machine does not take away. DPDK is not asked for huge pages.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.captures import capture_file

PACKETS, FLOWS = 20_000, 1_000
"""Of the capture: all its frames are held in mbufs."""

RUN = """
import json, sys, time
from jarvis_native import PacketCaptureEngine
device, filter, metering, seconds, cpu = json.loads(sys.argv[1])
eal = ["--no-huge", "-m", "512", "--no-pci"]
with PacketCaptureEngine(device, backend="dpdk", dpdk_eal_args=eal, filter=filter, workers=1, worker_cpus=[cpu]) as capture:
    if metering:
        capture.enable_flow_metering()
    capture.start()
    time.sleep(0.5)
    first, before = capture.get_metrics(), time.process_time()
    time.sleep(seconds)
    last, after = capture.get_metrics(), time.process_time()
lost = last.dropped_nic + last.dropped_kernel + last.dropped_user
print(json.dumps([(last.received - first.received) / (after - before), last.flows_active, lost]))
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.dpdk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--cpu", type=int, default=1)
    arguments = parser.parse_args()
    console = Console(width=170)
    capture, _ = capture_file(PACKETS, FLOWS, console)
    pcap = f"net_pcap0,rx_pcap={capture.absolute()},infinite_rx=1"
    sources = {
        "net_null, refused by its type (non-IP)": ("net_null0,size=64", "", False),
        "net_null, driver copies 64 bytes": ("net_null0,size=64,copy=1", "", False),
        "net_pcap infinite_rx, refused by a filter": (pcap, "ip proto 132", False),
        "net_pcap infinite_rx, decoded, not metered": (pcap, "", False),
        "net_pcap infinite_rx, metered": (pcap, "", True),
    }
    rates: dict[str, list[float]] = {name: [] for name in sources}
    flows: dict[str, int] = {}
    lost = 0
    for _round in range(arguments.rounds):
        for name, source in sources.items():
            rate, flows[name], dropped = run(*source, seconds=arguments.seconds, cpu=arguments.cpu)
            rates[name].append(rate)
            lost += dropped
    console.print(table(rates, flows))
    console.print(f"lost: {lost}")


def run(device: str, expression: str, metering: bool, *, seconds: float, cpu: int) -> tuple[float, int, int]:
    """Packets per CPU second, active flows and lost frames of one capture in a process of its own."""
    options = json.dumps([device, expression, metering, seconds, cpu])
    done = subprocess.run([sys.executable, "-c", RUN, options], check=True, capture_output=True, text=True, cwd=Path.cwd())
    rate, active, dropped = json.loads(done.stdout)
    return float(rate), int(active), int(dropped)


def table(rates: dict[str, list[float]], flows: dict[str, int]) -> Table:
    """Medians and ranges."""
    shown = Table("source", "Mpackets/s", "range", "ns a packet", "flows")
    for name, values in rates.items():
        median = statistics.median(values)
        spread = f"{min(values) / 1e6:.1f} to {max(values) / 1e6:.1f}"
        shown.add_row(name, f"{median / 1e6:.1f}", spread, f"{1e9 / median:.0f}", str(flows[name]))
    return shown


if __name__ == "__main__":
    main()
