# SPDX-License-Identifier: Apache-2.0
"""Transports over real sockets on loopback: what arrives, what is noticed, what is sent again."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from jarvis_agent.export.blocks import Amount
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.sender import CollectorSender
from jarvis_agent.export.session import CollectorSession
from jarvis_agent.export.spool import Spool
from jarvis_agent.export.stream import TcpTransport
from jarvis_agent.export.transport import StopTime, Transport
from jarvis_agent.export.udp import UdpTransport
from jarvis_native.export import ExportSession, send_block
from jarvis_native.loader import Firmware

from testbed.netns import Namespace, is_available
from tests.export_messages import HandSource, HandStamp, Reading, record_block, template_block

WAIT_S = 30.0


def session_over(transport: Transport, **changes: object) -> CollectorSession:
    return CollectorSession(transport=transport, source=HandSource(), new_stamp=HandStamp, **changes)  # type: ignore[arg-type]


def until(condition: Callable[[], object]) -> None:
    """Waits for what other threads or the kernel are about to do."""
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


def fails(action: Callable[[], object], words: str) -> bool:
    try:
        action()
    except ExportError as error:
        return words in error.message
    return False


class TcpCollector:
    """Reads what connections bring; each has a Reading."""

    def __init__(self, port: int = 0, *, receive_buffer: int = 0) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self.readings: list[Reading] = []

    def accept(self) -> socket.socket:
        self._listener.settimeout(WAIT_S)
        connection, _ = self._listener.accept()
        connection.settimeout(None)  # MSG_WAITALL wants a socket that blocks
        return connection

    def read(self, connection: socket.socket, until_messages: int | None = None) -> Reading:
        """Reads to the end of the connection, or so many whole messages and not a byte more."""
        reading = Reading()
        self.readings.append(reading)
        data, count = bytearray(), 0
        while until_messages is None or count < until_messages:
            if until_messages is None:
                more = connection.recv(65_536)
                if not more:
                    break
                data += more
                del data[: reading.take_stream(data)]
                continue
            header = connection.recv(16, socket.MSG_WAITALL)
            body = connection.recv(int.from_bytes(header[2:4], "big") - 16, socket.MSG_WAITALL)
            reading.take(header + body)
            count += 1
        assert not data, "the end of the connection cut a message"
        return reading

    def close(self) -> None:
        self._listener.close()


@contextmanager
def reading_in_background(collector: TcpCollector) -> Iterator[list[Reading]]:
    results: list[Reading] = []

    def work() -> None:
        with collector.accept() as connection:
            results.append(collector.read(connection))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield results
    finally:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_tcp_carries_every_record_and_ends_in_order() -> None:
    collector = TcpCollector()
    session = session_over(TcpTransport("127.0.0.1", collector.port))
    with reading_in_background(collector) as results:
        for start in range(0, 50_000, 5_000):
            session.send(record_block(range(start, start + 5_000), per_message=50))
        assert session.finish(WAIT_S)
    collector.close()
    assert results[0].numbers == list(range(50_000))
    assert (results[0].missing, session.take_settled()) == (0, 10)


def test_a_tcp_collector_that_is_not_there_is_named_with_the_reason() -> None:
    collector = TcpCollector()
    collector.close()
    with pytest.raises(ExportError, match=rf"127.0.0.1:{collector.port}: Connection refused") as raised:
        session_over(TcpTransport("127.0.0.1", collector.port)).open()
    assert (raised.value.reason, raised.value.is_permanent) == ("EXPORT_UNREACHABLE", False)


def test_what_a_tcp_collector_had_not_acknowledged_is_sent_again_whole() -> None:
    collector = TcpCollector(receive_buffer=8_192)
    session = session_over(TcpTransport("127.0.0.1", collector.port))
    session.open()
    connection = collector.accept()
    sent: list[BaseException | None] = []

    def send() -> None:
        try:
            for start in range(0, 400_000, 10_000):  # more than the kernel takes without a reader
                session.send(record_block(range(start, start + 10_000), per_message=50))
            sent.append(None)
        except ExportError as error:
            sent.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    first = collector.read(connection, until_messages=3_000)
    time.sleep(0.5)  # beyond the kernel's delayed acknowledgement: the collector's host has now acknowledged what was read
    connection.close()  # with unread bytes in its buffer: the kernel answers with RST
    sender.join(WAIT_S)
    assert isinstance(sent[0], ExportError)
    assert not session.is_open
    with reading_in_background(collector) as results:
        session.open()
        assert session.finish(WAIT_S)
    collector.close()
    second = results[0]
    # Only what the collector's host had acknowledged and its program not read is missing; nothing comes twice.
    assert second.missing == 0
    assert first.numbers[-1] < second.numbers[0]
    assert second.numbers[0] - first.numbers[-1] - 1 <= 8_192 * 64 // 24  # its receive buffer at most
    assert second.numbers == list(range(second.numbers[0], second.numbers[-1] + 1))


class Quiet:
    """SenderEvents that nobody hears."""

    def collector_lost(self, message: str) -> None: ...
    def collector_returned(self, address: str) -> None: ...
    def records_lost(self, lost: Amount) -> None: ...


def sender_to(collector: TcpCollector, directory: Path) -> tuple[Spool, CollectorSender]:
    stop_time = StopTime()
    transport = TcpTransport("127.0.0.1", collector.port, interrupt=stop_time)
    spool = Spool(protocol="ipfix", memory_bytes=1 << 20, templates=template_block(), directory=directory, disk_bytes=1 << 30)
    sender = CollectorSender(
        name="export-test",
        session=session_over(transport, interrupt=stop_time),
        spool=spool,
        gate=lambda: True,
        events=Quiet(),
        stop_time=stop_time,
    )
    return spool, sender


def test_a_collector_that_stalls_gets_the_rest_from_the_next_process_and_nothing_twice(tmp_path: Path) -> None:
    records = 1_000_000  # 24 MB: more than kernels hold for a collector that does not read
    collector = TcpCollector(receive_buffer=65_536)
    spool, sender = sender_to(collector, tmp_path / "spool")
    sender.start()
    stalled = collector.accept()
    for start in range(0, records, 10_000):
        assert spool.put(record_block(range(start, start + 10_000), per_message=50))
    until(lambda: sender.status().exported.amount.flows > 0)
    status = sender.stop(drain_s=0.3, keep=True)
    assert status.spool.lost.flows == 0
    first, data = Reading(), bytearray()
    with suppress(ConnectionResetError), stalled:
        while more := stalled.recv(65_536):
            data += more
    first.take_stream(data)  # the last message may be cut
    spool, sender = sender_to(collector, tmp_path / "spool")
    assert spool.status().waiting.flows == records - len(first.numbers)
    with reading_in_background(collector) as results:
        sender.start()
        until(lambda: spool.status().disk_bytes == 0)
        sender.stop(drain_s=WAIT_S, keep=False)
    collector.close()
    assert first.numbers + results[0].numbers == list(range(records))
    assert results[0].missing == 0


def test_the_end_of_an_idle_tcp_connection_is_noticed() -> None:
    collector = TcpCollector()
    session = session_over(TcpTransport("127.0.0.1", collector.port))
    session.open()
    with collector.accept() as connection:
        collector.read(connection, until_messages=2)
    until(lambda: fails(session.tick, "closed the connection"))
    collector.close()


class UdpCollector:
    """A bound UDP socket, and what it read."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        self._socket.bind((host, port))
        self._socket.settimeout(WAIT_S)
        self.port: int = self._socket.getsockname()[1]

    def read(self, reading: Reading, messages: int) -> None:
        for _ in range(messages):
            reading.take(self._socket.recv(65_535))

    def read_rest(self, reading: Reading) -> None:
        self._socket.setblocking(False)
        try:
            while True:
                reading.take(self._socket.recv(65_535))
        except BlockingIOError:
            self._socket.settimeout(WAIT_S)

    def close(self) -> None:
        self._socket.close()


def udp(firmware: Firmware, port: int, host: str = "127.0.0.1") -> UdpTransport:
    return UdpTransport(host, port, send_block=functools.partial(send_block, firmware))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_udp_carries_messages_by_address_and_by_name(firmware: Firmware, host: str) -> None:
    resolved = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0][4][0]
    collector = UdpCollector(host=str(resolved))
    session = session_over(udp(firmware, collector.port, host))
    session.send(record_block(range(1_000)))
    session.finish(0)
    reading = Reading()
    collector.read(reading, 127)
    collector.close()
    assert (reading.numbers, reading.missing) == (list(range(1_000)), 0)


def test_a_udp_collector_that_goes_away_and_returns_misses_nothing(firmware: Firmware) -> None:
    collector, reading = UdpCollector(), Reading()
    session = session_over(udp(firmware, collector.port))
    session.send(record_block(range(1_000)))
    collector.read(reading, 127)
    collector.close()
    with pytest.raises(ExportError, match="nothing listens there"):
        session.send(record_block(range(1_000, 3_000)))
    with pytest.raises(ExportError, match="nothing listens there"):
        session.open()
    assert session.counters().amount.flows == 1_000
    collector = UdpCollector(collector.port)
    session.open()
    session.send(record_block(range(3_000, 3_100)))
    session.finish(0)
    collector.read_rest(reading)
    collector.close()
    assert (reading.numbers, reading.missing) == (list(range(3_100)), 0)


def test_a_udp_collector_that_is_lost_while_idle_is_noticed_at_the_next_refresh(firmware: Firmware) -> None:
    now = [0.0]
    collector = UdpCollector()
    session = session_over(udp(firmware, collector.port), clock=lambda: now[0], refresh_s=60)
    session.open()
    collector.close()
    now[0] = 60.0
    until(lambda: fails(session.tick, "nothing listens there"))


def test_the_native_stamp_and_the_session_agree_on_the_sequence(firmware: Firmware) -> None:
    collector = UdpCollector()
    session = CollectorSession(
        transport=udp(firmware, collector.port),
        source=HandSource(),
        new_stamp=lambda: ExportSession(firmware=firmware, protocol="ipfix", system_init_ns=0),
    )
    session.send(record_block(range(1_000)))
    collector.close()
    with pytest.raises(ExportError):
        session.send(record_block(range(1_000, 2_000)))
    collector, reading = UdpCollector(collector.port), Reading(expected=None)
    session.open()
    collector.read_rest(reading)
    collector.close()
    assert (reading.numbers[-1], reading.missing) == (1_999, 0)
    assert session.sequence == 2_000 + reading.options + 1  # options of the first connection too


@pytest.mark.skipif(bool(is_available()), reason=is_available() or "-")
@pytest.mark.parametrize("host", ["10.77.0.1", "fd77::1"])
def test_messages_larger_than_the_path_takes_leave_in_fragments_and_the_smaller_path_is_told(
    firmware_directory: Path, program_environment: dict[str, str], host: str
) -> None:
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace("mtu"))
        namespace.run("ip", "address", "add", "10.77.0.1/32", "dev", "lo")
        namespace.run("ip", "address", "add", "fd77::1/128", "dev", "lo", "nodad")
        namespace.run("ip", "link", "set", "lo", "mtu", "1300")
        script = Path(__file__).parent / "export_mtu.py"
        done = subprocess.run(
            namespace.command(sys.executable, str(script), str(firmware_directory), host),
            capture_output=True,
            text=True,
            env=program_environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
    headers = 48 if ":" in host else 28
    assert result == {"message_max": 1300 - headers, "fragmented": 4, "numbers": list(range(224)), "missing": 0}
