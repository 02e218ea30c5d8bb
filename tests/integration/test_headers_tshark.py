# SPDX-License-Identifier: Apache-2.0
"""A second opinion on header fields: addresses, second tags, TTLs and flow labels of flows are those of the packets by tshark.

Of every frame the outermost IP header counts. IPv6 packets with extension headers and pairs of hosts with fragments are left out:
there tshark's fields alone do not tell the flow.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jarvis_native.loader import Firmware

from tests.integration.test_meter_truth import PCAPS
from tests.metering import meter_files
from tests.support import DATA

TSHARK = shutil.which("tshark")
OWN = (
    "cooked-v1.pcap",
    "cooked-v2.pcap",
    "connection.pcap",
    "tagged.pcap",
    "wireless.pcap",
    "tunnelled.pcap",
    "point-to-point.pcap",
)
SHARED = (
    "6in4tunnel.pcap", "android.pcap", "dingtalk.pcap", "false_positives.pcapng", "gre.pcapng", "ja3_lots_of_cipher_suites.pcap",
    "kerberos-error.pcap", "nats.pcap", "openwire.pcapng", "quic-23.pcap", "quickplay.pcap", "rtmp.pcap", "syncthing.pcap",
    "teredo.pcap", "vrrp3.pcapng", "whatsapp_login_call.pcap",
)  # fmt: skip
FILES = [*(DATA / name for name in OWN), *(PCAPS / name for name in SHARED)]

_FIELDS = (
    "frame.protocols", "eth.src", "eth.dst", "wlan.sa", "wlan.da", "sll.src.eth", "vlan.id", "ieee8021ad.id", "ip.src", "ip.dst",
    "ip.proto", "ip.ttl", "ip.flags.mf", "ip.frag_offset", "ipv6.src", "ipv6.dst", "ipv6.nxt", "ipv6.hlim", "ipv6.flow",
    "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport",
)  # fmt: skip

pytestmark = pytest.mark.skipif(TSHARK is None, reason="tshark is not installed")

Way = tuple[str, str, int, int, int, int]
"""Source, destination, protocol, ports, outermost VLAN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What tshark says of one packet."""

    way: Way
    src_mac: str
    dst_mac: str
    inner_vlan_id: int
    ttl: int
    flow_label: int
    fragment: bool


def packets(capture: Path) -> Iterator[Seen]:
    """Every IP packet of the file, its outermost header."""
    fields = (f"-e{field}" for field in _FIELDS)
    options = ("-o", "ip.defragment:FALSE", "-T", "fields", *fields)
    done = subprocess.run([str(TSHARK), "-n", "-r", str(capture), *options], check=True, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        values = dict(zip(_FIELDS, line.split("\t"), strict=True))
        layers = values["frame.protocols"].split(":")
        outermost = next((number for number, layer in enumerate(layers) if layer in {"ip", "ipv6"}), None)
        if outermost is not None:
            yield seen({name: value.split(",") for name, value in values.items()}, layers[: outermost + 1])


def seen(values: dict[str, list[str]], layers: list[str]) -> Seen:
    """One packet, from every occurrence of each field, and the layers up to its IP header."""
    ip, v6 = layers[-1], layers[-1] == "ipv6"
    protocol = int(values["ipv6.nxt" if v6 else "ip.proto"][0])
    transport = {6: "tcp", 17: "udp"}.get(protocol)
    later = not v6 and int(values["ip.frag_offset"][0]) > 0
    ports = [int(values[f"{transport}.{end}port"][0] or 0) if transport and not later else 0 for end in ("src", "dst")]
    ids = {"vlan": iter(values["vlan.id"]), "ieee8021ad": iter(values["ieee8021ad.id"])}
    tags = [int(next(ids[layer])) for layer in layers if layer in ids]
    addresses = ("wlan.sa", "wlan.da") if "wlan" in layers else ("eth.src", "eth.dst") if "eth" in layers else ("sll.src.eth", "")
    macs = [values[name][0] if name else "" for name in addresses]
    return Seen(
        way=(values[f"{ip}.src"][0], values[f"{ip}.dst"][0], protocol, ports[0], ports[1], tags[0] if tags else 0),
        src_mac=macs[0].replace("00:00:00:00:00:00", ""),
        dst_mac=macs[1].replace("00:00:00:00:00:00", ""),
        inner_vlan_id=tags[1] if len(tags) > 1 else 0,
        ttl=int(values["ipv6.hlim" if v6 else "ip.ttl"][0]),
        flow_label=int(values["ipv6.flow"][0], 0) if v6 else 0,
        fragment=(v6 and protocol in {0, 43, 44, 60}) or later or (not v6 and values["ip.flags.mf"][0] in {"1", "True"}),
    )


@pytest.mark.parametrize("capture", FILES, ids=[file.name for file in FILES])
def test_header_fields_are_those_of_tshark(firmware: Firmware, capture: Path) -> None:
    if not capture.is_file():
        pytest.skip(f"{capture} is not there: name its folder with JARVIS_SHARED")
    theirs: dict[Way, list[Seen]] = defaultdict(list)
    unclear: set[frozenset[str]] = set()
    for packet in packets(capture):
        theirs[packet.way].append(packet)
        if packet.fragment:
            unclear.add(frozenset(packet.way[:2]))
    compared = 0
    for record in meter_files(firmware, [capture], statistics=("headers",)).records:
        ends = record["src_addr"], record["dst_addr"]
        ports = record["src_port"], record["dst_port"]
        if frozenset(ends) in unclear or (*ends[:1], *ports[:1]) == (*ends[1:], *ports[1:]):
            continue
        for name, (source, destination), (from_port, to_port) in (("fwd", ends, ports), ("rev", ends[::-1], ports[::-1])):
            way = source, destination, record["ip_protocol"], from_port, to_port, record["vlan_id"]
            sent = theirs.get(way, [])
            assert len(sent) == record[f"{name}_packets"], way
            if not sent:
                continue
            compared += 1
            first, ttls = sent[0], [packet.ttl for packet in sent]
            assert record[f"{name}_src_mac"] == first.src_mac, way
            assert record[f"{name}_dst_mac"] == first.dst_mac, way
            assert record[f"{name}_inner_vlan_id"] == first.inner_vlan_id, way
            assert (record[f"{name}_min_ttl"], record[f"{name}_max_ttl"]) == (min(ttls), max(ttls)), way
            assert record[f"{name}_flow_label"] == first.flow_label, way
    assert compared
