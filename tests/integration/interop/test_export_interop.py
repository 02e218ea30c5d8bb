# SPDX-License-Identifier: Apache-2.0
"""Real collectors have what the meter counted: for the same captures their records, packets and octets equal the meter's.

Each set of captures is metered once a protocol and sent once, to all collectors at a time. Where a collector cannot say
something, the expectation says so with the reason; nothing else is compared loosely.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from exporting import Exported, export_files, send_datagrams, stream
from jarvis_native.export import ExportProtocol
from jarvis_native.loader import Firmware

from testbed.collected import SCTP, CollectedFlow, Totals, difference, totals
from testbed.collectors import HOST, DatagramSink, Nfacctd, Nfcapd, NfcapdSummary, StreamSink, missing
from testbed.dissectors import WireCapture, decode, dissect, dumped_flows, ipfix_dump, ipfix_messages, write_capture
from tests.support import ROOT

OWN = sorted(path for path in (ROOT / "tests/data").iterdir() if path.suffix in {".pcap", ".pcapng"} and path.stem != "damaged")
SHARED = Path(os.environ.get("JARVIS_SHARED", ROOT.parent / "shared")) / "pcaps"
TRUTH = SHARED / "truth.jsonl"

pytestmark = pytest.mark.skipif(
    bool(missing("nfcapd", "nfdump", "nfacctd", "tshark", "ipfixDump")),
    reason=missing("nfcapd", "nfdump", "nfacctd", "tshark", "ipfixDump"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A protocol, and how it is spoken."""

    protocol: ExportProtocol
    settings: dict[str, Any]

    @property
    def biflow(self) -> bool:
        return bool(self.settings.get("biflow"))


FORMS = {
    "netflow5": Form(protocol="netflow5", settings={}),
    "netflow9": Form(protocol="netflow9", settings={}),
    "ipfix": Form(protocol="ipfix", settings={}),
    "ipfix-biflow": Form(protocol="ipfix", settings={"biflow": True}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One export and what everybody had of it."""

    form: Form
    exported: Exported
    datagrams: list[bytes]
    nfcapd: list[CollectedFlow]
    nfcapd_summary: NfcapdSummary
    nfacctd: list[CollectedFlow]
    nfacctd_complaints: list[str]


def _shared() -> list[Path]:
    """The shared captures; none where they are not."""
    if not TRUTH.is_file():
        return []
    return [SHARED / json.loads(line)["file"] for line in TRUTH.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module", params=list(FORMS))
def round_(request: pytest.FixtureRequest, firmware: Firmware, tmp_path_factory: pytest.TempPathFactory) -> Round:
    name = request.param
    form = FORMS[name]
    exported = export_files(firmware, [*OWN, *_shared()], form.protocol, **form.settings)
    directory = tmp_path_factory.mktemp(name)
    with Nfcapd(directory / "nfcapd") as nfcapd, Nfacctd(directory / "nfacctd") as nfacctd, DatagramSink() as sink:
        send_datagrams(firmware, exported, nfcapd.port, nfacctd.port, sink.port)
        nfacctd.begin_stop()  # which takes it two seconds
        return Round(
            form=form,
            exported=exported,
            datagrams=sink.datagrams(),
            nfcapd=nfcapd.flows(),
            nfcapd_summary=nfcapd.summary(),
            nfacctd=nfacctd.flows(),
            nfacctd_complaints=nfacctd.complaints(),
        )


def without_sctp_ports(flows: Iterable[CollectedFlow]) -> list[CollectedFlow]:
    """The flows, for a collector that does not keep all ports of SCTP."""
    return [replace(flow, key=(SCTP, flow.key[1], 0, flow.key[3], 0)) if flow.key[0] == SCTP else flow for flow in flows]


def as_nfdump_has_them(protocol: ExportProtocol, flows: Iterable[CollectedFlow]) -> list[CollectedFlow]:
    """nfdump 1.7.1 takes destination ports of IPFIX for TCP and UDP alone."""
    return without_sctp_ports(flows) if protocol == "ipfix" else list(flows)


def as_nfacctd_has_them(protocol: ExportProtocol, flows: Iterable[CollectedFlow]) -> list[CollectedFlow]:
    """pmacct 1.7.7 takes ports of NetFlow v5 for TCP and UDP alone."""
    return without_sctp_ports(flows) if protocol == "netflow5" else list(flows)


def within_32_bits(flow: CollectedFlow) -> CollectedFlow:
    """NetFlow v5 says times in 32 bits of ms: of a flow that lasts longer (timeouts are off here) it says the last 49.7 days."""
    assert flow.times_ms is not None
    start, end = flow.times_ms
    return replace(flow, times_ms=(max(start, end - 0xFFFFFFFF), end))


def test_the_shared_captures_are_among_them(round_: Round) -> None:
    if not TRUTH.is_file():
        pytest.skip(f"{TRUTH} is not there, so only the repository's captures were exported: name its folder with JARVIS_SHARED")
    known = [json.loads(line) for path in (TRUTH, ROOT / "tests/data/expected.jsonl") for line in path.read_text().splitlines()]
    read = {path.name for path in [*OWN, *_shared()]}
    assert round_.exported.packets == sum(line["ip_packets"] for line in known if line["file"] in read)
    assert round_.exported.octets == sum(line["octets"] for line in known if line["file"] in read)


def test_the_export_counts_what_the_meter_counted(round_: Round) -> None:
    exported = round_.exported
    told, metered, expected = exported.totals, totals(exported.metered), totals(exported.expected)
    assert (metered.packets, metered.octets) == (exported.packets, exported.octets)
    assert (told.packets, told.octets) == (expected.packets, expected.octets)
    assert told.unexportable_packets == metered.packets - expected.packets
    assert told.unexportable_octets == metered.octets - expected.octets
    assert told.records == (told.flows_read if round_.form.biflow else expected.records)
    if round_.form.protocol != "netflow5":
        assert told.unexportable_flows == 0


def test_nfcapd_has_every_flow_packet_and_octet(round_: Round) -> None:
    expected, collected = (as_nfdump_has_them(round_.form.protocol, flows) for flows in (round_.exported.expected, round_.nfcapd))
    assert difference(expected, collected) == ""
    told = round_.exported.totals
    assert round_.nfcapd_summary == NfcapdSummary(
        flows=told.records, packets=told.packets, octets=told.octets, sequence_errors=0, bad_packets=0
    )


def test_nfcapd_has_the_times_of_every_flow(round_: Round) -> None:
    expected = Counter(flow.times_ms for flow in round_.exported.expected)
    if round_.form.protocol == "netflow5":
        expected = Counter(flow.times_ms for flow in map(within_32_bits, round_.exported.expected))
    assert Counter(flow.times_ms for flow in round_.nfcapd) == expected


def test_nfacctd_has_every_flow_packet_and_octet(round_: Round) -> None:
    expected = round_.exported.expected
    if round_.form.biflow:  # nfacctd 1.7.7 does not read reverse elements (RFC 5103)
        expected = round_.exported.forward
    assert difference(as_nfacctd_has_them(round_.form.protocol, expected), round_.nfacctd) == ""
    assert round_.nfacctd_complaints == []


def test_collectors_multiply_by_the_interval_of_sampling(firmware: Firmware, tmp_path: Path) -> None:
    spoken: list[tuple[ExportProtocol, str]] = [
        (protocol, sampling) for protocol in ("netflow5", "netflow9", "ipfix") for sampling in ("systematic", "flow-hash")
    ]
    with ExitStack() as stack:
        collectors = []
        for protocol, sampling in spoken:
            nfcapd = stack.enter_context(Nfcapd(tmp_path / f"{protocol}-{sampling}-nfcapd"))
            nfacctd = stack.enter_context(Nfacctd(tmp_path / f"{protocol}-{sampling}-nfacctd", renormalize=True))
            exported = export_files(firmware, OWN, protocol, sampling=sampling, sampling_interval=100)
            send_datagrams(firmware, exported, nfcapd.port, nfacctd.port)
            nfacctd.begin_stop()
            collectors.append((protocol, exported.expected, nfcapd, nfacctd))
        for protocol, flows, nfcapd, nfacctd in collectors:
            expected = [replace(flow, packets=flow.packets * 100, octets=flow.octets * 100) for flow in flows]
            assert difference(as_nfdump_has_them(protocol, expected), as_nfdump_has_them(protocol, nfcapd.flows())) == ""
            assert difference(as_nfacctd_has_them(protocol, expected), nfacctd.flows()) == ""


def test_tshark_has_every_record_and_nothing_to_complain_of(round_: Round, tmp_path: Path) -> None:
    write_capture(tmp_path / "export.pcap", round_.datagrams, port=4739)
    dissection = dissect(tmp_path / "export.pcap", port=4739)
    assert dissection.complaints == []
    assert dissection.messages == len(round_.datagrams)
    assert Totals(records=dissection.records, packets=dissection.packets, octets=dissection.octets) == totals(
        round_.exported.expected
    )


# The package netflow 0.12.2 keeps any one of the forward and the reverse element (RFC 5103) of a number.
@pytest.mark.parametrize("round_", [name for name, form in FORMS.items() if not form.biflow], indirect=True)
def test_the_netflow_package_decodes_every_flow(round_: Round) -> None:
    assert difference(round_.exported.expected, decode(round_.datagrams)) == ""


@pytest.mark.parametrize("round_", [name for name, form in FORMS.items() if form.protocol == "ipfix"], indirect=True)
def test_libfixbuf_reads_the_file_that_the_messages_make(round_: Round, firmware: Firmware, tmp_path: Path) -> None:
    (tmp_path / "export.ipfix").write_bytes(stream(firmware, round_.exported))
    records, complaints = ipfix_dump(tmp_path / "export.ipfix")
    assert complaints == []
    assert difference(round_.exported.expected, dumped_flows(records)) == ""


@pytest.mark.parametrize(
    "settings", [{"profile": "minimal"}, {"profile": "full", "time_unit": "ns"}, {"time_unit": "us"}], ids=str
)
@pytest.mark.parametrize("protocol", ["netflow9", "ipfix"])
def test_every_profile_and_time_unit_is_understood(
    firmware: Firmware, tmp_path: Path, protocol: ExportProtocol, settings: dict[str, Any]
) -> None:
    exported = export_files(firmware, OWN, protocol, **settings)
    with Nfcapd(tmp_path / "nfcapd") as nfcapd, DatagramSink() as sink:
        send_datagrams(firmware, exported, nfcapd.port, sink.port)
        collected, summary, datagrams = nfcapd.flows(), nfcapd.summary(), sink.datagrams()
    assert difference(as_nfdump_has_them(protocol, exported.expected), as_nfdump_has_them(protocol, collected)) == ""
    assert (summary.sequence_errors, summary.bad_packets) == (0, 0)
    write_capture(tmp_path / "export.pcap", datagrams, port=4739)
    dissection = dissect(tmp_path / "export.pcap", port=4739)
    assert dissection.complaints == []
    assert dissection.packets == totals(exported.expected).packets
    assert difference(exported.expected, decode(datagrams)) == ""


def test_each_capture_alone_makes_a_file_with_all_its_flows(firmware: Firmware, tmp_path: Path) -> None:
    for path in [*OWN, *_shared()]:
        for settings in ({}, {"biflow": True}):
            exported = export_files(firmware, [path], "ipfix", **settings)
            (tmp_path / "export.ipfix").write_bytes(stream(firmware, exported))
            records, complaints = ipfix_dump(tmp_path / "export.ipfix")
            assert (path.name, complaints) == (path.name, [])
            assert (path.name, difference(exported.expected, dumped_flows(records))) == (path.name, "")


def test_ipfix_over_tcp_is_dissected_from_the_wire(firmware: Firmware, tmp_path: Path) -> None:
    exported = export_files(firmware, OWN, "ipfix", biflow=True)
    sent = stream(firmware, exported)
    with StreamSink() as sink:
        with WireCapture(tmp_path / "wire.pcapng", transport="tcp", port=sink.port):
            with socket.create_connection((HOST, sink.port)) as connection:
                connection.sendall(sent)
            received = sink.streams()
        dissection = dissect(tmp_path / "wire.pcapng", port=sink.port, transport="tcp")
    assert received == [sent]
    assert dissection.complaints == []
    assert dissection.messages == len(list(ipfix_messages(sent)))
    assert Totals(records=dissection.records, packets=dissection.packets, octets=dissection.octets) == totals(exported.expected)


def test_nfcapd_sees_a_gap_where_messages_were_dropped(firmware: Firmware, tmp_path: Path) -> None:
    """The figures above would say 0 errors too if nobody looked."""
    exported = export_files(firmware, OWN, "ipfix", message_max=512)
    assert sum(block.messages for block in exported.blocks) > 2
    with Nfcapd(tmp_path / "nfcapd") as nfcapd, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((HOST, nfcapd.port))
        messages = list(ipfix_messages(stream(firmware, exported)))
        lost = next(number for number, message in enumerate(messages) if number > 4 and len(message) > 300)
        for number, message in enumerate(messages):
            if number != lost:
                sender.send(message)
        assert nfcapd.summary().sequence_errors == 1
