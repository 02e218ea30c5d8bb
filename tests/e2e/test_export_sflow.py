# SPDX-License-Identifier: Apache-2.0
"""sFlow of a real agent: the frames of a running capture and its interface's counters, as a collector has them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.collectors import DatagramSink, missing
from testbed.dissectors import write_capture
from testbed.fleet import FIRMWARE, Fleet, wait_for
from testbed.policy import PolicyText
from testbed.ports import free_port
from testbed.sflow_samples import SampleDissection, dissect_samples

pytestmark = pytest.mark.skipif(bool(missing("tshark")), reason=missing("tshark"))

HOST = "127.0.0.1"
SFLOW_PORT = 6343
SENT = 300
PAYLOAD = 100
FRAME = 14 + 20 + 8 + PAYLOAD + 4  # with the FCS, as sFlow counts


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A controller and one verified agent, which may export to 127.0.0.1."""
    if not (FIRMWARE / "manifest.sig").exists():
        pytest.fail(f"{FIRMWARE} holds no signed firmware: run `make setup`")
    with Fleet(directory=tmp_path / "fleet", policy=PolicyText(collectors=[HOST])) as fleet:
        fleet.start()
        fleet.wait_for_state(fleet.add_agent("host-a"), "verified")
        yield fleet


def dissected(sink: DatagramSink, directory: Path) -> SampleDissection:
    write_capture(directory / "datagrams.pcap", sink.datagrams(), port=SFLOW_PORT)
    return dissect_samples(directory / "datagrams.pcap", port=SFLOW_PORT)


@pytest.mark.timeout(180)
def test_a_collector_has_the_frames_of_a_running_capture_and_its_interfaces_counters(fleet: Fleet, tmp_path: Path) -> None:
    target = free_port()
    with DatagramSink() as sink, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        fleet.jarvisctl(
            "export", "enable", "--id", "samples", "--protocol", "sflow", "--collector", f"{HOST}:{sink.port}",
            "--sampling-rate", "1", "--interval", "1s", "--all",
        )  # fmt: skip
        fleet.jarvisctl("capture", "start", "--all", "--interface", "lo", "--filter", f"udp dst port {target}")
        for _ in range(SENT):
            sender.sendto(bytes(PAYLOAD), (HOST, target))

        def exported() -> int:
            (row,) = fleet.rows("export", "status")
            return int(row["exports"][0]["collectors"][0].get("flows", 0))

        wait_for("the samples to leave", lambda: exported() >= SENT)
        fleet.jarvisctl("capture", "stop", "--all")
        fleet.jarvisctl("export", "disable", "samples", "--all")
        seen = dissected(sink, tmp_path)
    assert seen.complaints == []
    # Loopback hands a frame to a capture once, as it is received.
    assert seen.frame_lengths == [FRAME] * SENT
    assert set(seen.counted_interfaces) == {socket.if_nametoindex("lo")}
