# SPDX-License-Identifier: Apache-2.0
"""`make bench`: makes the capture, measures every meter on it, then the stream from agent to subscriber, then live capture.

python -m bench.run [--rounds 5] [--packets 5000000] [--flows 200000] [--capture FILE --truth JSON] [--only meters|stream|live]
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from rich.console import Console

from bench import live, meters, stream
from bench.captures import capture_file


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packets", type=int, default=5_000_000)
    parser.add_argument("--flows", type=int, default=200_000)
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--capture", type=Path)
    parser.add_argument("--truth", type=json.loads)
    parser.add_argument("--only", choices=("meters", "stream", "live"))
    arguments = parser.parse_args()
    console = Console(width=170)
    console.print(f"{platform.machine()}, kernel {platform.release()}, Python {platform.python_version()}")
    if arguments.only in (None, "meters"):
        if arguments.capture:
            capture, truth = arguments.capture, arguments.truth
        else:
            capture, truth = capture_file(arguments.packets, arguments.flows, console)
        runs = meters.measure(capture, rounds=arguments.rounds, cpu=arguments.cpu, console=console)
        console.print(meters.start_up(runs=20, cpu=arguments.cpu))
        console.print(meters.table(runs, packets=truth["packets"], flows=truth["biflows"]))
    if arguments.only in (None, "stream"):
        stream.report(console)
    if arguments.only in (None, "live"):
        live.report(console)


if __name__ == "__main__":
    main()
