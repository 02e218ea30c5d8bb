# SPDX-License-Identifier: Apache-2.0
"""Finished flow records, batch by batch: protobuf bytes, text lines or Arrow columns, written by the native core.

Every read says how many records were lost before it came to them, exactly once; nothing is dropped without a word. No object is
made per record. One thread at a time uses a reader; the lock here makes close safe from another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from jarvis_native.arguments import STATISTICS, choices
from jarvis_native.errors import CaptureStateError, InvalidArgument, check

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_BATCH_RECORDS = 1000
DEFAULT_BATCH_BYTES = 262_144
MIN_BATCH_BYTES = 4096
DEFAULT_TEXT_BYTES = 1 << 20
DEFAULT_ARROW_RECORDS = 65_536

TextFormat = Literal["json", "csv"]
_TEXT_FORMATS = {"json": 1, "csv": 2}
_Data = TypeVar("_Data")

# Column of the Arrow batch -> (pyarrow type, bytes an item). The names are capture_flow_columns' fields.
_ARROW_COLUMNS: dict[str, tuple[str, int]] = {
    "flow_id": ("uint64", 8),
    "src_addr": ("address", 16),
    "dst_addr": ("address", 16),
    "src_port": ("uint16", 2),
    "dst_port": ("uint16", 2),
    "ip_version": ("uint8", 1),
    "ip_protocol": ("uint8", 1),
    "vlan_id": ("uint16", 2),
    "fwd_packets": ("uint64", 8),
    "fwd_octets": ("uint64", 8),
    "rev_packets": ("uint64", 8),
    "rev_octets": ("uint64", 8),
    "start_time_ns": ("time", 8),
    "end_time_ns": ("time", 8),
    "first_packet_id": ("uint64", 8),
    "last_packet_id": ("uint64", 8),
    "fwd_tcp_flags": ("uint16", 2),
    "rev_tcp_flags": ("uint16", 2),
    "interface_index": ("uint16", 2),
    "icmp_type": ("uint8", 1),
    "icmp_code": ("uint8", 1),
    "dscp": ("uint8", 1),
    "state": ("uint8", 1),
    "end_reason": ("uint8", 1),
    "tunnel_id": ("uint32", 4),
    "tunnel_type": ("uint8", 1),
    "second_interface_index": ("uint16", 2),
    "sampling_interval": ("uint32", 4),
}

# Those of each kind of statistics, behind, where the capture keeps it.
_TCP_COLUMNS = dict.fromkeys(
    (f"{way}_{name}" for name in ("retransmissions", "out_of_order", "zero_windows") for way in ("fwd", "rev")), ("uint32", 4)
) | dict.fromkeys(("syn_to_synack_ns", "synack_to_ack_ns"), ("uint64", 8))
_SPREAD_COLUMNS = {"min": ("uint64", 8), "max": ("uint64", 8), "mean": ("double", 8), "stddev": ("double", 8)}
_STATISTICS_COLUMNS: dict[str, dict[str, tuple[str, int]]] = {
    "tcp": _TCP_COLUMNS,
    "sizes": {f"{way}_payload_{part}": kind for way in ("fwd", "rev") for part, kind in _SPREAD_COLUMNS.items()},
    "intervals": {f"{way}_interval_{part}_ns": kind for way in ("fwd", "rev") for part, kind in _SPREAD_COLUMNS.items()},
    "headers": {
        **dict.fromkeys((f"{way}_{end}_mac" for way in ("fwd", "rev") for end in ("src", "dst")), ("mac", 6)),
        **dict.fromkeys((f"{way}_inner_vlan_id" for way in ("fwd", "rev")), ("uint16", 2)),
        **dict.fromkeys((f"{way}_{part}_ttl" for way in ("fwd", "rev") for part in ("min", "max")), ("uint8", 1)),
        **dict.fromkeys((f"{way}_flow_label" for way in ("fwd", "rev")), ("uint32", 4)),
    },
}


def _arrow_columns(kinds: int) -> dict[str, tuple[str, int]]:
    columns = dict(_ARROW_COLUMNS)
    for name, kind in STATISTICS.items():
        if kinds & kind:
            columns |= _STATISTICS_COLUMNS[name]
    return columns


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowBatch(Generic[_Data]):
    """What one read returned. A gap (lost > 0) lies before the records in `data`."""

    data: _Data
    records: int
    """Records in `data`."""
    shard: int
    """Worker whose log they came from."""
    first_sequence: int
    """Of the first record looked at in that shard."""
    next_sequence: int
    """The shard's next one."""
    lost: int
    """Records overwritten before this reader came to them."""
    first_lost_sequence: int
    last_lost_sequence: int
    more: bool
    """More records are ready now."""
    end: bool
    """The capture has stopped and every record was read."""


FlowBatchBytes = FlowBatch[bytes]
"""`data` is bytes: one StreamFlowsResponse (empty when there is no record), or text lines."""


def arrow_schema(statistics: Sequence[str] = ()) -> pa.Schema:
    """Schema of `FlowReader.read_arrow`: unsigned ids, ports and counters; times in ns UTC; addresses as 16 bytes.

    IPv4 addresses are written ::ffff:a.b.c.d; `ip_version` tells. MAC addresses are 6 bytes, all 0 where there is none. Needs
    pyarrow.

    Args:
        statistics: those that the capture keeps, "tcp", "sizes", "intervals", "headers": each adds its columns.
    """
    return _schema(_arrow_columns(choices("statistics", statistics, STATISTICS)))


def _schema(columns: dict[str, tuple[str, int]]) -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - optional dependency, imported where it is used

    types = {
        "uint8": pa.uint8(),
        "uint16": pa.uint16(),
        "uint32": pa.uint32(),
        "uint64": pa.uint64(),
        "double": pa.float64(),
        "address": pa.binary(16),
        "mac": pa.binary(6),
        "time": pa.timestamp("ns", tz="UTC"),
    }
    return pa.schema([pa.field(name, types[kind], nullable=False) for name, (kind, _) in columns.items()])


class FlowReader:
    """A subscriber's place in the record logs. Made by PacketCaptureEngine.open_flow_reader; also a context manager."""

    def __init__(self, ffi: Any, lib: Any, capture: Any, handle: Any, *, statistics: int) -> None:
        self._ffi = ffi
        self._lib = lib
        self._lock = threading.Lock()
        self._statistics = statistics  # kinds that the capture keeps, or'ed as in the core
        # The destructor holds the capture, so that a capture is never destroyed before its readers.
        self._reader: Any = ffi.gc(handle, lambda raw, _capture=capture: lib.capture_reader_close(raw))
        self._info = ffi.new("struct capture_batch_info *")
        self._buffer: Any = None
        self._capacity = 0

    def read_batch(self, max_records: int = DEFAULT_BATCH_RECORDS, max_bytes: int = DEFAULT_BATCH_BYTES) -> FlowBatch[bytes]:
        """Next records as the bytes of one jarvis.capture.v1.StreamFlowsResponse. Never waits.

        Args:
            max_records: 1 and up.
            max_bytes: size of the message at most, 4,096 bytes and up.
        """
        _require("max_records", max_records, 1, 0xFFFF_FFFF)
        _require("max_bytes", max_bytes, MIN_BATCH_BYTES, 1 << 30)
        with self._lock:
            reader = self._open_reader()
            code = self._lib.capture_reader_read_batch(reader, self._room(max_bytes), max_bytes, max_records, self._info)
            check(self._ffi, self._lib, code)
            return self._result(bytes(self._ffi.buffer(self._buffer, self._info.bytes)))

    def read_text(self, form: TextFormat, max_bytes: int = DEFAULT_TEXT_BYTES) -> FlowBatch[bytes]:
        """Next records as JSON or CSV lines in UTF-8 (without CSV's header line, see `csv_header`). Never waits."""
        if form not in _TEXT_FORMATS:
            raise InvalidArgument(f"form is {form!r}: accepted are json and csv", field="form")
        _require("max_bytes", max_bytes, MIN_BATCH_BYTES, 1 << 30)
        with self._lock:
            reader = self._open_reader()
            room = self._ffi.cast("char *", self._room(max_bytes))
            code = self._lib.capture_reader_read_text(reader, _TEXT_FORMATS[form], room, max_bytes, self._info)
            check(self._ffi, self._lib, code)
            return self._result(bytes(self._ffi.buffer(self._buffer, self._info.bytes)))

    def read_arrow(self, max_records: int = DEFAULT_ARROW_RECORDS) -> FlowBatch[pa.RecordBatch]:
        """Next records as a pyarrow.RecordBatch of `arrow_schema`, its columns filled in place. Never waits. Needs pyarrow."""
        import pyarrow as pa  # noqa: PLC0415 - optional dependency, imported where it is used

        _require("max_records", max_records, 1, 1 << 24)
        wanted = _arrow_columns(self._statistics)
        schema = _schema(wanted)
        columns = self._ffi.new("struct capture_flow_columns *")
        buffers = [pa.allocate_buffer(max_records * width) for _, width in wanted.values()]
        for name, buffer in zip(wanted, buffers, strict=True):
            setattr(columns, name, self._ffi.cast(self._ffi.typeof(getattr(columns, name)), buffer.address))
        with self._lock:
            check(
                self._ffi,
                self._lib,
                self._lib.capture_reader_read_columns(self._open_reader(), columns, max_records, self._info),
            )
            count = int(self._info.records)
            arrays = [
                pa.Array.from_buffers(field.type, count, [None, buffer]) for field, buffer in zip(schema, buffers, strict=True)
            ]
            return self._result(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def csv_header(self) -> bytes:
        """The CSV header line, newline included: with the columns of the statistics that the capture keeps."""
        return bytes(self._ffi.string(self._lib.capture_csv_header(self._statistics)))

    def close(self) -> None:
        """Gives the place up. Waits for a read that is under way; may be called again."""
        with self._lock:
            if self._reader is not None:
                self._ffi.release(self._reader)
                self._reader = None

    def __enter__(self) -> FlowReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def borrow(self, call: Callable[[Any], int]) -> int:
        """Calls `call` with the core's reader while nobody else reads or closes; for exporters. Returns what it returns."""
        with self._lock:
            return call(self._open_reader())

    def _open_reader(self) -> Any:
        if self._reader is None:
            raise CaptureStateError("the reader is closed", field="reader")
        return self._reader

    def _room(self, size: int) -> Any:
        """The reader's own buffer, grown to `size` bytes."""
        if size > self._capacity:
            self._buffer = self._ffi.new("uint8_t[]", size)
            self._capacity = size
        return self._buffer

    def _result(self, data: _Data) -> FlowBatch[_Data]:
        return flow_batch(self._info, data)


def flow_batch(info: Any, data: _Data) -> FlowBatch[_Data]:
    """What a read returned, of its struct capture_batch_info."""
    return FlowBatch(
        data=data,
        records=info.records,
        shard=info.shard,
        first_sequence=info.first_sequence,
        next_sequence=info.next_sequence,
        lost=info.lost,
        first_lost_sequence=info.first_lost_sequence,
        last_lost_sequence=info.last_lost_sequence,
        more=info.more,
        end=info.end,
    )


def _require(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgument(f"{name} is {value}: accepted are {low:,} to {high:,}", field=name)
