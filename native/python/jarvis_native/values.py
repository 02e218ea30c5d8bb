# SPDX-License-Identifier: Apache-2.0
"""The C structures of jarvis_capture.h made into Python values: the way back of arguments.py.

Each function copies what it is given; nothing keeps a pointer into the core. Only for what is bounded in number: packets and
finished records stay in batches (packets.py, reader.py).
"""

from __future__ import annotations

import socket
from typing import Any

from jarvis_native import arguments
from jarvis_native.types import (
    BackendInfo,
    CaptureEvent,
    CaptureEventType,
    CaptureMetrics,
    ClockInfo,
    FlowStatistics,
    FlowStats,
    HeaderFields,
    InterfaceInfo,
    InterfaceState,
    Spread,
)

_LIST_FLOWS_BATCH_TAG = b"\x12"
"""ListFlowsResponse.batch: field 2, length-delimited."""

_UNKNOWN_NS = (1 << 64) - 1
_TIMESTAMP_SOURCE_NAMES = {number: name for name, number in arguments.TIMESTAMP_SOURCES.items()}
_INTERFACE_STATES: dict[int, InterfaceState] = {1: "up", 2: "down", 3: "gone"}
_PLAIN_STATS = tuple(name for name in CaptureMetrics.__dataclass_fields__ if name != "flows_ended")
_PLAIN_FLOW = tuple(name for name in FlowStats.__dataclass_fields__ if name not in ("src_addr", "dst_addr", "statistics"))
_PLAIN_STATISTICS = tuple(name for name, field in FlowStatistics.__dataclass_fields__.items() if field.type == "int")


def text(ffi: Any, value: Any) -> str:
    """A char array of the core's, UTF-8 or nearly."""
    return str(ffi.string(value).decode("utf-8", "replace"))


def metrics(stats: Any) -> CaptureMetrics:
    """Struct capture_stats."""
    return CaptureMetrics(flows_ended=tuple(stats.flows_ended), **{name: getattr(stats, name) for name in _PLAIN_STATS})


def event(ffi: Any, found: Any) -> CaptureEvent:
    """Struct capture_event."""
    return CaptureEvent(
        sequence=found.sequence,
        time_unix_ns=found.time_unix_ns,
        type=CaptureEventType(found.type),
        value=found.value,
        delta=found.delta,
        interface=text(ffi, found.interface),
        message=text(ffi, found.message),
    )


def clock(ffi: Any, info: Any) -> ClockInfo:
    """Struct capture_clock_info."""
    return ClockInfo(
        source=_TIMESTAMP_SOURCE_NAMES[info.source],
        synchronised=info.synchronised,
        offset_ns=info.offset_ns,
        error_bound_ns=None if info.error_bound_ns == _UNKNOWN_NS else info.error_bound_ns,
        steps=info.steps,
        detail=text(ffi, info.detail),
    )


def backend(ffi: Any, row: Any) -> BackendInfo:
    """Struct capture_backend_info."""
    return BackendInfo(
        name=text(ffi, row.name),
        description=text(ffi, row.description),
        usable=row.usable,
        reason=text(ffi, row.reason),
        live=row.live,
    )


def flow(ffi: Any, found: Any, statistics: Any) -> FlowStats:
    """Struct capture_flow, with its struct capture_flow_statistics or None."""
    family, length = (socket.AF_INET, 4) if found.ip_version == 4 else (socket.AF_INET6, 16)

    def address(field: Any) -> str:
        return socket.inet_ntop(family, bytes(ffi.buffer(field, length)))

    return FlowStats(
        src_addr=address(found.src_addr),
        dst_addr=address(found.dst_addr),
        statistics=None if statistics is None else _flow_statistics(ffi, statistics),
        **{name: getattr(found, name) for name in _PLAIN_FLOW},
    )


def _flow_statistics(ffi: Any, statistics: Any) -> FlowStatistics:
    def spread(value: Any) -> Spread:
        return Spread(min=value.min, max=value.max, mean=value.mean, stddev=value.stddev)

    def mac(field: Any) -> str:
        octets = bytes(ffi.buffer(field))
        return octets.hex(":") if any(octets) else ""

    def headers(fields: Any) -> HeaderFields:
        return HeaderFields(
            src_mac=mac(fields.src_mac),
            dst_mac=mac(fields.dst_mac),
            inner_vlan_id=fields.inner_vlan_id,
            min_ttl=fields.min_ttl,
            max_ttl=fields.max_ttl,
            flow_label=fields.flow_label,
        )

    return FlowStatistics(
        fwd_payload=spread(statistics.fwd_payload),
        rev_payload=spread(statistics.rev_payload),
        fwd_interval=spread(statistics.fwd_interval),
        rev_interval=spread(statistics.rev_interval),
        fwd_headers=headers(statistics.fwd_headers),
        rev_headers=headers(statistics.rev_headers),
        **{name: getattr(statistics, name) for name in _PLAIN_STATISTICS},
    )


def interface(ffi: Any, row: Any) -> InterfaceInfo:
    """Struct capture_interface_info."""
    return InterfaceInfo(
        name=text(ffi, row.name),
        backend=text(ffi, row.backend),
        detail=text(ffi, row.detail),
        interface_index=row.interface_index,
        state=_INTERFACE_STATES[row.state],
        received=row.received,
        dropped_nic=row.dropped_nic,
        dropped_kernel=row.dropped_kernel,
        error=text(ffi, row.error),
    )


def list_flows_response(batch: bytes) -> bytes:
    """The bytes of one jarvis.capture.v1.ListFlowsResponse around those of a FlowBatch."""
    return _LIST_FLOWS_BATCH_TAG + _varint(len(batch)) + batch


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
