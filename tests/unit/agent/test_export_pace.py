# SPDX-License-Identifier: Apache-2.0
"""Pace: the rate is kept over time, and never more leaves at once than a default receive buffer holds."""

from __future__ import annotations

import pytest
from jarvis_agent.export.pace import Pace


class FakeClock:
    """Time that passes by sleeping alone."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now = 100.0
        self._late_s = late_s

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self._late_s


def departures(rate: int, pieces: int, records: int, clock: FakeClock) -> list[float]:
    """When each piece left."""
    pace = Pace(rate, clock=clock, sleep=clock.sleep)
    times = []
    for _ in range(pieces):
        pace.wait(records)
        times.append(clock.now)
    return times


@pytest.mark.parametrize("rate", [1_000, 200_000, 1_000_000])
@pytest.mark.parametrize("late_s", [0.0, 0.0005])
def test_the_rate_is_kept_even_when_sleeps_end_late(rate: int, late_s: float) -> None:
    times = departures(rate, 1_000, 500, FakeClock(late_s))
    elapsed = times[-1] - times[0]
    assert 999 * 500 / rate * 0.99 <= elapsed <= 999 * 500 / rate * 1.05 + 0.01


@pytest.mark.parametrize("rate", [1_000, 200_000])
def test_no_more_than_two_bursts_leave_at_once(rate: int) -> None:
    clock = FakeClock()
    pace = Pace(rate, clock=clock, sleep=clock.sleep)
    clock.now += 3_600  # however long nothing left
    now, left = clock.now, 0
    while clock.now == now:
        pace.wait(500)
        left += 500
    assert left <= 3 * 500  # the one that had to wait among them


def test_without_a_rate_nothing_waits_and_an_interrupt_ends_a_wait() -> None:
    clock = FakeClock()
    unlimited = Pace(0, clock=clock, sleep=clock.sleep)
    assert not unlimited.is_limited
    unlimited.wait(1_000_000)
    interrupted = Pace(1, interrupt=lambda: True, clock=clock, sleep=clock.sleep)
    interrupted.wait(1_000_000)
    interrupted.wait(1)
    assert clock.now == 100.0
