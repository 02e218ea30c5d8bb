# SPDX-License-Identifier: Apache-2.0
"""Flows as collectors have them and as the meter has them, in one form, so that they can be compared to the packet and octet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

ICMP, TCP, UDP, IPV6_ICMP, SCTP = 1, 6, 17, 58, 132
_PORT_PROTOCOLS = frozenset({TCP, UDP, SCTP})

FlowKey = tuple[int, str, int, str, int]
"""IP protocol, source address and port, destination address and port; ports are 0 for protocols that have none, ICMP too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedFlow:
    """Packets of one direction; of records that a collector added up, their number too."""

    key: FlowKey
    packets: int
    octets: int
    records: int = 1
    times_ms: tuple[int, int] | None = None
    """Start and end, Unix ms; None where the collector does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What must be equal at both ends."""

    records: int
    packets: int
    octets: int

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            records=self.records + other.records, packets=self.packets + other.packets, octets=self.octets + other.octets
        )


def flow_key(protocol: int, source: str, source_port: int, destination: str, destination_port: int) -> FlowKey:
    """A key in its one form: addresses as Python writes them, no ports where the protocol has none."""
    has_ports = protocol in _PORT_PROTOCOLS
    return (
        protocol,
        str(ip_address(source)),
        source_port if has_ports else 0,
        str(ip_address(destination)),
        destination_port if has_ports else 0,
    )


def totals(flows: Iterable[CollectedFlow]) -> Totals:
    """The sum of all."""
    records = packets = octets = 0
    for flow in flows:
        records, packets, octets = records + flow.records, packets + flow.packets, octets + flow.octets
    return Totals(records=records, packets=packets, octets=octets)


def by_key(flows: Iterable[CollectedFlow]) -> dict[FlowKey, Totals]:
    """Sums of the flows of equal keys."""
    sums: dict[FlowKey, Totals] = {}
    for flow in flows:
        mine = Totals(records=flow.records, packets=flow.packets, octets=flow.octets)
        sums[flow.key] = sums[flow.key] + mine if flow.key in sums else mine
    return sums


def metered_flows(records: Iterable[Mapping[str, Any]]) -> Iterator[CollectedFlow]:
    """The meter's records (JSON objects) by direction: each direction that has packets is a flow of its own."""
    for record in records:
        protocol = int(record["ip_protocol"])
        ends = (record["src_addr"], record["src_port"]), (record["dst_addr"], record["dst_port"])
        times_ms = record["start_time_unix_ns"] // 1_000_000, record["end_time_unix_ns"] // 1_000_000
        for direction, (source, destination) in (("fwd", ends), ("rev", ends[::-1])):
            if record[f"{direction}_packets"]:
                yield CollectedFlow(
                    key=flow_key(protocol, *source, *destination),
                    packets=record[f"{direction}_packets"],
                    octets=record[f"{direction}_octets"],
                    times_ms=times_ms,
                )


def is_ipv4(flow: CollectedFlow) -> bool:
    """Whether NetFlow v5 can say the flow."""
    return ":" not in flow.key[1]


def difference(expected: Iterable[CollectedFlow], collected: Iterable[CollectedFlow], *, shown: int = 10) -> str:
    """What differs, for people: the first keys with what each side has; empty when nothing does."""
    wanted, found = by_key(expected), by_key(collected)
    keys = Counter({key: 1 for key in [*wanted, *found] if wanted.get(key) != found.get(key)})
    lines = [f"{key}: metered {wanted.get(key)}, collected {found.get(key)}" for key in list(keys)[:shown]]
    if len(keys) > shown:
        lines.append(f"and {len(keys) - shown} more keys")
    return "\n".join(lines)
