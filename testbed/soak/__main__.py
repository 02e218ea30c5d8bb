# SPDX-License-Identifier: Apache-2.0
"""`make soak`: a leg on each backend, one after the other, sharing the time.

python -m testbed.soak [--seconds 600] [--backend afpacket] [--backend xdp] [--rate 100000] [--output json]

Exit codes: 0 everything held; 1 something did not (each named); 2 usage; 3 it cannot be run here; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from testbed.netns import is_available
from testbed.soak import leg as soak_leg
from testbed.soak.leg import Leg, Outcome

EXIT_HELD, EXIT_FAILED, EXIT_CANNOT, EXIT_INTERRUPTED = 0, 1, 3, 130
_BACKENDS = ("afpacket", "xdp")
_PROGRESS_S = 10.0


def main() -> int:
    """Command line."""
    arguments = _arguments()
    console = Console(stderr=arguments.output == "json", width=150)
    if obstacle := is_available():
        console.print(f"the soak cannot be run here: {obstacle}", markup=False)
        return EXIT_CANNOT
    backends = arguments.backend or list(_BACKENDS)
    outcomes, broken = [], {}
    for backend in backends:
        leg = Leg(backend=backend, seconds=arguments.seconds / len(backends), rate=arguments.rate)
        console.print(f"{backend}: {leg.seconds:.0f} s at {leg.rate:,} frames/s, memory judged after {leg.warm_up_s:.0f} s")
        try:
            outcome = soak_leg.run(leg, _Progress(console, leg))
        except RuntimeError as error:
            broken[backend] = str(error)
            console.print(f"{backend}: {error}", markup=False, style="red")
        else:
            outcomes.append(outcome)
            for failure in outcome.failures:
                console.print(f"{backend}: {failure}", markup=False, style="red")
    console.print(_table(outcomes))
    held = not broken and all(not outcome.failures for outcome in outcomes)
    console.print("everything held" if held else "something did not hold", style="green" if held else "red")
    if arguments.output == "json":
        json.dump({"held": held, "legs": [outcome.as_json() for outcome in outcomes], "broken": broken}, sys.stdout, indent=1)
        print()
    return EXIT_HELD if held else EXIT_FAILED


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="testbed.soak", description="live capture for minutes: exact totals, no growth")
    parser.add_argument("--seconds", type=float, default=600, help="over all legs, 30 and up (default: %(default)s)")
    parser.add_argument("--backend", action="append", choices=_BACKENDS, help="a leg on this one; default: one on each")
    parser.add_argument("--rate", type=int, default=100_000, help="frames a second, 1,000 to 1,000,000 (default: %(default)s)")
    parser.add_argument("--output", choices=("table", "json"), default="table", help="json: summary to stdout")
    arguments = parser.parse_args()
    if not 30 <= arguments.seconds <= 86_400:
        parser.error(f"--seconds is {arguments.seconds:g}: accepted are 30 to 86400")
    if not 1_000 <= arguments.rate <= 1_000_000:
        parser.error(f"--rate is {arguments.rate}: accepted are 1000 to 1000000")
    return arguments


class _Progress:
    """One line every ten seconds."""

    def __init__(self, console: Console, leg: Leg) -> None:
        self._console, self._leg = console, leg
        self._due = time.monotonic() + _PROGRESS_S

    def __call__(self, sample: dict[str, Any]) -> None:
        if time.monotonic() < self._due:
            return
        self._due += _PROGRESS_S
        self._console.print(
            f"{self._leg.backend} {sample['at_s']:5.0f}/{self._leg.seconds:.0f} s: {sample['received']:,} frames, "
            f"{sample['dropped']:,} dropped, {sample['flows_active']:,} flows active, {sample['flows_ended']:,} ended, "
            f"{sample['rss_kib'] / 1024:.1f} MiB",
            style="dim",
        )


def _table(outcomes: list[Outcome]) -> Table:
    result = Table(title="soak")
    result.add_column("backend")
    for heading in (
        "sent", "received", "metered", "dropped", "records", "lost", "RSS MiB, first and last", "slope KiB/s",
        "growth KiB (bound)", "readers", "queries", "snapshots",
    ):  # fmt: skip
        result.add_column(heading, justify="right")
    for outcome in outcomes:
        metrics, grown, times = outcome.final["metrics"], outcome.growth, outcome.final["times"]
        dropped = metrics["dropped_nic"] + metrics["dropped_kernel"] + metrics["dropped_user"]
        result.add_row(
            outcome.leg.backend,
            f"{outcome.sent.sent:,}",
            f"{metrics['received']:,}",
            f"{metrics['metered']:,}",
            f"{dropped:,}",
            f"{outcome.final['account']['records']:,}",
            f"{outcome.final['account']['lost']:,}",
            f"{grown.first_kib / 1024:.1f}, {grown.last_kib / 1024:.1f}",
            f"{grown.slope_kib_per_s:.2f}",
            f"{grown.growth_kib:,.0f} ({grown.bound_kib:,})",
            f"{times['visitor']:,}",
            f"{times['inquirer']:,}",
            f"{times['snapshot']:,}",
        )
    return result


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # namespaces and processes are gone by now
        sys.exit(EXIT_INTERRUPTED)
