# SPDX-License-Identifier: Apache-2.0
"""Flow records as messages of NetFlow v5, v9 and IPFIX, and sampled frames as sFlow: the native core's exporters, block by block.

    FlowReader ──FlowExporter.read──► ExportBlock ──(may wait)──► ExportSession.stamp ──► send_block, or one write of its bytes

A block holds whole messages without sequence number and export time; a session with a collector gives them when the block leaves.
No object is made per record or per message. An exporter and a session are used by one thread at a time; different ones, and
`send_block`, by any.
"""

from __future__ import annotations

import contextlib
import operator
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

from jarvis_native.arguments import SAMPLINGS, STATISTICS, choice, choices, unsigned
from jarvis_native.errors import CaptureStateError, InvalidArgument, check
from jarvis_native.loader import Firmware
from jarvis_native.reader import FlowBatch, FlowReader, flow_batch

ExportProtocol = Literal["netflow5", "netflow9", "ipfix", "sflow"]
ExportProfile = Literal["minimal", "default", "full"]
TimeUnit = Literal["ms", "us", "ns"]

PROTOCOLS: dict[ExportProtocol, int] = {"netflow5": 1, "netflow9": 2, "ipfix": 3, "sflow": 4}
PROFILES: dict[ExportProfile, int] = {"minimal": 1, "default": 2, "full": 3}
TIME_UNITS: dict[TimeUnit, int] = {"ms": 1, "us": 2, "ns": 3}

MESSAGE_BYTES = 48
"""Size of one struct capture_export_message, an entry of ExportBlock.index."""
MIN_BLOCK_BYTES = 65_535
DEFAULT_BLOCK_BYTES = 262_144
OPTIONS_BLOCK_BYTES = 1 << 20

# Where the fields of struct capture_export_message are, in items of their width.
_INDEX_32 = {"records": 2, "flows": 3}
_INDEX_64 = {"packets": 2, "octets": 3}
_SHORTEST_MESSAGE = 64  # bytes, about: what the index of a block must have room for
_NAME_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportBlock:
    """Messages on their way to a collector."""

    data: bytearray
    """The messages, one behind the other; stamping writes into it."""
    index: bytes
    """One struct capture_export_message a message."""
    messages: int
    records: int
    """Data records, those of options too."""
    flows: int
    """Flow records, or flow samples, among them."""
    packets: int
    """That these count."""
    octets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTotals:
    """What an exporter has done since it was made."""

    flows_read: int
    """Flows taken from readers that are this exporter's share."""
    records: int
    """Flow records (or samples) written."""
    packets: int
    """That those count."""
    octets: int
    messages: int
    """With flow records or samples."""
    unexportable_flows: int
    """That the protocol cannot say: of NetFlow v5, IPv6."""
    unexportable_packets: int
    unexportable_octets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStatistics:
    """What options records say of metering and exporting (RFC 7011, 4.1 to 4.3); totals since the process began."""

    observed_packets: int = 0
    """Offered to metering."""
    dropped_packets: int = 0
    """Lost before metering."""
    ignored_packets: int = 0
    """Offered and not metered: no IP, malformed."""
    ignored_octets: int = 0
    exported_messages: int = 0
    """To this collector."""
    exported_flows: int = 0
    exported_octets: int = 0
    """Of messages, bytes."""
    not_sent_flows: int = 0
    """Lost on the way to this collector."""
    not_sent_packets: int = 0
    not_sent_octets: int = 0
    first_not_sent_ns: int = 0
    """Unix ns, 0: none was lost."""
    last_not_sent_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInterface:
    """An interface as options records name it."""

    index: int
    """As in flow records: the kernel's ifindex, or the number that a file gives."""
    name: str
    """At most 255 bytes of UTF-8 are kept."""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceCounters:
    """Counters of an interface as the kernel has them (sFlow version 5, if_counters); 32-bit ones are taken modulo 2^32."""

    index: int
    type: int = 6
    """IANA ifType, 6 = Ethernet."""
    speed: int = 0
    """Bits per second, 0 = unknown."""
    direction: int = 0
    """0 unknown, 1 full duplex, 2 half duplex, 3 in, 4 out."""
    status: int = 0
    """Bit 0: ifAdminStatus up, bit 1: ifOperStatus up."""
    in_octets: int = 0
    in_unicast: int = 0
    in_multicast: int = 0
    in_broadcast: int = 0
    in_discards: int = 0
    in_errors: int = 0
    in_unknown_protocols: int = 0
    out_octets: int = 0
    out_unicast: int = 0
    out_multicast: int = 0
    out_broadcast: int = 0
    out_discards: int = 0
    out_errors: int = 0
    promiscuous: int = 0


class SampledFrames(Protocol):
    """What of a frame sampler an exporter needs."""

    def borrow(self, call: Callable[[Any], int]) -> int:
        """Calls `call` with the core's sampler while nobody else reads or closes; returns what it returns."""


class RouteTable(Protocol):
    """What of the routes an exporter needs."""

    @property
    def handle(self) -> Any:
        """The core's routes, which the exporter keeps alive."""


class FlowExporter:
    """Records of readers as messages for one collector; also a context manager.

    Args:
        firmware: from `load_firmware`.
        protocol: "netflow5" (IPv4 only), "netflow9", "ipfix" or "sflow".
        profile: which information elements a record has, see docs/export.md.
        time_unit: of NetFlow v9's and IPFIX's times.
        biflow: IPFIX: one record a flow (RFC 5103), else a record a direction.
        observation_domain_id: IPFIX; v9: source id; v5: engine type and id, its low 16 bits; sFlow: sub-agent id.
        message_max: bytes a message, 512..65,535; 0 = 1,400.
        statistics: kinds that the capture keeps; profile "full" exports them.
        sampling: of the capture, "none", "systematic" or "flow-hash"; for options and v5's header.
        sampling_interval: N of 1 in N; sFlow: of the sampler.
        merge_interfaces: as the capture's; else options tell that ingressInterface is one of the flow keys.
        system_init_ns: Unix time that sysUptime counts from.
        share: takes the flows whose id modulo share_count is this: balanced over collectors.
        share_count: 1 = all flows.
        routes: next hops, prefix lengths and AS numbers for profile "full".
        agent_ipv6: sFlow: datagrams have room for an IPv6 agent address, else for an IPv4 one.

    Raises:
        InvalidArgument: names the field, the value and what would be accepted.
    """

    def __init__(
        self,
        *,
        firmware: Firmware,
        protocol: ExportProtocol,
        profile: ExportProfile = "default",
        time_unit: TimeUnit = "ms",
        biflow: bool = False,
        observation_domain_id: int = 0,
        message_max: int = 0,
        statistics: Sequence[str] = (),
        sampling: str = "none",
        sampling_interval: int = 0,
        merge_interfaces: bool = False,
        system_init_ns: int,
        share: int = 0,
        share_count: int = 1,
        routes: RouteTable | None = None,
        agent_ipv6: bool = False,
    ) -> None:
        self._ffi, self._lib = ffi, lib = firmware.ffi, firmware.lib
        config = ffi.new("struct capture_export_config *")
        config.struct_size = ffi.sizeof("struct capture_export_config")
        config.protocol = choice("protocol", protocol, PROTOCOLS)
        config.profile = choice("profile", profile, PROFILES)
        config.time_unit = choice("time_unit", time_unit, TIME_UNITS)
        config.biflow = bool(biflow)
        config.observation_domain_id = unsigned("observation_domain_id", observation_domain_id)
        config.message_max = unsigned("message_max", message_max)
        config.statistics = choices("statistics", statistics, STATISTICS)
        config.sampling = choice("sampling", sampling, SAMPLINGS)
        config.sampling_interval = unsigned("sampling_interval", sampling_interval)
        config.merge_interfaces = bool(merge_interfaces)
        config.system_init_ns = unsigned("system_init_ns", system_init_ns, 64)
        config.share = unsigned("share", share)
        config.share_count = unsigned("share_count", share_count)
        config.routes = ffi.NULL if routes is None else routes.handle
        config.agent_address_length = 16 if agent_ipv6 else 4
        out, error = ffi.new("capture_exporter_t **"), ffi.new("struct capture_error_info *")
        check(ffi, lib, lib.capture_exporter_create(config, out, error), error)
        self._exporter: Any = ffi.gc(out[0], lib.capture_exporter_destroy)
        self._info = ffi.new("struct capture_batch_info *")
        self._out: Any = None
        self._index: Any = None
        self._capacity = 0

    def read(self, reader: FlowReader, *, flush: bool = False, max_bytes: int = DEFAULT_BLOCK_BYTES) -> FlowBatch[ExportBlock]:
        """Next records of a reader as messages. Never waits.

        A message that is not full stays in the exporter until more records fill it, or until `flush`. The batch's `records` are
        flows taken from the reader, which may be more or fewer than the block's.

        Args:
            reader: of a capture.
            flush: give out the message that is not full too, once no more records are ready.
            max_bytes: of messages, 65,535 bytes and up.

        Raises:
            LeaseOver: the capture is bound to an authority whose lease has ended; nothing is taken.
        """
        self._make_room(max_bytes)

        def read(handle: Any) -> int:
            return int(
                self._lib.capture_exporter_read(
                    self._open(), handle, self._out, max_bytes, self._index, self._slots(max_bytes), flush, self._info
                )
            )

        return self._batch(reader.borrow(read))

    def read_samples(
        self, sampler: SampledFrames, *, flush: bool = False, max_bytes: int = DEFAULT_BLOCK_BYTES
    ) -> FlowBatch[ExportBlock]:
        """Next sampled frames as sFlow datagrams, as `read`; the batch's `records` are samples, `lost` those overwritten."""
        self._make_room(max_bytes)

        def read(handle: Any) -> int:
            return int(
                self._lib.capture_exporter_read_samples(
                    self._open(), handle, self._out, max_bytes, self._index, self._slots(max_bytes), flush, self._info
                )
            )

        return self._batch(sampler.borrow(read))

    def templates(self) -> ExportBlock:
        """Templates and options templates: before a session's first record, and again as transports demand. v5, sFlow: none."""
        return self._written(
            lambda out, room, index, slots: self._lib.capture_exporter_templates(self._open(), out, room, index, slots)
        )

    def options(self, statistics: ExportStatistics, interfaces: Sequence[ExportInterface]) -> ExportBlock:
        """Options records: statistics, sampling, flow keys, names of interfaces. v5, sFlow: none."""
        told = self._ffi.new("struct capture_export_statistics *", _values(statistics, 64))
        named = self._ffi.new("struct capture_export_interface[]", len(interfaces))
        for entry, interface in zip(named, interfaces, strict=True):
            entry.index = unsigned("index", interface.index)
            entry.name = _cut(interface.name)
            entry.description = _cut(interface.description)
        return self._written(
            lambda out, room, index, slots: self._lib.capture_exporter_options(
                self._open(), told, named, len(interfaces), out, room, index, slots
            )
        )

    def counters(self, counters: Sequence[InterfaceCounters]) -> ExportBlock:
        """SFlow counters samples, one an interface."""
        given = self._ffi.new("struct capture_interface_counters[]", len(counters))
        for entry, interface in zip(given, counters, strict=True):
            for field in fields(interface):
                bits = 64 if field.name in {"speed", "in_octets", "out_octets"} else 32
                setattr(entry, field.name, getattr(interface, field.name) & ((1 << bits) - 1))
        return self._written(
            lambda out, room, index, slots: self._lib.capture_exporter_counters(
                self._open(), given, len(counters), out, room, index, slots
            )
        )

    def totals(self) -> ExportTotals:
        """Counters now."""
        totals = self._ffi.new("struct capture_export_totals *")
        check(self._ffi, self._lib, self._lib.capture_exporter_get_totals(self._open(), totals))
        return ExportTotals(**{field.name: int(getattr(totals, field.name)) for field in fields(ExportTotals)})

    def close(self) -> None:
        """Frees it, with what was not flushed; may be called again."""
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            self._ffi.release(exporter)

    def __enter__(self) -> FlowExporter:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _open(self) -> Any:
        if self._exporter is None:
            raise CaptureStateError("the exporter is closed", field="exporter")
        return self._exporter

    @staticmethod
    def _slots(size: int) -> int:
        return size // _SHORTEST_MESSAGE

    def _make_room(self, size: int) -> None:
        """The exporter's own buffers, grown to messages of `size` bytes."""
        if not MIN_BLOCK_BYTES <= size <= 1 << 30:
            raise InvalidArgument(f"max_bytes is {size}: accepted are {MIN_BLOCK_BYTES:,} to {1 << 30:,}", field="max_bytes")
        if size > self._capacity:
            self._out = self._ffi.new("uint8_t[]", size)
            self._index = self._ffi.new("struct capture_export_message[]", self._slots(size))
            self._capacity = size

    def _written(self, write: Callable[[Any, int, Any, int], int]) -> ExportBlock:
        self._make_room(OPTIONS_BLOCK_BYTES)
        count = write(self._out, OPTIONS_BLOCK_BYTES, self._index, self._slots(OPTIONS_BLOCK_BYTES))
        return self._block(check(self._ffi, self._lib, count))

    def _batch(self, count: int) -> FlowBatch[ExportBlock]:
        return flow_batch(self._info, self._block(check(self._ffi, self._lib, count)))

    def _block(self, count: int) -> ExportBlock:
        """A copy of the `count` messages in the buffers."""
        length = 0 if count == 0 else self._index[count - 1].offset + self._index[count - 1].length
        return export_block(
            bytearray(self._ffi.buffer(self._out, length)), bytes(self._ffi.buffer(self._index, count * MESSAGE_BYTES))
        )


def export_block(data: bytearray, index: bytes) -> ExportBlock:
    """A block of these messages, its sums reckoned from the index; for those that have been on disk, too.

    Raises:
        InvalidArgument: the index is not one of messages in `data`.
    """
    count, rest = divmod(len(index), MESSAGE_BYTES)
    whole = memoryview(index)[: count * MESSAGE_BYTES]
    words, quads = whole.cast("I"), whole.cast("Q")
    ends = map(operator.add, words[0::12].tolist(), words[1::12].tolist())
    if rest or any(end > len(data) for end in ends):
        raise InvalidArgument(
            f"index has {len(index)} bytes and names messages outside of {len(data)} bytes of data", field="index"
        )
    return ExportBlock(
        data=data,
        index=index,
        messages=count,
        **{name: sum(words[at::12].tolist()) for name, at in _INDEX_32.items()},
        **{name: sum(quads[at::6].tolist()) for name, at in _INDEX_64.items()},
    )


class ExportSession:
    """A session with one collector: gives messages their sequence numbers and export times as they leave.

    Args:
        firmware: from `load_firmware`.
        protocol: of the messages.
        system_init_ns: as the exporter's.
        trace_time: NetFlow v5: the export time is the newest flow's end instead of now, for captures from files.
        agent_address: sFlow: of the host, IPv4 or IPv6 without brackets.
    """

    def __init__(
        self,
        *,
        firmware: Firmware,
        protocol: ExportProtocol,
        system_init_ns: int,
        trace_time: bool = False,
        agent_address: str = "",
    ) -> None:
        self._ffi, self._lib = firmware.ffi, firmware.lib
        self._session = self._ffi.new("struct capture_export_session *")
        self._session.struct_size = self._ffi.sizeof("struct capture_export_session")
        self._session.protocol = choice("protocol", protocol, PROTOCOLS)
        self._session.system_init_ns = unsigned("system_init_ns", system_init_ns, 64)
        self._session.trace_time = bool(trace_time)
        if agent_address:
            packed = _address(agent_address)
            self._ffi.memmove(self._session.agent_address, packed, len(packed))
            self._session.agent_address_length = len(packed)

    @property
    def sequence(self) -> int:
        """Of the next message, by the protocol's own rule; 0 in a new session."""
        return int(self._session.sequence)

    @sequence.setter
    def sequence(self, value: int) -> None:
        self._session.sequence = unsigned("sequence", value)

    def stamp(self, block: ExportBlock, now_ns: int) -> None:
        """Writes sequence and export time into messages that leave now, in their order.

        Args:
            block: its `data` is written into.
            now_ns: Unix ns.
        """
        data, index = self._ffi.from_buffer("uint8_t[]", block.data, require_writable=True), _index(self._ffi, block)
        now = unsigned("now_ns", now_ns, 64)
        check(self._ffi, self._lib, self._lib.capture_export_stamp(self._session, now, data, index, block.messages))

    def skip(self, block: ExportBlock) -> None:
        """Counts messages that will never leave, so that the collector sees the gap."""
        index = _index(self._ffi, block)
        check(self._ffi, self._lib, self._lib.capture_export_skip(self._session, index, block.messages))


def send_block(firmware: Firmware, descriptor: int, block: ExportBlock, first: int) -> int:
    """Sends a block's messages from number `first` (of 0) on over a connected datagram socket, one datagram each.

    Returns:
        How many left: fewer than there are when the socket would block, or when a later one met an error, which the next call
        then meets.

    Raises:
        OSError: message `first` met it; none has left. ECONNREFUSED and other errors of earlier datagrams come so too, once each.
    """
    if not 0 <= first <= block.messages:
        raise InvalidArgument(f"first is {first}: accepted are 0 to {block.messages}", field="first")
    ffi, lib = firmware.ffi, firmware.lib
    error = ffi.new("int32_t *")
    data, index = ffi.from_buffer("uint8_t[]", block.data), _index(ffi, block)
    sent = int(lib.capture_export_send(descriptor, data, index + first, block.messages - first, error))
    if sent < 0 and error[0]:
        raise OSError(error[0], os.strerror(error[0]))
    return check(ffi, lib, sent)


def _index(ffi: Any, block: ExportBlock) -> Any:
    """The index as C has it; alive as long as what is returned."""
    if len(block.index) != block.messages * MESSAGE_BYTES:
        raise InvalidArgument(f"index has {len(block.index)} bytes: accepted are {MESSAGE_BYTES} a message", field="index")
    return ffi.from_buffer("struct capture_export_message[]", block.index)


def _values(of: ExportStatistics, bits: int) -> dict[str, int]:
    return {field.name: unsigned(field.name, getattr(of, field.name), bits) for field in fields(of)}


def _cut(text: str) -> bytes:
    """UTF-8 of at most what C has room for, no character cut in two."""
    return text.encode()[:_NAME_BYTES].decode(errors="ignore").encode()


def _address(text: str) -> bytes:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            return socket.inet_pton(family, text)
    raise InvalidArgument(f"agent_address is {text!r}: accepted is an IPv4 or IPv6 address", field="agent_address")
