# SPDX-License-Identifier: Apache-2.0
"""Real collectors of sFlow have every frame of captures that are sampled 1 in 1, and 10 for each sample of 1 in 10.

A frame's length is what sFlow counts: the bytes on the wire with Ethernet's FCS, which captures do not keep, so 4 more a frame.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from jarvis_native.export import ExportBlock, FlowExporter, InterfaceCounters
from jarvis_native.loader import Firmware

from testbed.collected import totals
from testbed.collectors import DatagramSink, Sfacctd, Sfcapd, missing
from testbed.dissectors import write_capture
from testbed.sflow_samples import dissect_samples, sampled_blocks, send_samples
from tests.integration.test_meter_truth import PCAPS
from tests.support import DATA

pytestmark = pytest.mark.skipif(
    bool(missing("sfcapd", "sfacctd", "tshark", "capinfos")), reason=missing("sfcapd", "sfacctd", "tshark", "capinfos")
)

FCS = 4
SFLOW_PORT = 6343

# Nothing but IP over Ethernet: sfacctd counts IP alone.
ALL_IP = (
    "6in4tunnel.pcap",
    "alicloud.pcap",
    "amqp.pcap",
    "bad-dns-traffic.pcap",
    "bittorrent_tcp_miss.pcapng",
    "cachefly.pcapng",
)
# Of every kind that sFlow has a number for: Ethernet with tags, cooked, loopback, raw IP, PPP, 802.11.
OWN = ("connection.pcap", "tagged.pcap", "labelled.pcap", "bare.pcap", "point-to-point.pcap", "wireless.pcap", "loopback.pcap",
       "cooked-v1.pcap", "cooked-v2.pcap")  # fmt: skip
# Their ARP frame: behind a cooked header there is nothing that sFlow has a number for.
LEFT_OUT = {"cooked-v1.pcap": (1, 44), "cooked-v2.pcap": (1, 48)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A capture, as capinfos has it."""

    file: Path
    link: str
    frames: int
    octets: int

    @property
    def sampled_octets(self) -> int:
        return self.octets + (FCS * self.frames if self.link == "ether" else 0)


def truths(files: list[Path]) -> list[Truth]:
    """Frames and bytes of captures."""
    done = subprocess.run(["capinfos", "-TMrmcdE", *map(str, files)], capture_output=True, text=True, check=True)
    rows = [line.rsplit(",", 3) for line in done.stdout.splitlines()]
    return [Truth(file=Path(row[0]), link=row[1], frames=int(row[2]), octets=int(row[3])) for row in rows]


def shared() -> list[Path]:
    if not PCAPS.is_dir():
        pytest.skip(f"{PCAPS} is not there")
    return sorted(PCAPS.glob("*.pcap*"))


def dissected(blocks: list[ExportBlock], firmware: Firmware, directory: Path) -> list[int]:
    """The frame lengths that tshark reads in the blocks, about which it has no complaint."""
    with DatagramSink() as sink:
        send_samples(sink.port, blocks, firmware)
        datagrams = sink.datagrams()
    assert len(datagrams) == sum(block.messages for block in blocks)
    capture = directory / "datagrams.pcap"
    write_capture(capture, datagrams, port=SFLOW_PORT)
    seen = dissect_samples(capture, port=SFLOW_PORT)
    assert seen.complaints == []
    assert seen.datagrams == len(datagrams)
    return seen.frame_lengths


def ip_captures() -> tuple[list[Path], int, int]:
    """Those of nothing but IP: their files, frames, and bytes as sFlow counts them."""
    truth = truths([path for path in shared() if path.name in ALL_IP])
    assert len(truth) == len(ALL_IP)
    return [one.file for one in truth], sum(one.frames for one in truth), sum(one.sampled_octets for one in truth)


def test_sfacctd_has_every_frame_of_captures_sampled_1_in_1(firmware: Firmware, tmp_path: Path) -> None:
    files, frames, octets = ip_captures()
    with Sfacctd(tmp_path / "collector") as collector:
        send_samples(collector.port, sampled_blocks(files, firmware), firmware)
        sums = totals(collector.flows())
    assert (sums.packets, sums.octets, collector.complaints()) == (frames, octets, [])


def test_sfcapd_has_every_frame_of_captures_sampled_1_in_1(firmware: Firmware, tmp_path: Path) -> None:
    files, frames, octets = ip_captures()
    with Sfcapd(tmp_path / "collector") as collector:
        send_samples(collector.port, sampled_blocks(files, firmware), firmware)
        summary = collector.summary()
    assert (summary.packets, summary.octets) == (frames, octets)
    assert (summary.sequence_errors, summary.bad_packets) == (0, 0)


def test_a_collector_reckons_with_the_sampling_rate(firmware: Firmware, tmp_path: Path) -> None:
    files = [path for path in shared() if path.name in ALL_IP]
    blocks = list(sampled_blocks(files, firmware, sampling_rate=10, seed=4))
    samples, octets = sum(block.flows for block in blocks), sum(block.octets for block in blocks)
    assert samples > 20
    with Sfcapd(tmp_path / "collector") as running:
        send_samples(running.port, blocks, firmware)
        summary = running.summary()
    assert (summary.packets, summary.octets, summary.sequence_errors) == (10 * samples, 10 * octets, 0)


@pytest.mark.parametrize("name", OWN)
def test_tshark_reads_the_samples_of_every_kind_of_link(firmware: Firmware, tmp_path: Path, name: str) -> None:
    (truth,) = truths([DATA / name])
    lengths = dissected(list(sampled_blocks([truth.file], firmware)), firmware, tmp_path)
    frames, octets = LEFT_OUT.get(name, (0, 0))
    assert (len(lengths) + frames, sum(lengths) + octets) == (truth.frames, truth.sampled_octets)


def test_tshark_reads_every_frame_of_the_shared_captures(firmware: Firmware, tmp_path: Path) -> None:
    truth = [one for one in truths(shared()) if one.link == "ether"]
    assert len(truth) > 50
    lengths = dissected(list(sampled_blocks([one.file for one in truth], firmware)), firmware, tmp_path)
    assert (len(lengths), sum(lengths)) == (sum(one.frames for one in truth), sum(one.sampled_octets for one in truth))


def counters_of(firmware: Firmware, indices: list[int]) -> ExportBlock:
    with FlowExporter(firmware=firmware, protocol="sflow", system_init_ns=0) as exporter:
        return exporter.counters([InterfaceCounters(index=index, speed=10**10, in_octets=1 << 40) for index in indices])


@pytest.mark.parametrize("indices", [[1, 2, 300, 0xFFFFFF], [5, 0x1000000, 0xFFFFFFFF]], ids=["compact", "expanded"])
def test_tshark_reads_interface_counters(firmware: Firmware, tmp_path: Path, indices: list[int]) -> None:
    with DatagramSink() as sink:
        send_samples(sink.port, [counters_of(firmware, indices)], firmware)
        write_capture(tmp_path / "datagrams.pcap", sink.datagrams(), port=SFLOW_PORT)
    seen = dissect_samples(tmp_path / "datagrams.pcap", port=SFLOW_PORT)
    assert (seen.counted_interfaces, seen.complaints) == (indices, [])


def test_collectors_take_counters_among_samples(firmware: Firmware, tmp_path: Path) -> None:
    files, frames, octets = ip_captures()
    blocks = [counters_of(firmware, [1, 2]), *sampled_blocks(files, firmware), counters_of(firmware, [1, 2])]
    with Sfcapd(tmp_path / "sfcapd") as collector:
        send_samples(collector.port, blocks, firmware)
        summary = collector.summary()
    assert (summary.packets, summary.octets, summary.bad_packets, summary.sequence_errors) == (frames, octets, 0, 0)
    with Sfacctd(tmp_path / "sfacctd") as other:
        send_samples(other.port, blocks, firmware)
        sums = totals(other.flows())
    assert (sums.packets, sums.octets, other.complaints()) == (frames, octets, [])


def test_the_meter_samples_for_a_collector_what_its_filter_lets_pass(program_environment: dict[str, str], tmp_path: Path) -> None:
    files, _, _ = ip_captures()
    with Sfcapd(tmp_path / "collector") as collector:
        command = [sys.executable, "-m", "jarvis_agent", "meter", *map(str, files), "--filter", "udp"]
        command += ["--export", f"sflow:127.0.0.1:{collector.port}"]
        done = subprocess.run(command, env=program_environment, capture_output=True, text=True, check=False)
        summary = collector.summary()
    told = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, told["filtered"] > 0, told["not_sent"]) == (0, True, 0)
    assert summary.packets == told["exported_records"] == told["packets"] - told["filtered"]
    assert (summary.octets, summary.sequence_errors) == (told["exported_octets"], 0)
