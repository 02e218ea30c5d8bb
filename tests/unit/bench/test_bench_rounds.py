# SPDX-License-Identifier: Apache-2.0
"""Rounds are paired: who runs when, who is left out, what a ratio compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from bench.rounds import in_rounds, paired_ratio


@dataclass(frozen=True, kw_only=True)
class Runner:
    name: str
    rounds: int = 9
    missing: Callable[[], str] = lambda: ""


QUIET = Console(quiet=True)


def test_within_a_round_each_contestant_runs_once() -> None:
    order: list[str] = []
    in_rounds([Runner(name="a"), Runner(name="b")], lambda one: order.append(one.name), rounds=2, console=QUIET)
    assert order == ["a", "b", "a", "b"]


def test_a_slow_contestant_takes_part_in_the_first_rounds_only() -> None:
    runners = [Runner(name="a"), Runner(name="slow", rounds=1)]
    measured = in_rounds(runners, lambda _one: 1, rounds=3, rounds_of=lambda one: one.rounds, console=QUIET)
    assert {name: len(runs) for name, runs in measured.runs.items()} == {"a": 3, "slow": 1}


def test_a_contestant_that_fails_is_left_out_with_its_reason_and_the_others_go_on() -> None:
    tries: list[str] = []

    def run(one: Runner) -> int:
        tries.append(one.name)
        if one.name == "b" and tries.count("b") == 2:
            raise RuntimeError("out of memory")
        return 1

    measured = in_rounds([Runner(name="a"), Runner(name="b")], run, rounds=4, console=QUIET)
    assert measured.runs == {"a": [1, 1, 1, 1]}
    assert measured.left_out == {"b": "out of memory"}
    assert tries.count("b") == 2


def test_a_contestant_that_is_missing_never_runs() -> None:
    measured = in_rounds([Runner(name="a", missing=lambda: "not installed")], lambda _one: 1, rounds=1, console=QUIET)
    assert (measured.runs, measured.left_out) == ({}, {"a": "not installed"})


def test_a_ratio_compares_runs_of_the_same_round() -> None:
    ours, theirs = [1.0, 10.0, 2.0], [4.0, 40.0]
    assert paired_ratio(theirs, ours, lambda seconds: seconds) == 4.0
