# SPDX-License-Identifier: Apache-2.0
"""Stand-ins that behave: a TPM's PCRs, a boot clock, an engine with a record log."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jarvis_agent.tpm_device import ClockInfo
from jarvis_native import CaptureMetrics, FlowBatch, FlowBatchBytes


class FakeClock:
    """CLOCK_BOOTTIME under the test's hand."""

    def __init__(self, now: int = 1_000_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


class FakePcrs:
    """The part of a TPM that the event log uses: one PCR, a reset count, and failures on demand."""

    def __init__(self) -> None:
        self.value = bytes(32)
        self.reset_count = 1
        self.extended: list[bytes] = []
        self.fail_next_extend: Exception | None = None

    def clock(self) -> ClockInfo:
        return ClockInfo(clock=1, reset_count=self.reset_count, restart_count=0, safe=True)

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        return dict.fromkeys(pcrs, self.value)

    def extend_pcr(self, _pcr: int, digest: bytes) -> None:
        if self.fail_next_extend is not None:
            error, self.fail_next_extend = self.fail_next_extend, None
            raise error
        self.extended.append(digest)
        self.value = hashlib.sha256(self.value + digest).digest()

    def reset(self) -> None:
        self.value = bytes(32)
        self.reset_count += 1


NO_METRICS = CaptureMetrics(
    flows_ended=(0, 0, 0, 0, 0, 0),
    **{name: 0 for name in CaptureMetrics.__dataclass_fields__ if name != "flows_ended"},
)


def metrics(**changes: Any) -> CaptureMetrics:
    return replace(NO_METRICS, **changes)


def batch(records: int = 0, **changes: Any) -> FlowBatchBytes:
    """What one read returned; the data is a tag and the count, enough to tell batches apart."""
    fields: dict[str, Any] = {
        "data": b"\x12" + bytes([records % 256]) if records else b"",
        "records": records,
        "shard": 0,
        "first_sequence": 0,
        "next_sequence": records,
        "lost": 0,
        "first_lost_sequence": 0,
        "last_lost_sequence": 0,
        "more": False,
        "end": False,
    }
    return FlowBatch(**(fields | changes))


@dataclass
class FakeReader:
    """Gives the batches it was made with, then `end`."""

    batches: list[FlowBatchBytes]
    closed: bool = False

    def read_batch(self, _max_records: int, _max_bytes: int) -> FlowBatchBytes:
        return self.batches.pop(0) if self.batches else batch(end=True)

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeEngine:
    """An engine whose readers and counters the test sets."""

    reader: FakeReader
    metrics: CaptureMetrics = NO_METRICS
    opened_with: list[dict[str, Any]] = field(default_factory=list)

    def open_flow_reader(self, **arguments: Any) -> FakeReader:
        self.opened_with.append(arguments)
        return self.reader

    def get_metrics(self) -> CaptureMetrics:
        return self.metrics
