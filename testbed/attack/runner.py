# SPDX-License-Identifier: Apache-2.0
"""Runs attacks one after the other in one arena; what each got, and what became of the honest agent meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from testbed.attack.arena import Arena
from testbed.attack.model import Attack, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of a whole run."""

    results: tuple[Result, ...]
    honest_failures: tuple[str, ...]
    """What was lost of the honest agent's flows; empty when nothing was."""
    replays: int
    records: int
    """Of the honest agent, all of which arrived when there are no failures."""

    @property
    def held(self) -> bool:
        """Every attack was refused with its reason, and the honest agent lost nothing."""
        return bool(self.results) and not self.honest_failures and all(result.refused for result in self.results)


def run(attacks: Iterable[Attack], directory: Path, on_result: Callable[[Result], None]) -> Outcome:
    """Everything from nothing below `directory`.

    Raises:
        FleetError: the arena could not be built.
    """
    results: list[Result] = []
    with Arena(directory) as arena:
        for attack in attacks:
            started = time.monotonic()
            got = _outcome(attack, arena)
            result = Result(attack=attack, got=got, seconds=time.monotonic() - started)
            results.append(result)
            on_result(result)
        failures = arena.verdict()
        return Outcome(
            results=tuple(results),
            honest_failures=tuple(failures),
            replays=arena.honest.replays,
            records=arena.honest.expected.total(),
        )


def _outcome(attack: Attack, arena: Arena) -> str:
    try:
        return attack.run(arena)
    except Exception as error:  # noqa: BLE001 - an attack that breaks is one that was not shown to be refused
        return f"{type(error).__name__}: {error}"
