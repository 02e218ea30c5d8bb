# SPDX-License-Identifier: Apache-2.0
"""The façade's value types as messages of the wire, and messages of their bytes. Pure functions."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from jarvis.capture.v1 import capture_pb2
from jarvis_native import BackendInfo, CaptureMetrics, ClockInfo, InterfaceInfo
from jarvis_native.types import InterfaceState

from jarvis_agent.errors import RequestError

_Request = TypeVar("_Request", bound=Message)

_SAME_NAME = (
    "received", "received_octets", "metered", "metered_octets", "filtered", "non_ip", "malformed", "paused", "dropped_nic",
    "dropped_kernel", "dropped_user", "in_flight", "truncated", "fragments_matched", "fragments_unmatched", "time_regressions",
    "flows_active", "flows_total", "throughput_bps", "throughput_pps", "ring_usage", "flow_table_bytes",
    "tunnelled", "tunnelled_octets", "unsampled", "clock_steps", "statistics_bytes",
)  # fmt: skip


def capture_metrics(metrics: CaptureMetrics) -> capture_pb2.CaptureMetrics:
    """Counters of one capture."""
    _, idle, active, detected, forced, evicted = metrics.flows_ended
    message = capture_pb2.CaptureMetrics(
        time=timestamp(metrics.time_unix_ns),
        elapsed=duration(metrics.elapsed_ns),
        flows_ended_idle=idle,
        flows_ended_active=active,
        flows_ended_detected=detected,
        flows_ended_forced=forced,
        flows_evicted=evicted,
        records_written=metrics.log_records_written,
    )
    for name in _SAME_NAME:
        setattr(message, name, getattr(metrics, name))
    return message


_INTERFACE_STATES: dict[InterfaceState, capture_pb2.InterfaceState.ValueType] = {
    "up": capture_pb2.INTERFACE_STATE_UP,
    "down": capture_pb2.INTERFACE_STATE_DOWN,
    "gone": capture_pb2.INTERFACE_STATE_GONE,
}


def interface_status(interface: InterfaceInfo) -> capture_pb2.InterfaceStatus:
    """One interface of a live capture."""
    return capture_pb2.InterfaceStatus(
        name=interface.name,
        backend=interface.backend,
        detail=interface.detail,
        interface_index=interface.interface_index,
        state=_INTERFACE_STATES[interface.state],
        received=interface.received,
        dropped_nic=interface.dropped_nic,
        dropped_kernel=interface.dropped_kernel,
        error=interface.error,
    )


def backend_info(backend: BackendInfo) -> capture_pb2.BackendInfo:
    """One capture backend."""
    return capture_pb2.BackendInfo(
        name=backend.name, description=backend.description, usable=backend.usable, reason=backend.reason, live=backend.live
    )


_TIMESTAMP_SOURCES = {
    "kernel": capture_pb2.TIMESTAMP_SOURCE_KERNEL,
    "hardware": capture_pb2.TIMESTAMP_SOURCE_HARDWARE,
    "ptp": capture_pb2.TIMESTAMP_SOURCE_PTP,
    "ntp": capture_pb2.TIMESTAMP_SOURCE_NTP,
}


def clock_status(clock: ClockInfo) -> capture_pb2.ClockStatus:
    """The clock behind a live capture's timestamps."""
    return capture_pb2.ClockStatus(
        source=_TIMESTAMP_SOURCES[clock.source],
        synchronised=clock.synchronised,
        offset_ns=clock.offset_ns,
        error_bound_ns=clock.error_bound_ns,
        steps=clock.steps,
        detail=clock.detail,
    )


def timestamp(unix_ns: int) -> Timestamp:
    """Nanoseconds since the Unix epoch."""
    return Timestamp(seconds=unix_ns // 10**9, nanos=unix_ns % 10**9)


def duration(nanoseconds: int) -> Duration:
    """A length of time, not negative."""
    return Duration(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def parse(kind: type[_Request], payload: bytes) -> _Request:
    """A request of its bytes.

    Raises:
        RequestError: they are none.
    """
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise RequestError(("", f"{len(payload)} bytes that are no {kind.DESCRIPTOR.full_name}")) from error
