# SPDX-License-Identifier: Apache-2.0
"""`make bench`: every benchmark in turn, each a table for people; --output json gives all figures of all rounds.

python -m bench.run [--only JOB ...] [--rounds 5] [--capture FILE --truth JSON] [--output markdown|json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench import dpdk, encoder, export, floods, instructions, joining, live, meters, start_up, stream, verification
from bench.captures import capture_file
from bench.peers import NFSTREAM, OURS

Job = Callable[[argparse.Namespace, Console], dict[str, Any]]


def _meters(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A capture file, every meter; NFStream, which runs once on a large one, is measured in all rounds on a smaller one too."""
    common = {"rounds": arguments.rounds, "cpu": arguments.cpu, "console": console}
    if arguments.capture:
        return {"file": meters.report(arguments.capture, arguments.truth, **common)}
    result = {"file": meters.report(*capture_file(arguments.packets, arguments.flows, console), **common)}
    if arguments.packets >= meters.LARGE:
        smaller = capture_file(arguments.packets // 4, arguments.flows // 5, console)
        result["smaller_file"] = meters.report(*smaller, **common, meters=(OURS, NFSTREAM))
    return result


def _export(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A capture of a quarter of the packets and a fifth of the flows, unless one is given."""
    capture, truth = arguments.capture, arguments.truth
    if not capture:
        capture, truth = capture_file(arguments.packets // 4, arguments.flows // 5, console)
    return export.report(capture, truth, rounds=arguments.rounds, cpu=arguments.cpu, console=console)


JOBS: dict[str, Job] = {
    "meters": _meters,
    "export": _export,
    "start-up": lambda arguments, console: start_up.report(cpu=arguments.cpu, console=console),
    "floods": lambda arguments, console: floods.report(console, rounds=arguments.rounds, cpu=arguments.cpu),
    "encoder": lambda arguments, console: encoder.report(console, rounds=arguments.rounds, cpu=arguments.cpu),
    "stream": lambda _arguments, console: stream.report(console),
    "verification": lambda arguments, console: verification.report(console, rounds=arguments.rounds, cpu=arguments.cpu),
    "joining": lambda arguments, console: joining.report(console, rounds=arguments.rounds),
    "live": lambda arguments, console: live.report(console, rounds=arguments.rounds),
    "dpdk": lambda arguments, console: dpdk.report(console, rounds=arguments.rounds, cpu=arguments.cpu),
    "instructions": lambda _arguments, console: instructions.report(console),
}
"""To add a benchmark: a module with a function that measures, prints its table and returns its figures, and a row here."""


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "time_unix": int(time.time()),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


class MarkdownConsole(Console):
    """Prints tables as docs/performance.md has them."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Console.print does, but for tables."""
        for table in objects:
            if isinstance(table, Table):
                table.box = box.MARKDOWN
        super().print(*objects, **options)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.run")
    parser.add_argument("--only", choices=tuple(JOBS), action="append", help="only this one; may be given several times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packets", type=int, default=20_000_000, help="of the capture that is made (default: %(default)s)")
    parser.add_argument("--flows", type=int, default=1_000_000, help="biflows of it (default: %(default)s)")
    parser.add_argument("--cpu", type=int, default=0, help="the core that meters run on")
    parser.add_argument("--capture", type=Path, help="a capture file of your own, with --truth")
    parser.add_argument("--truth", type=json.loads, help="""its totals: '{"packets": N, "biflows": N}'""")
    parser.add_argument("--output", choices=("table", "markdown", "json"), default="table", help="json: stdout, tables to stderr")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}: accepted are 1 and up")
    if (arguments.capture is None) != (arguments.truth is None):
        parser.error("--capture and --truth go together")
    if arguments.truth is not None and not (isinstance(arguments.truth, dict) and {"packets", "biflows"} <= set(arguments.truth)):
        parser.error(f"--truth is {json.dumps(arguments.truth)}: accepted is an object with packets and biflows")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background, and programs would inherit that
    console = (
        MarkdownConsole(width=400) if arguments.output == "markdown" else Console(width=170, stderr=arguments.output == "json")
    )
    figures = {"machine": machine()}
    console.print(f"{platform.machine()}, kernel {platform.release()}, Python {platform.python_version()}")
    for name in arguments.only or JOBS:
        figures[name] = JOBS[name](arguments, console)
    if arguments.output == "json":
        json.dump(figures, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
