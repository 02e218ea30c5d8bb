# SPDX-License-Identifier: Apache-2.0
"""Next hops, AS numbers and prefix lengths: nfcapd has for every flow what the routes say of its addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exporting import export_files, send_datagrams
from jarvis_native.export import ExportProtocol
from jarvis_native.loader import Firmware
from jarvis_native.routes import Routes
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from test_export_interop import OWN

from testbed.collectors import Nfcapd, missing

pytestmark = pytest.mark.skipif(bool(missing("nfcapd", "nfdump")), reason=missing("nfcapd", "nfdump"))

NETWORKS = {"192.0.2.0/25": 64_500, "198.51.100.0/24": 64_501, "2001:db8::/32": 4_200_000_001}


@pytest.fixture
def routes(firmware: Firmware, tmp_path: Path) -> Routes:
    """This host's own routes, whatever they are, and AS numbers of the captures' networks."""
    writer = MMDBWriter(6, "GeoLite2-ASN", languages=["en"], ipv4_compatible=True)
    for network, number in NETWORKS.items():
        writer.insert_network(IPSet([network]), {"autonomous_system_number": number})
    writer.to_db_file(str(tmp_path / "asn.mmdb"))
    return Routes(firmware=firmware, kernel=True, asn_database=tmp_path / "asn.mmdb")


def _ends(record: dict[str, Any]) -> tuple[str, str]:
    if "src4_addr" in record:
        return record["src4_addr"], record["dst4_addr"]
    return record["src6_addr"], record["dst6_addr"]


@pytest.mark.parametrize("protocol", ["netflow5", "netflow9", "ipfix"])
def test_nfcapd_has_what_the_routes_say_of_each_flows_addresses(
    firmware: Firmware, tmp_path: Path, routes: Routes, protocol: ExportProtocol
) -> None:
    exported = export_files(firmware, OWN, protocol, profile="full", routes=routes)
    with Nfcapd(tmp_path / "nfcapd") as nfcapd:
        send_datagrams(firmware, exported, nfcapd.port)
        records = nfcapd.records()
    assert len(records) == len(exported.expected)
    for record in records:
        source, destination = map(routes.lookup, _ends(record))
        assert (record.get("src_as", 0), record.get("dst_as", 0)) == (source.as_number, destination.as_number)
        if protocol != "netflow5":  # of which nfdump 1.7.1 does not keep masks
            assert (record["src_mask"], record["dst_mask"]) == (source.prefix_length or 0, destination.prefix_length or 0)
        if destination.next_hop is not None:
            assert record[f"ip{destination.next_hop.version}_next_hop"] == str(destination.next_hop)
    assert {record.get("src_as") for record in records} >= {64_500, 64_501}
