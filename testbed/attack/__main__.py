# SPDX-License-Identifier: Apache-2.0
"""`make attack`: every named attack against a fleet of real processes with software TPMs.

python -m testbed.attack [--only WORD ...] [--list] [--output json] [--keep DIR]

Exit codes: 0 every attack was refused with its own reason and the honest agent lost no record; 1 not so (each named); 2 usage;
3 the fleet could not be built here; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from testbed.attack.catalogue import ATTACKS
from testbed.attack.model import Attack, Result
from testbed.attack.runner import Outcome, run
from testbed.fleet import FleetError

EXIT_HELD, EXIT_FAILED, EXIT_CANNOT, EXIT_INTERRUPTED = 0, 1, 3, 130


def main() -> int:
    """Command line."""
    arguments = _arguments()
    console = Console(stderr=arguments.output == "json", width=170)
    attacks = [attack for attack in ATTACKS if not arguments.only or any(word in attack.name for word in arguments.only)]
    if arguments.list:
        console.print(_list(attacks))
        return EXIT_HELD
    if not attacks:
        console.print(f"--only {' '.join(arguments.only)}: no attack has such a name; --list shows them all", markup=False)
        return 2
    with tempfile.TemporaryDirectory(prefix="jarvis-attack-") as scratch:
        directory = Path(arguments.keep or scratch)
        try:
            outcome = run(attacks, directory, lambda result: _show(console, result))
        except FleetError as error:
            console.print(f"the fleet could not be built: {error}", markup=False, style="red")
            return EXIT_CANNOT
    _summarise(console, outcome)
    if arguments.output == "json":
        json.dump(
            {
                "held": outcome.held,
                "attacks": [result.as_json() for result in outcome.results],
                "honest": {"replays": outcome.replays, "records": outcome.records, "failures": outcome.honest_failures},
            },
            sys.stdout,
            indent=1,
        )
        print()
    return EXIT_HELD if outcome.held else EXIT_FAILED


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="testbed.attack", description="named attacks, each refused with its own reason")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="attacks whose name has one of these words in it")
    parser.add_argument("--list", action="store_true", help="says what there is and runs nothing")
    parser.add_argument("--keep", metavar="DIR", help="everything stays below this directory: logs, database, TPMs")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    return parser.parse_args()


def _show(console: Console, result: Result) -> None:
    if result.refused:
        console.print(f"refused   {result.attack.name}: {result.got} ({result.seconds:.1f} s)", markup=False)
    else:
        words = f"NOT AS EXPECTED   {result.attack.name}: got {result.got}; {result.attack.expected} was expected"
        console.print(words, markup=False, style="red")


def _list(attacks: list[Attack]) -> Table:
    table = Table("attack", "what it tries", "refused with")
    for attack in attacks:
        table.add_row(attack.name, attack.tries, attack.expected)
    return table


def _summarise(console: Console, outcome: Outcome) -> None:
    families: dict[str, list[Result]] = {}
    for result in outcome.results:
        families.setdefault(result.attack.name.partition("/")[0], []).append(result)
    table = Table("family", "attacks", "refused", "seconds")
    for family, results in families.items():
        refused = sum(result.refused for result in results)
        table.add_row(family, str(len(results)), str(refused), f"{sum(result.seconds for result in results):.1f}")
    refused = sum(result.refused for result in outcome.results)
    table.add_section()
    table.add_row("all", str(len(outcome.results)), str(refused), f"{sum(result.seconds for result in outcome.results):.1f}")
    console.print(table)
    console.print(
        f"the honest agent: {outcome.replays} replays, {outcome.records} records, "
        + ("every one of which arrived" if not outcome.honest_failures else "; ".join(outcome.honest_failures)),
        markup=False,
    )
    console.print("everything held" if outcome.held else "something did not hold", style="green" if outcome.held else "red")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
