# SPDX-License-Identifier: Apache-2.0
"""Ranges of fields of operators' requests. Each function raises RpcError: INVALID_ARGUMENT, field, what is accepted."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from jarvis_controller.rpc_status import bad_field

MS = 10**6
S = 10**9
"""Nanoseconds."""


def check_range(field: str, value: int, low: int, high: int) -> None:
    """A number of low..high, or 0, which means its default."""
    if value and not low <= value <= high:
        raise bad_field(field, f"{value}: {low}..{high} is accepted")


def check_duration(field: str, duration: Duration, low_ns: int, high_ns: int) -> int:
    """A duration of low_ns..high_ns; in nanoseconds."""
    value = duration.seconds * S + duration.nanos
    if not low_ns <= value <= high_ns:
        raise bad_field(field, f"{value / S:g} s: {low_ns / S:g} s to {high_ns / S:g} s is accepted")
    return value
