# SPDX-License-Identifier: Apache-2.0
"""What a soak accepts and what it does not: memory, totals, snapshots."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from jarvis_native import CaptureMetrics

from testbed.generator import Sent
from testbed.soak.capture import check_snapshot
from testbed.soak.leg import FRAME_OCTETS, judged
from testbed.soak.memory import BOUND_KIB, Growth, Sample, growth
from testbed.soak.readers import Failures

LEVEL = Growth(samples=10, first_kib=1000, last_kib=1000, slope_kib_per_s=0, growth_kib=0)
SAMPLES: list[dict[str, Any]] = [{"descriptors": 12}, {"descriptors": 13}]


def rising(kib_per_s: float, *, seconds: int = 300) -> list[Sample]:
    return [Sample(at_s=at, rss_kib=170_000 + int(kib_per_s * at)) for at in range(0, seconds, 2)]


def test_memory_that_stays_level_passes() -> None:
    assert growth(rising(0), warm_up_s=60).within_bound


def test_memory_that_falls_passes() -> None:
    assert growth(rising(-50), warm_up_s=60).within_bound


def test_a_steady_leak_is_found_and_its_slope_told() -> None:
    found = growth(rising(20), warm_up_s=60)
    assert not found.within_bound
    assert found.slope_kib_per_s == pytest.approx(20, rel=0.01)
    assert found.growth_kib == pytest.approx(20 * 238, rel=0.01)


def test_growth_while_warming_up_does_not_count() -> None:
    samples = [Sample(at_s=at, rss_kib=min(at, 50) * 10_000) for at in range(0, 300, 2)]
    assert growth(samples, warm_up_s=60).within_bound


def test_too_few_samples_prove_nothing_and_do_not_pass() -> None:
    assert not growth(rising(0, seconds=8), warm_up_s=0).within_bound
    assert not growth([], warm_up_s=0).within_bound


def final(**changed: Any) -> dict[str, Any]:
    metrics = {
        "received": 1000, "metered": 1000, "metered_octets": 1000 * FRAME_OCTETS, "in_flight": 0, "flows_active": 0,
        "flows_total": 50, "flows_ended": [0, 30, 10, 0, 10, 0],
    }  # fmt: skip
    account = {"records": 50, "packets": 1000, "octets": 1000 * FRAME_OCTETS, "lost": 0}
    parts: dict[str, Any] = {"metrics": metrics, "account": account, "engine_error": "", "failure_count": 0, "failures": []}
    for path, value in changed.items():
        group, _, name = path.partition("__")
        if name:
            parts[group][name] = value
        else:
            parts[group] = value
    return parts


SENT = Sent(sent=1000, seconds=1.0, flows=40)


def test_exact_totals_and_level_memory_hold() -> None:
    assert judged(SENT, 0, LEVEL, SAMPLES, final()) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"metrics__received": 999}, "frames received against frames sent: 999, not 1,000"),
        ({"metrics__metered": 998}, "frames metered against frames received"),
        ({"metrics__in_flight": 1}, "frames in flight"),
        ({"metrics__flows_active": 1}, "flows active"),
        ({"metrics__flows_ended": [0, 30, 10, 0, 9, 0]}, "flow records ended against created: 49, not 50"),
        ({"account__records": 49}, "flow records read"),
        ({"account__lost": 1}, "that the reader lost"),
        ({"account__packets": 999}, "packets in the records"),
        ({"account__octets": 1}, "octets in the records"),
        ({"engine_error": "the interface is gone"}, "the interface is gone"),
        ({"failure_count": 2, "failures": ["received is 3"]}, "2 checks failed while it ran, the first: received is 3"),
    ],
)
def test_each_total_that_is_off_is_named(changed: dict[str, Any], named: str) -> None:
    assert any(named in sentence for sentence in judged(SENT, 0, LEVEL, SAMPLES, final(**changed)))


def test_fewer_records_than_flows_sent_are_named() -> None:
    assert any(
        "fewer than the 60 flows" in one for one in judged(dataclasses.replace(SENT, flows=60), 0, LEVEL, SAMPLES, final())
    )


def test_growth_lost_frames_and_open_files_are_named() -> None:
    grown = dataclasses.replace(LEVEL, growth_kib=BOUND_KIB + 1)
    sentences = " ".join(judged(SENT, 3, grown, [{"descriptors": 12}, {"descriptors": 40}], final()))
    assert "memory grew by 2,049 KiB" in sentences
    assert "frames that the link dropped: 3, not 0" in sentences
    assert "open files rose from 12 to 40" in sentences


def snapshot(**changed: Any) -> CaptureMetrics:
    zero: dict[str, Any] = dict.fromkeys(CaptureMetrics.__dataclass_fields__, 0) | {"flows_ended": (0, 0, 0, 0, 0, 0)}
    return CaptureMetrics(**(zero | {"received": 10, "metered": 8, "dropped_kernel": 2} | changed))


def test_a_snapshot_whose_parts_add_up_passes() -> None:
    failures = Failures()
    check_snapshot(snapshot(), snapshot(received=9, metered=7), failures)
    assert failures.count == 0


@pytest.mark.parametrize(
    "changed", [{"received": 11}, {"in_flight": 1}, {"flows_total": 1}, {"flows_ended": (0, 1, 0, 0, 0, 0)}, {"elapsed_ns": -1}]
)
def test_a_snapshot_that_does_not_add_up_or_goes_back_is_kept(changed: dict[str, Any]) -> None:
    failures = Failures()
    check_snapshot(snapshot(**changed), snapshot(), failures)
    assert failures.count >= 1
    assert failures.first
