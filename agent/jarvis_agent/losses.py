# SPDX-License-Identifier: Apache-2.0
"""What one subscriber must be told was lost: exact counts, coalesced, at most one notice a second and place.

No I/O and no clock: the stream says what it saw and what time it is. Nothing added here is ever dropped: it leaves by `due`
or `flush`.
"""

from __future__ import annotations

from dataclasses import dataclass

from jarvis.capture.v1.flow_pb2 import (
    LOSS_POINT_AGENT_QUEUE,
    LOSS_POINT_FLOW_TABLE,
    LOSS_POINT_KERNEL_RING,
    LOSS_POINT_NIC,
    LossNotice,
    LossPoint,
)
from jarvis_native import CaptureMetrics

from jarvis_agent.wire import timestamp

NOTICE_INTERVAL_S = 1.0


@dataclass(slots=True, kw_only=True)
class _Pending:
    lost: int
    first_sequence: int
    last_sequence: int
    first_time_ns: int
    last_time_ns: int


class LossLedger:
    """Losses that were seen and not yet said."""

    def __init__(self) -> None:
        """Nothing lost, nothing said."""
        self._pending: dict[tuple[LossPoint.ValueType, int], _Pending] = {}
        self._said_at: dict[LossPoint.ValueType, float] = {}
        self._counters: dict[LossPoint.ValueType, int] = {}

    def add_gap(self, *, shard: int, lost: int, first_sequence: int, last_sequence: int, time_ns: int) -> None:
        """Records of `shard` that were overwritten before the subscriber's reader came to them."""
        key = (LOSS_POINT_AGENT_QUEUE, shard)
        self._add(key, lost, first_sequence=first_sequence, last_sequence=last_sequence, time_ns=time_ns)

    def start_counting(self, metrics: CaptureMetrics | None) -> None:
        """A new capture, or a place in one: counters are compared with these from now on (None: with zero)."""
        self._counters = {} if metrics is None else _loss_counters(metrics)

    def observe(self, metrics: CaptureMetrics) -> None:
        """Adds what the capture's own counters have risen by since the last look."""
        for point, value in _loss_counters(metrics).items():
            risen = value - self._counters.get(point, 0)
            if risen > 0:
                self._add((point, 0), risen, time_ns=metrics.time_unix_ns)
            self._counters[point] = value

    def due(self, now_s: float) -> list[LossNotice]:
        """Notices that may go out at monotonic time `now_s`: at most one a place, the longest waiting first."""
        notices = []
        for point in sorted({point for point, _ in self._pending}):
            if now_s - self._said_at.get(point, float("-inf")) >= NOTICE_INTERVAL_S:
                key = min((key for key in self._pending if key[0] == point), key=lambda key: self._pending[key].first_time_ns)
                notices.append(_notice(key, self._pending.pop(key)))
                self._said_at[point] = now_s
        return notices

    def flush(self) -> list[LossNotice]:
        """Everything that is left, for the end of a stream."""
        notices = [_notice(key, pending) for key, pending in sorted(self._pending.items())]
        self._pending.clear()
        return notices

    def _add(
        self, key: tuple[LossPoint.ValueType, int], lost: int, *, time_ns: int, first_sequence: int = 0, last_sequence: int = 0
    ) -> None:
        known = self._pending.get(key)
        if known is None:
            self._pending[key] = _Pending(
                lost=lost,
                first_sequence=first_sequence,
                last_sequence=last_sequence,
                first_time_ns=time_ns,
                last_time_ns=time_ns,
            )
            return
        known.lost += lost
        known.last_sequence = last_sequence
        known.last_time_ns = time_ns


def _loss_counters(metrics: CaptureMetrics) -> dict[LossPoint.ValueType, int]:
    return {
        LOSS_POINT_NIC: metrics.dropped_nic,
        LOSS_POINT_KERNEL_RING: metrics.dropped_kernel,
        LOSS_POINT_FLOW_TABLE: metrics.flows_ended[5],
    }


def _notice(key: tuple[LossPoint.ValueType, int], pending: _Pending) -> LossNotice:
    point, shard = key
    return LossNotice(
        point=point,
        lost=pending.lost,
        shard=shard,
        first_sequence=pending.first_sequence,
        last_sequence=pending.last_sequence,
        first_time=timestamp(pending.first_time_ns),
        last_time=timestamp(pending.last_time_ns),
    )
