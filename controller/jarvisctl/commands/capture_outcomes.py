# SPDX-License-Identifier: Apache-2.0
"""What of agents' captures is shown to people and to programs (outcomes.py prints it)."""

from typing import Any

from jarvis.capture.v1 import capture_pb2, fleet_pb2

from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import count, interval, printable, scaled, seconds_of, span

_STATE = capture_pb2.CaptureState.DESCRIPTOR
_TIMESTAMP_SOURCE = capture_pb2.TimestampSource.DESCRIPTOR


class CaptureView:
    """One row a capture."""

    def table(self) -> Table:
        """Empty, with its columns."""
        return _table()

    def rows(self, outcome: fleet_pb2.CaptureOutcome, failure: str) -> list[list[str]]:
        """The capture's row."""
        return [_row(outcome, failure)]

    def contents(self, outcome: fleet_pb2.CaptureOutcome) -> dict[str, Any]:
        """All of the capture."""
        return {"capture": to_object(outcome.capture) if outcome.HasField("capture") else None}


def _table() -> Table:
    return Table(
        columns=[
            Column(title="AGENT", cut=12),
            Column(title="STATE", states=True),
            Column(title="SOURCE"),
            Column(title="BACKEND"),
            Column(title="UPTIME", right=True),
            Column(title="PACKETS", right=True),
            Column(title="BYTES", right=True),
            Column(title="DROPPED", right=True),
            Column(title="FLOWS", right=True),
            Column(title="CLOCK"),
            Column(title="MESSAGE", fold=True),
        ]
    )


def _row(outcome: fleet_pb2.CaptureOutcome, failure: str) -> list[str]:
    """A failed agent's row says so and why; what is known of its capture follows all the same."""
    if not outcome.HasField("capture"):
        return [outcome.agent_id, "failed" if failure else "ok", *["-"] * 8, failure or "-"]
    capture = outcome.capture
    metrics = capture.metrics
    state = enum_text(_STATE, capture.state)
    message = "; ".join(part for part in (failure, printable(capture.message)) if part)
    return [
        outcome.agent_id,
        "failed" if failure else state,
        printable(",".join(_sources(capture))) or "-",
        printable(capture.backend) or "-",
        span(seconds_of(capture.uptime)) if capture.HasField("uptime") else "-",
        count(metrics.received),
        scaled(metrics.received_octets, "B"),
        count(metrics.dropped_nic + metrics.dropped_kernel + metrics.dropped_user),
        count(metrics.flows_active),
        _clock_text(capture.clock) if capture.HasField("clock") else "-",
        message or "-",
    ]


def _sources(capture: capture_pb2.CaptureStatus) -> list[str]:
    """The interfaces in force (they may have changed since the start), else what was asked for."""
    return [interface.name for interface in capture.interfaces] or [*capture.spec.interfaces, *capture.spec.files]


def _clock_text(clock: capture_pb2.ClockStatus) -> str:
    """The clock behind the timestamps: `kernel`, `ntp 0ns ±1.5ms`, `ptp -37.0us ±0.3us, 2 steps`."""
    parts = [enum_text(_TIMESTAMP_SOURCE, clock.source)]
    if clock.source != capture_pb2.TIMESTAMP_SOURCE_KERNEL:
        if clock.source == capture_pb2.TIMESTAMP_SOURCE_NTP and not clock.synchronised:
            parts.append("unsynchronised")
        if clock.HasField("error_bound_ns"):
            parts += [interval(clock.offset_ns), "±" + interval(clock.error_bound_ns)]
    text = " ".join(parts)
    return f"{text}, {count(clock.steps)} step{'s' if clock.steps != 1 else ''}" if clock.steps else text
