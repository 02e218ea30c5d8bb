# SPDX-License-Identifier: Apache-2.0
"""Paired rounds, for every table: within a round each contestant runs once, so that a noisy minute hits all of them.

A contestant may take part in fewer rounds (`rounds_of`), and one that fails is left out from then on, with its reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from rich.console import Console


class Contestant(Protocol):
    """What takes part."""

    @property
    def name(self) -> str:
        """As the table shows it."""

    @property
    def missing(self) -> Callable[[], str]:
        """Why it cannot run here; empty when it can."""


C = TypeVar("C", bound=Contestant)
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Generic[R]):
    """Each contestant's results in the order of the rounds, and why others have none."""

    runs: dict[str, list[R]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def in_rounds(
    contestants: Sequence[C],
    run: Callable[[C], R],
    *,
    rounds: int,
    console: Console,
    rounds_of: Callable[[C], int] = lambda _contestant: 1 << 30,
) -> Measured[R]:
    """Runs each in turn, `rounds` times."""
    measured: Measured[R] = Measured()
    for contestant in contestants:
        if reason := contestant.missing():
            _leave_out(measured, contestant.name, reason, console)
    for number in range(rounds):
        for contestant in contestants:
            if contestant.name in measured.left_out or number >= rounds_of(contestant):
                continue
            console.print(f"round {number + 1}/{rounds}: {contestant.name}", style="dim")
            try:
                result = run(contestant)
            except RuntimeError as error:
                _leave_out(measured, contestant.name, str(error), console)
            else:
                measured.runs.setdefault(contestant.name, []).append(result)
    return measured


def _leave_out(measured: Measured[R], name: str, reason: str, console: Console) -> None:
    measured.left_out[name] = reason
    measured.runs.pop(name, None)
    console.print(f"left out: {name}: {reason}", markup=False)


def median_of(runs: Sequence[R], value: Callable[[R], float]) -> float:
    """The median over the rounds."""
    return statistics.median(value(run) for run in runs)


def paired_ratio(theirs: Sequence[R], ours: Sequence[R], value: Callable[[R], float]) -> float:
    """The median of theirs over ours, round by round, over the rounds that both were in."""
    return statistics.median(value(their) / value(our) for their, our in zip(theirs, ours, strict=False))
