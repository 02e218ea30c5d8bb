# SPDX-License-Identifier: Apache-2.0
"""`jarvis-agent meter --export` and `--output ipfix` as users run them: real collectors have what the summary says."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from test_export_interop import OWN

from testbed.collected import CollectedFlow, Totals, by_key, difference, is_ipv4, metered_flows, totals
from testbed.collectors import HOST, Nfacctd, Nfcapd, StreamSink, missing
from testbed.dissectors import dissect_file, dumped_flows, ipfix_dump

MANY_FLOWS = 40_000

pytestmark = pytest.mark.skipif(
    bool(missing("nfcapd", "nfdump", "nfacctd", "tshark", "ipfixDump")),
    reason=missing("nfcapd", "nfdump", "nfacctd", "tshark", "ipfixDump"),
)

Meter = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def meter(program_environment: dict[str, str]) -> Meter:
    """Runs the program over files without timeouts, so that records do not depend on how files follow each other."""

    def run(files: Sequence[Path], *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jarvis_agent", "meter", *map(str, files), "--idle", "0", "--active", "0", *options]
        return subprocess.run(command, env=program_environment, capture_output=True, text=True, check=True)

    return run


@pytest.fixture
def metered(meter: Meter) -> list[CollectedFlow]:
    """What the meter itself says of our captures."""
    return list(metered_flows(map(json.loads, meter(OWN).stdout.splitlines())))


def summary_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(done.stderr.splitlines()[0])
    return summary


def write_many_flows(path: Path) -> Path:
    """One UDP datagram each from as many ports and hosts, 10 microseconds apart; Ethernet."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1))
        for number in range(MANY_FLOWS):
            source = bytes([10, 0, number >> 8 & 255, number & 255])
            header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28 + number % 3, 0, 0, 64, 17, 0, source, bytes([10, 9, 9, 9]))
            frame = (
                bytes(12) + b"\x08\x00" + header + struct.pack(">HHHH", 1024 + number % 5000, 53, 8 + number % 3, 0) + bytes(2)
            )
            file.write(struct.pack("<IIII", 1_700_000_000, number * 10, len(frame), len(frame)) + frame)
    return path


def test_collectors_of_all_protocols_have_the_summarys_figures(
    meter: Meter, metered: list[CollectedFlow], tmp_path: Path
) -> None:
    """Six collectors at a time, two a protocol."""
    with ExitStack() as stack:
        collectors: dict[str, Nfcapd | Nfacctd] = {}
        for protocol in ("netflow5", "netflow9", "ipfix"):
            for kind in (Nfcapd, Nfacctd):
                collector = stack.enter_context(kind(tmp_path / f"{protocol}-{kind.__name__}"))
                collectors[f"{protocol}:{HOST}:{collector.port}"] = collector
        summary = summary_of(meter(OWN, "--output", "none", *(part for name in collectors for part in ("--export", name))))
        for collector in collectors.values():
            collector.begin_stop()
        collected = {name: totals(collector.flows()) for name, collector in collectors.items()}
        told = [collector.summary() for collector in collectors.values() if isinstance(collector, Nfcapd)]
    everything, of_ipv4 = totals(metered), totals(filter(is_ipv4, metered))
    for export in summary["exports"]:
        expected = of_ipv4 if export["to"].startswith("netflow5") else everything
        assert collected.pop(export["to"]) == expected
        assert (export["packets"], export["octets"], export["not_sent"]) == (expected.packets, expected.octets, 0)
    assert collected == {}
    assert {(each.sequence_errors, each.bad_packets) for each in told} == {(0, 0)}
    assert summary["unexportable_packets"] == 2 * (everything.packets - of_ipv4.packets)  # at the two of NetFlow v5
    assert summary["unexportable_octets"] == 2 * (everything.octets - of_ipv4.octets)


def test_balanced_collectors_have_each_flow_once(meter: Meter, metered: list[CollectedFlow], tmp_path: Path) -> None:
    with Nfcapd(tmp_path / "one") as one, Nfcapd(tmp_path / "two") as two:
        exports = [part for each in (one, two) for part in ("--export", f"netflow9:{HOST}:{each.port}")]
        meter(OWN, "--output", "none", "--export-balance", *exports)
        shares = one.flows(), two.flows()
        errors = one.summary().sequence_errors + two.summary().sequence_errors
    assert errors == 0
    assert all(shares)
    assert difference(metered, [*shares[0], *shares[1]]) == ""


def test_many_flows_arrive_whole_at_the_rate_that_is_the_default(meter: Meter, tmp_path: Path) -> None:
    trace = write_many_flows(tmp_path / "many.pcap")
    with Nfcapd(tmp_path / "nfcapd") as nfcapd:
        summary = summary_of(meter([trace], "--output", "none", "--workers", "2", "--export", f"ipfix:{HOST}:{nfcapd.port}"))
        told, flows = nfcapd.summary(), nfcapd.flows()
    assert (told.flows, told.packets, told.octets) == (MANY_FLOWS, MANY_FLOWS, summary["octets"])
    assert (told.sequence_errors, told.bad_packets) == (0, 0)
    assert len(by_key(flows)) == MANY_FLOWS


@pytest.mark.parametrize("options", [[], ["--biflow"], ["--export-profile", "full", "--statistics", "headers,tcp,sizes"]])
def test_ipfix_over_tcp_is_a_file_that_libfixbuf_reads(
    meter: Meter, metered: list[CollectedFlow], tmp_path: Path, options: list[str]
) -> None:
    with StreamSink() as sink:
        meter(OWN, "--output", "none", "--export", f"ipfix/tcp:{HOST}:{sink.port}", *options)
        streams = sink.streams()
    assert len(streams) == 1
    (tmp_path / "stream.ipfix").write_bytes(streams[0])
    records, complaints = ipfix_dump(tmp_path / "stream.ipfix")
    assert complaints == []
    assert difference(metered, dumped_flows(records)) == ""


@pytest.mark.parametrize("options", [[], ["--biflow", "--export-time", "ns"]])
def test_an_ipfix_file_is_read_by_libfixbuf_and_tshark(
    meter: Meter, metered: list[CollectedFlow], tmp_path: Path, options: list[str]
) -> None:
    path = tmp_path / "flows.ipfix"
    meter(OWN, "--output", "ipfix", "-o", str(path), *options)
    records, complaints = ipfix_dump(path)
    assert complaints == []
    assert difference(metered, dumped_flows(records)) == ""
    dissection = dissect_file(path)
    assert dissection.complaints == []
    assert Totals(records=dissection.records, packets=dissection.packets, octets=dissection.octets) == totals(metered)
