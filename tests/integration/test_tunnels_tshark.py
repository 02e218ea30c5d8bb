# SPDX-License-Identifier: Apache-2.0
"""A second opinion on tunnels: the innermost addresses that tshark finds in each frame are those whose flows count it.

Our own tunnelled capture, and the shared ones that hold tunnels (test_meter_truth.py says where those are): GRE with PPP, 6in4,
6in6, Teredo, GTP-U.
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from jarvis_native.loader import Firmware

from tests.integration.test_meter_truth import PCAPS
from tests.metering import meter_files
from tests.support import DATA

TSHARK = shutil.which("tshark")
SHARED = (
    "gre.pcapng", "6in4tunnel.pcap", "6in6tunnel.pcap", "teredo.pcap", "false_positives.pcapng", "rtmp.pcap",
    "ja3_lots_of_cipher_suites_2_anon.pcap", "gtp_false_positive.pcapng",
)  # fmt: skip
FILES = [DATA / "tunnelled.pcap", *(PCAPS / name for name in SHARED)]

pytestmark = pytest.mark.skipif(TSHARK is None, reason="tshark is not installed")

Pair = frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address]


def innermost_pairs(capture: Path) -> Counter[Pair]:
    """How many frames tshark finds per innermost address pair. What an ICMP message quotes is not inside a tunnel."""
    fields = ["frame.protocols", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst"]
    done = subprocess.run(
        [str(TSHARK), "-n", "-r", str(capture), "-o", "ip.defragment:FALSE", "-T", "fields", *(f"-e{field}" for field in fields)],
        check=True,
        capture_output=True,
        text=True,
    )
    pairs: Counter[Pair] = Counter()
    for line in done.stdout.splitlines():
        layers, *lists = line.split("\t")
        seen = [layer for layer in layers.partition(":icmp")[0].split(":") if layer in {"ip", "ipv6"}]
        if seen:
            which = 0 if seen[-1] == "ip" else 2
            last = seen.count(seen[-1]) - 1
            pairs[frozenset(ipaddress.ip_address(column.split(",")[last]) for column in lists[which : which + 2])] += 1
    return pairs


@pytest.mark.parametrize("capture", FILES, ids=[file.name for file in FILES])
def test_inner_flows_have_the_innermost_addresses_of_tshark(firmware: Firmware, capture: Path) -> None:
    if not capture.is_file():
        pytest.skip(f"{capture} is not there: name its folder with JARVIS_SHARED")
    ours: Counter[Pair] = Counter()
    for record in meter_files(firmware, [capture], tunnel="inner").records:
        pair = frozenset(ipaddress.ip_address(record[name]) for name in ("src_addr", "dst_addr"))
        ours[pair] += record["fwd_packets"] + record["rev_packets"]
    assert ours == innermost_pairs(capture)
