# SPDX-License-Identifier: Apache-2.0
"""Flow records as lines, fast enough for a stream: one pass over a batch, one f-string per flow, caches for what repeats.

    12:00:01.123 ysd3kf2a  TCP 10.0.0.1:4242 → 10.0.0.2:80  fwd 5/420B rev 4/1.2kB  0.01s  end:idle

The time is that of the flow's last packet, in the operator's time zone. Addresses come as 4 or 16 bytes in network order.
"""

import json
import socket
import sys
import time

from jarvis.capture.v1.flow_pb2 import FlowBatch, FlowRecord

from jarvisctl.format.units import scaled, span

_CACHED_ADDRESSES = 65_536
_CACHED_SECONDS = 4_096

#: IANA protocol numbers by their usual short names.
_NAMES = {
    1: "ICMP",
    2: "IGMP",
    4: "IPIP",
    6: "TCP",
    17: "UDP",
    33: "DCCP",
    41: "IPv6",
    47: "GRE",
    50: "ESP",
    51: "AH",
    58: "ICMPv6",
}
_NAMES |= {89: "OSPF", 103: "PIM", 112: "VRRP", 115: "L2TP", 132: "SCTP", 136: "UDPLite"}
PROTOCOLS = tuple(_NAMES.get(number, f"proto-{number}") for number in range(256))
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
_ICMP = frozenset({1, 58})

#: Short words for people; programs get the number, as from the meter and in every other form of a record.
_ENDS = {0: "-", 1: "idle", 2: "active", 3: "finished", 4: "forced", 5: "resources"}

#: What carries an inner flow, as people read it.
_TUNNELS = {1: "gre", 2: "erspan", 3: "vxlan", 4: "geneve", 5: "gtp-u", 6: "ip-in-ip", 7: "teredo", 8: "l2tp", 9: "l2tpv3"}


#: FlowRecord's fields of optional statistics, in the order of their numbers: doubles among them, and MAC addresses as bytes.
_STATISTICS = [field.name for field in FlowRecord.DESCRIPTOR.fields if 28 <= field.number <= 63]
_MACS = frozenset({"fwd_src_mac", "fwd_dst_mac", "rev_src_mac", "rev_dst_mac"})


class _Addresses(dict[bytes, str]):
    """Address bytes to text, forgotten all at once when too many."""

    def __missing__(self, packed: bytes) -> str:
        if len(self) >= _CACHED_ADDRESSES:
            self.clear()
        text = self[packed] = address_text(packed)
        return text


class _Hosts(dict[bytes, str]):
    """Address bytes to text that a port may follow: IPv6 in brackets."""

    def __missing__(self, packed: bytes) -> str:
        if len(self) >= _CACHED_ADDRESSES:
            self.clear()
        text = address_text(packed)
        self[packed] = text = f"[{text}]" if len(packed) == 16 else text
        return text


class _Clock(dict[int, str]):
    """Seconds since the epoch to HH:MM:SS in local time."""

    def __missing__(self, second: int) -> str:
        if len(self) >= _CACHED_SECONDS:
            self.clear()
        text = self[second] = time.strftime("%H:%M:%S", time.localtime(second))
        return text


def arrow_for_output() -> str:
    """The arrow that stdout can carry."""
    try:
        "→".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "->"
    return "→"


def address_text(packed: bytes) -> str:
    """The usual text of 4 or 16 bytes; other lengths, which no agent sends, as hex."""
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    return socket.inet_ntop(socket.AF_INET6, packed) if len(packed) == 16 else packed.hex() or "-"


def endpoints(record: FlowRecord, arrow: str) -> str:
    """Protocol, source and destination; type and code for ICMP, nothing for protocols without ports."""
    protocol = record.ip_protocol
    source, destination = address_text(record.src_addr), address_text(record.dst_addr)
    name = PROTOCOLS[protocol] if protocol < 256 else str(protocol)
    if protocol in _WITH_PORTS:
        source = f"[{source}]" if len(record.src_addr) == 16 else source
        destination = f"[{destination}]" if len(record.dst_addr) == 16 else destination
        return f"{name} {source}:{record.src_port} {arrow} {destination}:{record.dst_port}"
    detail = f" type {record.icmp_type_code >> 8} code {record.icmp_type_code & 255}" if protocol in _ICMP else ""
    return f"{name} {source} {arrow} {destination}{detail}"


def tunnel_text(record: FlowRecord) -> str:
    """The tunnel around an inner flow with its id, as `gtp-u 7`; empty for every other flow."""
    if not record.tunnel_type:
        return ""
    name = _TUNNELS.get(record.tunnel_type, f"tunnel-{record.tunnel_type}")
    return f"{name} {record.tunnel_id}" if record.tunnel_id else name


def has_statistics(record: FlowRecord) -> bool:
    """Any optional statistic came with the record: quick where there is none, which is the usual case.

    A mean is 0 only where every value is; of TCP's the six counters and two times are what there is. Of header fields the TTLs
    are hardly ever 0, but where they are something else may be there.
    """
    return bool(
        record.fwd_max_ttl
        or record.fwd_src_mac
        or record.fwd_dst_mac
        or record.fwd_payload_mean
        or record.rev_payload_mean
        or record.fwd_interval_mean_ns
        or record.rev_interval_mean_ns
        or record.syn_to_synack_ns
        or record.synack_to_ack_ns
        or record.fwd_retransmissions
        or record.rev_retransmissions
        or record.fwd_out_of_order
        or record.rev_out_of_order
        or record.fwd_zero_windows
        or record.rev_zero_windows
    )


def statistics_text(record: FlowRecord) -> str:
    """What the record's statistics say, each part behind two spaces and only where there is something, forward/reverse.

    `rtt 12.30ms  retransmitted 3/0  out of order 1/0  zero window 0/2  payload 512/80B  every 1.20ms/-`
    `mac 02:00:00:00:00:01 > 02:00:00:00:00:02  inner vlan 7/7  ttl 63-64/57  label 0x12345/0x0`
    """
    parts = []
    round_trip = record.syn_to_synack_ns + record.synack_to_ack_ns
    if record.syn_to_synack_ns and record.synack_to_ack_ns:
        parts.append(f"rtt {_time_text(round_trip)}")
    for name, forward, reverse in (
        ("retransmitted", record.fwd_retransmissions, record.rev_retransmissions),
        ("out of order", record.fwd_out_of_order, record.rev_out_of_order),
        ("zero window", record.fwd_zero_windows, record.rev_zero_windows),
    ):
        if forward or reverse:
            parts.append(f"{name} {forward}/{reverse}")
    if record.fwd_payload_mean or record.rev_payload_mean:
        parts.append(f"payload {record.fwd_payload_mean:.0f}/{record.rev_payload_mean:.0f}B")
    if record.fwd_interval_mean_ns or record.rev_interval_mean_ns:
        parts.append(f"every {_time_text(record.fwd_interval_mean_ns)}/{_time_text(record.rev_interval_mean_ns)}")
    parts += _header_parts(record)
    return "".join(f"  {part}" for part in parts)


def _header_parts(record: FlowRecord) -> list[str]:
    """Of header fields; the addresses are the forward direction's, or else the other one's turned round."""
    parts = []
    source, destination = record.fwd_src_mac or record.rev_dst_mac, record.fwd_dst_mac or record.rev_src_mac
    if source or destination:
        parts.append(f"mac {_mac_text(source) or '-'} > {_mac_text(destination) or '-'}")
    if record.fwd_inner_vlan_id or record.rev_inner_vlan_id:
        parts.append(f"inner vlan {record.fwd_inner_vlan_id}/{record.rev_inner_vlan_id}")
    if record.fwd_max_ttl or record.rev_max_ttl:
        ways = ((record.fwd_min_ttl, record.fwd_max_ttl), (record.rev_min_ttl, record.rev_max_ttl))
        parts.append(f"ttl {'/'.join(str(low) if low == high else f'{low}-{high}' for low, high in ways)}")
    if record.fwd_flow_label or record.rev_flow_label:
        parts.append(f"label {record.fwd_flow_label:#x}/{record.rev_flow_label:#x}")
    return parts


def _mac_text(mac: bytes) -> str:
    """As aa:bb:cc:dd:ee:ff; empty: there is none."""
    return mac.hex(":")


def statistics_json(record: FlowRecord) -> str:
    """All statistics as members of a JSON object, each behind a comma; names and units are the protobuf fields'."""
    return "".join(
        f',"{name}":"{_mac_text(getattr(record, name))}"' if name in _MACS else f',"{name}":{getattr(record, name)!r}'
        for name in _STATISTICS
    )


def _time_text(nanoseconds: float) -> str:
    if nanoseconds < 1e9:
        return f"{nanoseconds / 1e6:.2f}ms" if nanoseconds else "-"
    return span(nanoseconds / 1e9)


class FlowText:
    """Lines for people. One per stream; not thread-safe."""

    def __init__(self, *, agent_width: int = 0, arrow: str = "→") -> None:
        """agent_width: characters of the agent id that are shown; 0 = all."""
        self._agent_width = agent_width
        self._arrow = arrow
        self._hosts = _Hosts()
        self._clock = _Clock()

    def lines(self, agent_id: str, batch: FlowBatch) -> str:
        """All records of a batch, each ending with a newline."""
        agent = agent_id[: self._agent_width] if self._agent_width else agent_id
        base, hosts, clock, arrow = batch.base_time_unix_ns, self._hosts, self._clock, self._arrow
        text = []
        for record in batch.records:
            end_delta = record.end_delta_ns
            second, rest = divmod(base + end_delta, 1_000_000_000)
            protocol = record.ip_protocol
            if protocol in _WITH_PORTS:
                source, destination = hosts[record.src_addr], hosts[record.dst_addr]
                ends = f"{PROTOCOLS[protocol]} {source}:{record.src_port} {arrow} {destination}:{record.dst_port}"
            else:
                ends = endpoints(record, arrow)
            forward, reverse = record.fwd_octets, record.rev_octets
            length = end_delta - record.start_delta_ns
            vlan = f"  vlan {record.vlan_id}" if record.vlan_id else ""
            tunnel = f"  in {tunnel_text(record)}" if record.tunnel_type else ""
            sampled = f"  sampled 1:{record.sampling_interval}" if record.sampling_interval else ""
            more = statistics_text(record) if has_statistics(record) else ""
            text.append(
                f"{clock[second]}.{rest // 1_000_000:03d} {agent}  {ends}"
                f"  fwd {record.fwd_packets}/{f'{forward}B' if forward < 1000 else scaled(forward, 'B')}"
                f" rev {record.rev_packets}/{f'{reverse}B' if reverse < 1000 else scaled(reverse, 'B')}"
                f"  {f'{length / 1e9:.2f}s' if length < 10_000_000_000 else span(length / 1e9)}"
                f"{vlan}{tunnel}{sampled}{more}  end:{_ENDS.get(record.end_reason, record.end_reason)}\n"
            )
        return "".join(text)


class FlowJson:
    """One JSON object a line. One per stream; not thread-safe."""

    def __init__(self) -> None:
        self._addresses = _Addresses()

    def lines(self, agent_id: str, batch: FlowBatch) -> str:
        """All records of a batch. Nothing needs escaping but the agent id: the rest are numbers and addresses.

        flow_id is 16 hex digits, because JSON readers lose integers above 2**53; times are ns since the Unix epoch. A record that
        has optional statistics carries the keys of all of them.
        """
        agent = json.dumps(agent_id)
        base, addresses, shard = batch.base_time_unix_ns, self._addresses, batch.shard
        text = []
        for record in batch.records:
            forward_flags, reverse_flags, icmp = record.fwd_tcp_flags, record.rev_tcp_flags, record.icmp_type_code
            text.append(
                f'{{"event":"flow","agent_id":{agent},"shard":{shard},"flow_id":"{record.flow_id:016x}"'
                f',"src_addr":"{addresses[record.src_addr]}","dst_addr":"{addresses[record.dst_addr]}"'
                f',"src_port":{record.src_port},"dst_port":{record.dst_port},"ip_protocol":{record.ip_protocol},"vlan_id":{record.vlan_id}'
                f',"fwd_packets":{record.fwd_packets},"fwd_octets":{record.fwd_octets}'
                f',"rev_packets":{record.rev_packets},"rev_octets":{record.rev_octets}'
                f',"start_time_unix_ns":{base + record.start_delta_ns},"end_time_unix_ns":{base + record.end_delta_ns}'
                f',"tcp_flags":{forward_flags | reverse_flags},"fwd_tcp_flags":{forward_flags},"rev_tcp_flags":{reverse_flags}'
                f',"end_reason":{record.end_reason},"state":{record.state}'
                f',"interface_index":{record.interface_index}'
                f',"icmp_type":{icmp >> 8},"icmp_code":{icmp & 255},"dscp":{record.dscp}'
                f',"first_packet_id":{record.first_packet_id},"last_packet_id":{record.last_packet_id}'
                f',"tunnel_id":{record.tunnel_id},"tunnel_type":{record.tunnel_type}'
                f',"second_interface_index":{record.second_interface_index},"sampling_interval":{record.sampling_interval}'
                f"{statistics_json(record) if has_statistics(record) else ''}}}\n"
            )
        return "".join(text)
