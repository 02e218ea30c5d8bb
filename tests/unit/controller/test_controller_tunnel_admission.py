# SPDX-License-Identifier: Apache-2.0
"""Admission of tunnels: so many a second, so many at once, and appointments for the rest."""

from __future__ import annotations

import heapq

from jarvis_controller.tunnel_admission import Admission, AdmissionPerKey


def admission(*, per_s: float = 10.0, burst: float = 5.0, at_once: int = 100, longest_s: float = 60.0) -> Admission:
    return Admission(per_s=per_s, burst=burst, at_once=at_once, longest_s=longest_s, draw=lambda low, _high: low)


def test_a_burst_is_let_in_and_the_rest_gets_places_in_time_of_their_own() -> None:
    gate = admission()
    waits = [gate.enter(100.0) for _ in range(8)]
    assert waits[:5] == [0.0] * 5
    assert [round(wait, 6) for wait in waits[5:]] == [0.1, 0.2, 0.3]


def test_no_more_begin_at_once_than_may_however_slow_they_are() -> None:
    gate = admission(at_once=2)
    assert [gate.enter(0.0) == 0.0 for _ in range(3)] == [True, True, False]
    gate.leave()
    assert gate.enter(1.0) == 0.0


def test_appointments_do_not_lie_beyond_the_longest() -> None:
    gate = admission(per_s=1.0, burst=1.0, longest_s=20.0)
    waits = [gate.enter(0.0) for _ in range(500)]
    assert max(waits) <= 20.0
    assert min(waits[20:]) >= 10.0, "who comes too late for a place does not come back at once"


def test_two_thousand_that_keep_their_appointments_are_in_after_as_long_as_it_takes_and_ask_little_more_often() -> None:
    gate = Admission(per_s=100.0, burst=100.0, at_once=64, longest_s=60.0)
    coming = [(0.0, number) for number in range(2000)]
    asked, let_in = 0, []
    while coming:
        now, number = heapq.heappop(coming)
        asked += 1
        wait = gate.enter(now)
        if wait:
            heapq.heappush(coming, (now + wait, number))
        else:
            gate.leave()
            let_in.append(now)
    assert len(let_in) == 2000
    assert let_in[-1] < 40.0
    assert asked < 3 * 2000
    per_second = [sum(second <= time < second + 1 for time in let_in) for second in range(40)]
    assert max(per_second) <= 201, "a full bucket and a second's refill"


def test_each_key_has_a_bucket_of_its_own_and_the_ones_seen_longest_ago_are_forgotten() -> None:
    gates = AdmissionPerKey(lambda: admission(burst=1.0), most=2)
    first = gates.of(b"one")
    assert first.enter(0.0) == 0.0
    assert gates.of(b"one").enter(0.0) > 0.0, "the same bucket, now empty"
    assert gates.of(b"two").enter(0.0) == 0.0
    assert gates.of(b"one") is first
    gates.of(b"three")
    assert gates.of(b"one") is first
    assert gates.of(b"two").enter(0.0) == 0.0, "it was forgotten"
