# SPDX-License-Identifier: Apache-2.0
"""The engine on a live interface: our own datagrams over the loopback interface, counted exactly."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from jarvis_native import FlowStats, PacketCaptureEngine
from jarvis_native.errors import InvalidArgument
from jarvis_native.loader import Firmware

PACKETS = 50


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


@pytest.mark.parametrize("backend", ["afpacket", "pcap"])
@pytest.mark.parametrize("workers", [0, 1])
def test_datagrams_over_loopback_are_metered_exactly(
    firmware: Firmware, receiver: socket.socket, backend: str, workers: int
) -> None:
    usable = {row.name: row for row in PacketCaptureEngine.get_available_backends("lo", firmware=firmware)}[backend]
    if not usable.usable:
        pytest.skip(f"backend {backend}: {usable.reason}")
    port = receiver.getsockname()[1]
    with PacketCaptureEngine(
        "lo", backend=backend, workers=workers, filter=f"udp dst port {port}", packet_ring_mb=1, firmware=firmware
    ) as capture:
        assert capture.backend == backend
        capture.enable_flow_metering()
        capture.start()
        send(port)
        live = wait_for_flow(capture)
        assert (live.dst_addr, live.dst_port, live.packets, live.octets) == ("127.0.0.1", port, PACKETS, PACKETS * 128)
        frames = [bytes(batch.frame(index)[-100:]) for batch in capture.packets(timeout_s=0) for index in range(batch.count)]
        assert frames == [bytes([number]) * 100 for number in range(PACKETS)]
        capture.stop()
        metrics = capture.get_metrics()
        assert (metrics.metered, metrics.metered_octets, metrics.dropped, metrics.in_flight) == (PACKETS, PACKETS * 128, 0, 0)
        parts = metrics.metered + metrics.filtered + metrics.unsampled + metrics.non_ip + metrics.malformed
        assert metrics.received == parts
        with capture.open_flow_reader() as reader:
            batch = reader.read_batch()
        assert (batch.records, batch.end) == (1, True)


def test_the_clock_of_a_live_capture_is_known_and_a_ptp_clock_that_is_not_there_refused(firmware: Firmware) -> None:
    usable = {row.name: row for row in PacketCaptureEngine.get_available_backends("lo", firmware=firmware)}["afpacket"]
    if not usable.usable:
        pytest.skip(f"backend afpacket: {usable.reason}")
    with PacketCaptureEngine("lo", firmware=firmware) as capture:
        capture.start()
        clock = capture.get_clock()
        assert (clock.source, clock.offset_ns, clock.error_bound_ns, clock.synchronised) == ("kernel", 0, 0, False)
        assert clock.steps == capture.get_metrics().clock_steps
    with PacketCaptureEngine("lo", timestamp_source="ptp", firmware=firmware) as capture:
        with pytest.raises(InvalidArgument, match="interface lo has no PTP hardware clock") as refused:
            capture.start()
        assert refused.value.field == "timestamp_source"


def send(port: int) -> None:
    """PACKETS datagrams of 100 bytes: 128 with their headers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(PACKETS):
            sender.sendto(bytes([number]) * 100, ("127.0.0.1", port))


def wait_for_flow(capture: PacketCaptureEngine) -> FlowStats:
    """The one live flow once all packets are in it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        capture.poll(0.05)
        flows = capture.get_flows()
        if flows and flows[0].packets >= PACKETS:
            return flows[0]
    raise AssertionError(f"not all packets came: {capture.get_metrics()}")
