# SPDX-License-Identifier: Apache-2.0
"""Exports against collectors, disks and ends of the process that do their worst: every flow is sent, waiting or counted."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from jarvis.capture.v1 import export_pb2 as pb
from jarvis_native.loader import Firmware

from testbed.collectors import DatagramSink
from tests.integration.test_agent_export_lines import FLOWS, LOCAL, Process, messages, to, until, write_capture
from tests.unit.agent.export_commands import command


class ResettingCollector:
    """Reads a few thousand bytes of a connection and resets it, so often; then it reads everything."""

    def __init__(self, resets: int) -> None:
        self._listener = socket.create_server((LOCAL, 0))
        self.port = self._listener.getsockname()[1]
        self._resets = resets
        self.streams: list[bytes] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            most = 3_001 + 7 * self._resets if self._resets > 0 else None
            data = bytearray()
            while piece := connection.recv(65_536 if most is None else most - len(data)):
                data += piece
                if most is not None and len(data) >= most:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
            connection.close()
            self._resets -= 1
            self.streams.append(bytes(data))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def total(status: pb.CollectorStatus) -> int:
    return status.flows + status.spooled_flows + status.dropped_flows + status.unexportable_flows


async def until_nothing_waits(process: Process) -> set[int]:
    """What all flows of the status came to, whenever it was asked for until then."""
    totals: set[int] = set()

    def is_over() -> bool:
        status = process.collector()
        totals.add(total(status))
        # All is acknowledged; a spool's file without records may remain.
        return status.spooled_flows == 0 and status.spooled_memory_bytes + status.spooled_disk_bytes < 1_000

    await until(is_over, 60)
    return totals


async def test_a_collector_that_resets_in_mid_message_costs_no_count(firmware: Firmware, tmp_path: Path) -> None:
    write_capture(tmp_path / "a.pcap")
    process = Process(firmware, tmp_path)
    process.lease()
    collector = ResettingCollector(4)
    asked = to(collector.port, transport=pb.EXPORT_TRANSPORT_TCP, max_records_per_second=3_000)
    await process.exports.enable(command(asked))
    await process.replay("a.pcap")
    await until(lambda: total(process.collector()) == FLOWS)
    assert await until_nothing_waits(process) == {FLOWS}
    status = process.collector()
    assert (status.flows, status.dropped_flows) == (FLOWS, 0)
    assert status.connects >= 2
    await process.end()
    collector.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "spool"
    directory.mkdir(mode=0o700)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs", str(directory)], check=False).returncode:
        pytest.skip("this user cannot mount")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


async def test_a_disk_that_is_full_is_told_and_counted_to_the_flow(firmware: Firmware, tmp_path: Path, small_disk: Path) -> None:
    write_capture(tmp_path / "a.pcap")
    process = Process(firmware, tmp_path, spool_memory_bytes=65_536)
    process.lease()
    with socket.socket() as held:
        held.bind((LOCAL, 0))
        await process.exports.enable(command(to(held.getsockname()[1], transport=pb.EXPORT_TRANSPORT_TCP)))
        await process.replay("a.pcap")
        await until(lambda: total(process.collector()) == FLOWS)
        await process.replay("a.pcap")
        await process.replay("a.pcap")
        await until(lambda: total(process.collector()) == 3 * FLOWS)
        status = process.collector()
        assert status.dropped_flows > 0
        assert "No space left on device" in status.message
        held.listen()
        connection, _ = held.accept()
        with connection:
            reading = asyncio.create_task(asyncio.to_thread(read_all, connection))
            assert await until_nothing_waits(process) == {3 * FLOWS}
            status = process.collector()
            await process.end()
            data = await reading
    assert total(status) == 3 * FLOWS
    assert sum(map(records_of, messages(data))) == status.flows


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def records_of(message: bytes) -> int:
    """Of IPv4 flows in profile default."""
    kind, length = struct.unpack_from(">HH", message, 16)
    return (length - 4) // 70 if kind == 0x4920 else 0


async def test_after_a_crash_what_was_on_disk_is_sent_once(firmware: Firmware, tmp_path: Path) -> None:
    write_capture(tmp_path / "a.pcap")
    process = Process(firmware, tmp_path, spool_memory_bytes=65_536)
    process.lease()
    with socket.socket() as held:
        held.bind((LOCAL, 0))
        port = held.getsockname()[1]
        await process.exports.enable(command(to(port, transport=pb.EXPORT_TRANSPORT_TCP)))
        await process.replay("a.pcap")
        await until(lambda: process.collector().spooled_flows == FLOWS)
        before = tmp_path / "crashed"
        before.mkdir()
        for name in ("spool", "exports"):
            shutil.copytree(tmp_path / name, before / name)
        await process.end()
    after = Process(firmware, before)
    await after.exports.load()
    kept = after.collector().spooled_flows
    assert kept == FLOWS
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOCAL, port))
        listening.listen()
        after.lease()
        connection, _ = await asyncio.to_thread(listening.accept)
        with connection:
            reading = asyncio.create_task(asyncio.to_thread(read_all, connection))
            assert await until_nothing_waits(after) == {FLOWS}
            await after.end()
            assert sum(map(records_of, messages(await reading))) == FLOWS


async def test_a_udp_collector_that_comes_back_gets_templates_first_and_the_sequence_goes_on(
    firmware: Firmware, tmp_path: Path
) -> None:
    write_capture(tmp_path / "a.pcap")
    process = Process(firmware, tmp_path)
    process.lease()
    with DatagramSink() as sink:
        port = sink.port
        await process.exports.enable(command(to(port)))
        await process.replay("a.pcap")
        await until(lambda: process.collector().flows == FLOWS)
        await asyncio.sleep(0.3)
        first = sink.datagrams()
    await asyncio.sleep(1.2)
    await process.replay("a.pcap")
    await until(lambda: process.collector().state == pb.COLLECTOR_STATE_CONNECTING)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        again.bind((LOCAL, port))
        again.settimeout(5)
        second = []
        await until(lambda: process.collector().flows == 2 * FLOWS, 30)
        await asyncio.sleep(0.3)
        again.setblocking(False)
        try:
            while True:
                second.append(again.recv(65535))
        except BlockingIOError:
            pass
    assert struct.unpack_from(">H", second[0], 16) == (2,)  # a template set
    sequences = [struct.unpack_from(">I", message, 8)[0] for message in first + second]
    assert sequences == sorted(sequences)
    assert FLOWS <= sequences[len(first)] <= FLOWS + 40  # options records count too
    await process.end()
