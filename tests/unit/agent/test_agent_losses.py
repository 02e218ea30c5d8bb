# SPDX-License-Identifier: Apache-2.0
"""Loss notices: exact in sum, at most one a second and place."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from jarvis.capture.v1.flow_pb2 import (
    LOSS_POINT_AGENT_QUEUE,
    LOSS_POINT_FLOW_TABLE,
    LOSS_POINT_KERNEL_RING,
    LOSS_POINT_NIC,
)
from jarvis_agent.losses import LossLedger

from tests.unit.agent.fakes import metrics


def gap(ledger: LossLedger, first: int, last: int, *, shard: int = 0) -> None:
    ledger.add_gap(shard=shard, lost=last - first + 1, first_sequence=first, last_sequence=last, time_ns=first)


def test_a_gap_is_told_at_once_and_the_next_ones_together_a_second_later() -> None:
    ledger = LossLedger()
    gap(ledger, 10, 19)
    (notice,) = ledger.due(100.0)
    assert (notice.point, notice.lost, notice.first_sequence, notice.last_sequence) == (LOSS_POINT_AGENT_QUEUE, 10, 10, 19)
    gap(ledger, 30, 34)
    gap(ledger, 50, 54)
    assert ledger.due(100.9) == []
    (notice,) = ledger.due(101.0)
    assert (notice.lost, notice.first_sequence, notice.last_sequence) == (10, 30, 54)
    assert notice.first_time.nanos == 30
    assert notice.last_time.nanos == 50


def test_counters_that_rise_become_notices_of_their_place() -> None:
    ledger = LossLedger()
    ledger.start_counting(metrics(dropped_kernel=5))
    ledger.observe(metrics(dropped_kernel=7, dropped_nic=1, flows_ended=(0, 9, 9, 9, 9, 3)))
    lost = {notice.point: notice.lost for notice in ledger.due(0.0)}
    assert lost == {LOSS_POINT_KERNEL_RING: 2, LOSS_POINT_NIC: 1, LOSS_POINT_FLOW_TABLE: 3}
    ledger.observe(metrics(dropped_kernel=7, dropped_nic=1, flows_ended=(0, 9, 9, 9, 9, 3)))
    assert ledger.flush() == []


def test_a_stream_from_the_oldest_record_hears_of_the_losses_before_it() -> None:
    ledger = LossLedger()
    ledger.start_counting(None)
    ledger.observe(metrics(dropped_kernel=7))
    assert [notice.lost for notice in ledger.flush()] == [7]


def test_shards_are_told_apart_and_the_one_that_waits_longest_goes_first() -> None:
    ledger = LossLedger()
    gap(ledger, 5, 5, shard=1)
    gap(ledger, 3, 3, shard=0)
    assert [notice.shard for notice in ledger.due(0.0)] == [0]
    assert [notice.shard for notice in ledger.flush()] == [1]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 1000), st.floats(0, 3, allow_nan=False)),
        max_size=60,
    )
)
def test_whatever_comes_the_sum_is_exact_and_a_second_lies_between_notices(steps: list[tuple[int, int, float]]) -> None:
    ledger, now, said = LossLedger(), 0.0, []
    total = 0
    for shard, lost, pause in steps:
        gap(ledger, 0, lost - 1, shard=shard)
        total += lost
        now += pause
        said += [(now, notice.lost) for notice in ledger.due(now)]
    assert all(later - earlier >= 1.0 for (earlier, _), (later, _) in pairwise(said))
    assert sum(lost for _, lost in said) + sum(notice.lost for notice in ledger.flush()) == total
