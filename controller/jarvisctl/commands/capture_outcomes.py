# SPDX-License-Identifier: Apache-2.0
"""What agents answered to a command about their capture, printed as they answer: a table for people, JSON for programs."""

from collections.abc import AsyncIterable
from typing import Any, Protocol

from jarvis.capture.v1 import capture_pb2, fleet_pb2

from jarvisctl.client import Fleet, nothing_selected
from jarvisctl.errors import ExitCode
from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.progress import progress
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import count, interval, printable, scaled, seconds_of, span
from jarvisctl.status import failure_of

_STATE = capture_pb2.CaptureState.DESCRIPTOR
_TIMESTAMP_SOURCE = capture_pb2.TimestampSource.DESCRIPTOR


class View(Protocol):
    """What of an outcome is shown to people; programs get all of it."""

    def table(self) -> Table:
        """Empty, with its columns."""
        ...

    def rows(self, outcome: fleet_pb2.CaptureOutcome, failure: str) -> list[list[str]]:
        """An agent's rows; `failure` is why it failed, or empty."""
        ...


async def print_outcomes(
    fleet: Fleet, what: str, outcomes: AsyncIterable[fleet_pb2.CaptureOutcome], view: View | None = None
) -> ExitCode:
    """Prints each agent's outcome, by default a row of its capture."""
    answers = failures = 0
    view = view or CaptureView()
    table = view.table()
    with progress(what, fleet.output) as answered:
        async for outcome in outcomes:
            answered()
            answers += 1
            failure = failure_of(outcome.status)
            failures += failure is not None
            if fleet.output.json:
                fleet.output.line(_object(outcome))
            else:
                for row in view.rows(outcome, failure.sentence if failure else ""):
                    table.add(*row)
    if not answers:
        raise nothing_selected()
    if not fleet.output.json:
        fleet.output.table(table)
        if failures:
            fleet.output.remark(f"{failures} of {answers} agents failed")
    return ExitCode.FAILED if failures else ExitCode.OK


def _object(outcome: fleet_pb2.CaptureOutcome) -> dict[str, Any]:
    failure = failure_of(outcome.status)
    return {
        "agent_id": outcome.agent_id,
        "ok": failure is None,
        "error": failure.to_object() if failure else None,
        "capture": to_object(outcome.capture) if outcome.HasField("capture") else None,
    }


class CaptureView:
    """One row a capture."""

    def table(self) -> Table:
        """Empty, with its columns."""
        return _table()

    def rows(self, outcome: fleet_pb2.CaptureOutcome, failure: str) -> list[list[str]]:
        """The capture's row."""
        return [_row(outcome, failure)]


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
