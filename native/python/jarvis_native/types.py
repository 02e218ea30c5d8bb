# SPDX-License-Identifier: Apache-2.0
"""The façade's value types: frozen dataclasses with units, made only where their number is bounded.

Packets and finished flow records are not among them on the hot paths: those stay in batches (packets.py, reader.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

InterfaceState = Literal["up", "down", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketInfo:
    """One frame of a PacketBatch, made on demand by `PacketBatch.info`."""

    packet_id: int
    """Number of the frame within its worker, of files within the trace, from 1; flow records' packet ids count the same way."""
    timestamp_ns: int
    """Nanoseconds since the Unix epoch."""
    captured_length: int
    """Bytes that were kept."""
    wire_length: int
    """Bytes on the wire."""
    interface_index: int
    """Live: the kernel's ifindex; pcapng: the interface's number + 1; other files: 1."""
    link_type: int
    """pcap LINKTYPE_* number of the frame's first header."""
    vlan_tci: int
    """802.1Q tag control information that the kernel took off the frame; 0 = none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of several values; all 0 where there was none. The standard deviation is that of the population."""

    min: int
    max: int
    mean: float
    stddev: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFields:
    """Of one direction's packets; MAC addresses, VLAN and label are the first packet's. Empty and 0 where there was none."""

    src_mac: str
    """As aa:bb:cc:dd:ee:ff; empty where the link layer has none."""
    dst_mac: str
    inner_vlan_id: int
    """Of the tag behind the outermost one; 0 = none."""
    min_ttl: int
    """Least IPv4 TTL or IPv6 hop limit."""
    max_ttl: int
    flow_label: int
    """IPv6, 20 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStatistics:
    """The optional statistics of one flow (docs/flow-semantics.md); those that the capture does not keep are 0."""

    fwd_retransmissions: int
    rev_retransmissions: int
    fwd_out_of_order: int
    rev_out_of_order: int
    fwd_zero_windows: int
    rev_zero_windows: int
    syn_to_synack_ns: int
    """The responder's side of the round trip, nanoseconds; 0 = not seen."""
    synack_to_ack_ns: int
    """The initiator's side, nanoseconds; 0 = not seen."""
    fwd_payload: Spread
    """Transport payload, bytes a packet."""
    rev_payload: Spread
    fwd_interval: Spread
    """Between packets of that direction, nanoseconds."""
    rev_interval: Spread
    fwd_headers: HeaderFields
    rev_headers: HeaderFields


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStats:
    """One flow. Source is the sender of its first packet ("forward")."""

    flow_id: int
    """FNV-1a 64 of the canonical key, unsigned."""
    src_addr: str
    dst_addr: str
    src_port: int
    """0 but for TCP, UDP and SCTP."""
    dst_port: int
    ip_version: int
    """4 or 6."""
    ip_protocol: int
    """IANA protocol number."""
    vlan_id: int
    """Outermost 802.1Q id; 0 = untagged."""
    fwd_packets: int
    fwd_octets: int
    """Sum of IP total lengths, bytes."""
    rev_packets: int
    rev_octets: int
    """Sum of IP total lengths, bytes."""
    start_time_ns: int
    """Time of the first packet, nanoseconds since the Unix epoch."""
    end_time_ns: int
    """Time of the last packet, nanoseconds since the Unix epoch."""
    first_packet_id: int
    last_packet_id: int
    fwd_tcp_flags: int
    """Union of the flags of all packets that way (IE 6)."""
    rev_tcp_flags: int
    interface_index: int
    icmp_type: int
    """Of the first packet; ICMP and ICMPv6 only."""
    icmp_code: int
    dscp: int
    """Of the first packet, 0..63."""
    state: int
    """1 active, 2 closing (one FIN), 3 closed."""
    end_reason: int
    """IANA flowEndReason: 0 still in the table, 1 idle, 2 active timeout, 3 end detected, 4 forced, 5 lack of resources."""
    tunnel_id: int
    """Inner flows: VNI, GRE key, TEID, ... of the tunnel right around it; 0 where it has none, and for all other flows."""
    tunnel_type: int
    """0 none, 1 GRE, 2 ERSPAN, 3 VXLAN, 4 GENEVE, 5 GTP-U, 6 IP in IP, 7 Teredo, 8 L2TPv2, 9 L2TPv3."""
    second_interface_index: int
    """merge_interfaces: another interface that saw the flow, the first such; else 0."""
    sampling_interval: int
    """N of the 1-in-N sampling in force; 0 = every packet counted."""
    statistics: FlowStatistics | None = None
    """None where the capture keeps none."""

    @property
    def packets(self) -> int:
        """Packets in both directions."""
        return self.fwd_packets + self.rev_packets

    @property
    def octets(self) -> int:
        """IP total lengths in both directions, bytes."""
        return self.fwd_octets + self.rev_octets

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last packet."""
        return (self.end_time_ns - self.start_time_ns) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureMetrics:
    """Counters of one capture over its workers; monotonic while it runs but for the gauges.

    received = metered + filtered + unsampled + non_ip + malformed + paused + dropped_nic + dropped_kernel + dropped_user +
    in_flight.
    """

    time_unix_ns: int
    """When the snapshot was taken, nanoseconds since the Unix epoch."""
    elapsed_ns: int
    """Since start, monotonic clock, nanoseconds."""
    received: int
    """Frames offered to the capture, lost ones included."""
    received_octets: int
    """Their bytes on the wire."""
    metered: int
    """IP packets counted in a flow; with tunnel = "both" each once, though in two flows."""
    metered_octets: int
    """Their IP total lengths, bytes; with tunnel = "both" the outer ones."""
    filtered: int
    """Not matched by the BPF filter."""
    unsampled: int
    """IP packets that sampling left out."""
    non_ip: int
    malformed: int
    """Header truncated or inconsistent before a flow key could be read."""
    paused: int
    """Arrived while the lease deadline had passed."""
    dropped_nic: int
    dropped_kernel: int
    dropped_user: int
    in_flight: int
    """Gauge: received, not yet processed."""
    truncated: int
    """Frames longer than snaplen, cut; they are metered."""
    fragments_matched: int
    """Non-first fragments given the ports of their first one."""
    fragments_unmatched: int
    """Non-first fragments with no first one known; metered with ports 0."""
    time_regressions: int
    """Packets older than their flow's last one."""
    packet_ring_dropped: int
    """Frames metered but not delivered as packets: the packet ring was full."""
    flows_active: int
    """Gauge."""
    flows_total: int
    """Flow records created."""
    flows_ended: tuple[int, int, int, int, int, int]
    """Records ended, by flowEndReason 1..5; [0] is unused, [5] = evicted because the table was full."""
    log_records_written: int
    """Records written to the record logs."""
    throughput_bps: float
    """Gauge: bits per second on the wire."""
    throughput_pps: float
    """Gauge: packets per second."""
    ring_usage: float
    """Gauge: share of the kernel or packet ring in use, 0..1, the fullest worker's."""
    flow_table_bytes: int
    """Memory of tables and logs, bytes."""
    tunnelled: int
    """Packets counted in an inner flow: with tunnel = "inner" part of metered, with "both" besides."""
    tunnelled_octets: int
    """Their inner IP total lengths, bytes: likewise part of metered_octets, or besides."""
    clock_steps: int
    """Steps of the clock behind the timestamps, and of the system's; 0 for files."""
    statistics_bytes: int
    """Part of flow_table_bytes that the optional statistics take."""

    @property
    def dropped(self) -> int:
        """Frames lost by the card, the kernel or the core together."""
        return self.dropped_nic + self.dropped_kernel + self.dropped_user

    @property
    def flow_records_ended(self) -> int:
        """Flow records that have left the table, whatever the reason."""
        return sum(self.flows_ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """One capture backend of this build."""

    name: str
    description: str
    usable: bool
    reason: str
    """Why it is not usable here, or how it would be chosen."""
    live: bool
    """Captures from interfaces; else from files."""


class CaptureEventType(IntEnum):
    """What happened to a capture; numbers of `enum capture_event_type`."""

    LOSS = 1
    """value: frames lost since the last such event, over all places."""
    CLOCK_STEP = 2
    """delta: how far the clock stepped, nanoseconds."""
    CLOCK_SYNC = 3
    """value 1: the clock is synchronised again, 0: no longer."""
    INTERFACE = 4
    """value: 1 up, 2 down, 3 gone; `interface` says which."""
    INTERFACE_ADDED = 5
    INTERFACE_REMOVED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureEvent:
    """Something that happened to a capture, worth telling an operator. The newest 256 are kept."""

    sequence: int
    """From 1, without gaps: what is missing between two was overwritten before it was read."""
    time_unix_ns: int
    """System clock when it was noticed, nanoseconds since the Unix epoch."""
    type: CaptureEventType
    value: int
    delta: int
    interface: str
    """Or empty."""
    message: str
    """One sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockInfo:
    """The clock behind a live capture's timestamps, looked at no more than a second ago."""

    source: str
    """One of "kernel", "hardware", "ptp" or "ntp"; "default" for files, which carry their own times."""
    synchronised: bool
    """ntp: adjtimex says so; others: False, there is nothing to be synchronised or it cannot be known."""
    offset_ns: int
    """That clock minus the system's (CLOCK_REALTIME), nanoseconds; ntp: adjtimex's estimate of the system clock's error."""
    error_bound_ns: int | None
    """Of offset_ns or, for ntp, of the clock (maxerror), nanoseconds; None = unknown."""
    steps: int
    """Steps of the clock seen since the start."""
    detail: str
    """E.g. the PTP clock's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceInfo:
    """One interface of a live capture; counters since it was added."""

    name: str
    backend: str
    detail: str
    """How the backend captures there; empty when there is nothing to say."""
    interface_index: int
    """The kernel's ifindex; 0 where the device is none of the kernel's."""
    state: InterfaceState
    """"up", "down" (capture goes on when it comes up) or "gone" (deleted, or its backend failed)."""
    received: int
    """Frames offered, lost ones included."""
    dropped_nic: int
    dropped_kernel: int
    error: str
    """Why it is down or gone, or empty."""
