# SPDX-License-Identifier: Apache-2.0
"""Addresses, pace, SCTP, and what of a plan is refused before anything starts."""

from __future__ import annotations

import errno
import socket
import threading

import pytest
from jarvis_agent.export.addresses import endpoint_text, is_address, resolve
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.pace import Pace
from jarvis_agent.export.plan import Collector, ExportPlan, ExportTransport
from jarvis_agent.export.sctp import SctpTransport
from jarvis_agent.export.session import CollectorSession
from jarvis_agent.export.stream import TcpTransport
from jarvis_agent.export.udp import RESOLVE_INTERVAL_S, UdpTransport
from jarvis_agent.export.ways import ExportWays
from jarvis_native.export import ExportBlock
from jarvis_native.loader import Firmware

from tests.export_messages import HandSource, HandStamp, Reading, record_block


def plan_over(transport: ExportTransport, host: str = "127.0.0.1") -> ExportPlan:
    collectors = () if transport == "file" else (Collector(host=host, port=4739),)
    return ExportPlan(export_id="x", protocol="ipfix", transport=transport, collectors=collectors)


def ways(firmware: Firmware) -> ExportWays:
    return ExportWays(firmware=firmware, tls=None, directory=None)


@pytest.mark.parametrize(("host", "text"), [("192.0.2.7", "192.0.2.7:4739"), ("2001:db8::7", "[2001:db8::7]:4739")])
def test_address_literals_need_no_resolver(host: str, text: str) -> None:
    assert [str(endpoint) for endpoint in resolve(host, 4739)] == [text]


def test_every_address_of_a_name_is_tried_in_the_resolvers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("2001:db8::7", 4739, 0, 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.7", 4739)),
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.7", 4739)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: answers)
    assert [str(endpoint) for endpoint in resolve("flows.example", 4739)] == ["[2001:db8::7]:4739", "192.0.2.7:4739"]


@pytest.mark.parametrize(("number", "is_permanent"), [(socket.EAI_NONAME, True), (socket.EAI_AGAIN, False)])
def test_a_name_without_an_address_is_refused_and_a_silent_resolver_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, firmware: Firmware, number: int, is_permanent: bool
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise socket.gaierror(number, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ExportError, match=r"flows\.example: no answer") as raised:
        resolve("flows.example", 4739)
    assert (raised.value.reason, raised.value.is_permanent) == ("EXPORT_UNRESOLVED", is_permanent)
    # To enable an export, the name must say where records would go.
    with pytest.raises(ExportError, match=r"flows\.example"):
        ways(firmware).check(plan_over("udp", "flows.example"))


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "flows..example"])
def test_what_cannot_be_a_name_is_refused(host: str) -> None:
    with pytest.raises(ExportError) as raised:
        resolve(host, 4739)
    assert raised.value.reason == "EXPORT_UNRESOLVED"


def test_addresses_are_shown_as_they_are_written() -> None:
    assert endpoint_text("flows.example", 4739) == "flows.example:4739"
    assert [is_address(host) for host in ("192.0.2.7", "2001:db8::7", "flows.example")] == [True, True, False]


def test_over_udp_a_name_that_moved_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, now = ["127.0.0.1"], [0.0]
    literal = resolve
    monkeypatch.setattr("jarvis_agent.export.udp.resolve", lambda _host, port: literal(found[0], port))

    def send(_descriptor: int, block: ExportBlock, first: int) -> int:
        return block.messages - first

    transport = UdpTransport("flows.example", 4739, send_block=send, clock=lambda: now[0])
    transport.connect()
    found[0] = "127.0.0.2"
    assert not transport.is_stale()
    now[0] = RESOLVE_INTERVAL_S
    assert transport.is_stale()
    transport.connect()
    assert (transport.address, transport.is_stale()) == ("127.0.0.2:4739", False)
    transport.close()


def test_over_udp_the_next_address_is_tried_when_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    both = resolve("127.0.0.1", 9) + resolve("127.0.0.2", 9)
    monkeypatch.setattr("jarvis_agent.export.udp.resolve", lambda _host, _port: both)

    def send(_descriptor: int, _block: ExportBlock, _first: int) -> int:
        raise OSError(errno.ECONNREFUSED, "Connection refused")

    transport = UdpTransport("flows.example", 9, send_block=send)
    tried = []
    for _ in range(3):
        transport.connect()
        tried.append(transport.address)
        with pytest.raises(ExportError, match="refused"):
            transport.send(record_block(range(1)))
    assert tried == ["127.0.0.1:9", "127.0.0.2:9", "127.0.0.1:9"]
    transport.close()


def test_records_leave_at_the_pace_that_was_asked_for() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(10_000, clock=lambda: now[0], sleep=sleep)
    for _ in range(100):
        pace.wait(500)
    # 50,000 records less the bucket's 1,000, and less the last 500, which may leave on credit.
    assert (50_000 - 1_000 - 500) / 10_000 - 0.001 < now[0] < (50_000 - 1_000) / 10_000 + 0.001


def test_without_a_pace_nothing_waits() -> None:
    def sleep(_seconds: float) -> None:
        raise AssertionError("it waited")

    Pace(0, sleep=sleep).wait(1_000_000_000)


def test_sctp_is_refused_where_the_kernel_has_none(monkeypatch: pytest.MonkeyPatch, firmware: Firmware) -> None:
    def unsupported(*_arguments: object) -> None:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(socket, "socket", unsupported)
    with pytest.raises(ExportError, match="kernel has no SCTP") as raised:
        ways(firmware).check(plan_over("sctp"))
    assert (raised.value.reason, raised.value.is_permanent) == ("EXPORT_TRANSPORT_UNSUPPORTED", True)
    with pytest.raises(ExportError, match="kernel has no SCTP"):
        SctpTransport("127.0.0.1", 4739).connect()


def test_over_sctp_each_message_is_sent_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # A pair of sockets that keep messages' boundaries, as SCTP's one-to-one sockets do: this kernel may have none of these.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    monkeypatch.setattr(SctpTransport, "_open", lambda _self, _endpoint: ours)
    session = CollectorSession(transport=SctpTransport("127.0.0.1", 4739), source=HandSource(), new_stamp=HandStamp)
    session.send(record_block(range(100)))
    reading = Reading()
    for _ in range(2 + 13):
        reading.take(theirs.recv(65_535))
    assert (reading.numbers, reading.missing) == (list(range(100)), 0)
    theirs.close()
    with pytest.raises(ExportError):
        session.send(record_block(range(100, 200)))
    assert session.counters().waiting.flows == 100


def test_tls_and_files_need_what_they_are_made_of(firmware: Firmware) -> None:
    with pytest.raises(ExportError, match="export_tls_certificate") as raised:
        ways(firmware).check(plan_over("tls"))
    assert raised.value.reason == "EXPORT_TLS_CERTIFICATE"
    with pytest.raises(ExportError, match="export_directory") as raised:
        ways(firmware).check(plan_over("file"))
    assert raised.value.reason == "EXPORT_FILE"


class Endless:
    """A socket of a collector that talks without end."""

    def __init__(self) -> None:
        self.reads = 0

    def recv(self, size: int) -> bytes:
        self.reads += 1
        assert self.reads < 1_000, "it is read on and on"
        return bytes(size)


def test_a_collector_that_talks_without_end_holds_nobody_up() -> None:
    transport = TcpTransport("127.0.0.1", 4739)
    transport._socket = Endless()  # type: ignore[assignment]
    transport.check()


def test_collectors_are_looked_at_all_at_once_and_the_first_that_cannot_work_is_named(
    monkeypatch: pytest.MonkeyPatch, firmware: Firmware
) -> None:
    together = threading.Barrier(8, timeout=30)

    def look_up(host: str, *_arguments: object, **_named: object) -> list[object]:
        together.wait()  # one after the other never comes through here
        if host in {"b.example", "c.example"}:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.7", 4739))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    collectors = tuple(Collector(host=f"{letter}.example", port=4739) for letter in "abcdefgh")
    plan = ExportPlan(export_id="x", protocol="ipfix", transport="udp", collectors=collectors)
    with pytest.raises(ExportError, match=r"b\.example: no such name"):
        ways(firmware).check(plan)
