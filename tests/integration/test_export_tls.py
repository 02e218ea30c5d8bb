# SPDX-License-Identifier: Apache-2.0
"""TLS to collectors over real sockets: who is accepted, who is refused with which words, and that nothing is lost on the way."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.plan import Collector, ExportPlan
from jarvis_agent.export.session import CollectorSession
from jarvis_agent.export.tls import TlsFiles, TlsTransport, load_tls_context
from jarvis_agent.export.ways import ExportWays
from jarvis_native.loader import Firmware

from tests.collector_certificates import TestAuthority
from tests.export_messages import HandSource, HandStamp, Reading, record_block

WAIT_S = 30.0


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    return TestAuthority(tmp_path)


@pytest.fixture
def files(authority: TestAuthority) -> TlsFiles:
    certificate, key = authority.issue("exporter")
    return TlsFiles(ca=authority.path, certificate=certificate, key=key)


class TlsCollector:
    """Accepts connections one after the other and reads each to its end, or to so many messages."""

    def __init__(self, authority: TestAuthority, host: str = "127.0.0.1", **changes: tuple[int, int]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("collector", host=host, **changes))
        context.load_verify_locations(authority.path)
        context.verify_mode = ssl.CERT_REQUIRED
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(WAIT_S)
        self.port: int = self.listener.getsockname()[1]
        self.readings: list[Reading] = []
        self.stop_after = 0
        """Bytes after which a connection is dropped with a reset; 0: never."""

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(WAIT_S)
            with suppress(OSError), self.context.wrap_socket(connection, server_side=True) as tls:
                self.read(tls)

    def read(self, tls: ssl.SSLSocket) -> None:
        reading = Reading()
        self.readings.append(reading)
        data, total = bytearray(), 0
        while more := tls.recv(16_384):
            data += more
            total += len(more)
            del data[: reading.take_stream(data)]
            if 0 < self.stop_after <= total:
                self.stop_after = 0
                return


@contextmanager
def serving(collector: TlsCollector) -> Iterator[TlsCollector]:
    thread = threading.Thread(target=collector.serve)
    thread.start()
    try:
        yield collector
    finally:
        collector.listener.shutdown(socket.SHUT_RDWR)
        collector.listener.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def session_over(collector: TlsCollector, files: TlsFiles, host: str = "127.0.0.1", name: str = "") -> CollectorSession:
    transport = TlsTransport(host, collector.port, files=files, name=name)
    return CollectorSession(transport=transport, source=HandSource(), new_stamp=HandStamp)


def test_tls_carries_every_record_and_ends_in_order(authority: TestAuthority, files: TlsFiles) -> None:
    with serving(TlsCollector(authority)) as collector:
        session = session_over(collector, files)
        for start in range(0, 50_000, 5_000):
            session.send(record_block(range(start, start + 5_000), per_message=50))
        assert session.finish(WAIT_S)
        assert session.take_settled() == 10
    assert [reading.numbers for reading in collector.readings] == [list(range(50_000))]


@pytest.mark.parametrize(
    ("certified", "host", "name"), [("flows.example", "127.0.0.1", "flows.example"), ("localhost", "localhost", "")]
)
def test_the_certificate_may_be_of_the_tls_name_or_of_the_host(
    authority: TestAuthority, files: TlsFiles, certified: str, host: str, name: str
) -> None:
    with serving(TlsCollector(authority, certified)) as collector:
        session = session_over(collector, files, host, name)
        session.send(record_block(range(10)))
        assert session.finish(WAIT_S)


def test_what_was_cut_by_a_broken_connection_is_sent_again_whole(authority: TestAuthority, files: TlsFiles) -> None:
    collector = TlsCollector(authority)
    collector.stop_after = 300_000
    with serving(collector):
        session = session_over(collector, files)
        failures = 0
        for start in range(0, 200_000, 5_000):
            try:
                session.send(record_block(range(start, start + 5_000), per_message=50))
            except ExportError:
                failures += 1
                session.open()
        assert session.finish(WAIT_S)
    first, second = collector.readings
    assert (failures, second.missing) == (1, 0)
    assert second.numbers == list(range(second.numbers[0], 200_000))
    # What the collector's host had acknowledged, and its program not read, is missing; nothing comes twice.
    assert first.numbers == list(range(len(first.numbers)))
    assert first.numbers[-1] < second.numbers[0]


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("other name", "EXPORT_TLS_NAME_MISMATCH", "is not of '127.0.0.1'"),
        ("other tls_name", "EXPORT_TLS_NAME_MISMATCH", "is not of 'flows.example'"),
        ("expired", "EXPORT_CERTIFICATE_EXPIRED", "certificate has expired"),
        ("not yet", "EXPORT_CERTIFICATE_EXPIRED", "not yet valid"),
        ("unknown authority", "EXPORT_TLS_CERTIFICATE", "does not come from"),
        ("exporter unknown to it", "EXPORT_TLS_CERTIFICATE", "refused this exporter's certificate"),
    ],
)
def test_a_certificate_that_does_not_do_is_an_error_before_anything_starts(
    authority: TestAuthority, files: TlsFiles, tmp_path: Path, firmware: Firmware, *, fault: str, reason: str, words: str
) -> None:
    host = {"other name": "192.0.2.7", "other tls_name": "127.0.0.1"}.get(fault, "127.0.0.1")
    days = {"expired": (-9, -1), "not yet": (1, 9)}.get(fault, (-1, 30))
    collector = TlsCollector(authority, host, days=days)
    if fault == "unknown authority":
        files = replace(files, ca=TestAuthority(tmp_path, "another").path)
    if fault == "exporter unknown to it":
        certificate, key = TestAuthority(tmp_path, "another").issue("stranger")
        files = replace(files, certificate=certificate, key=key)
    name = "flows.example" if fault == "other tls_name" else ""
    plan = ExportPlan(
        export_id="x",
        protocol="ipfix",
        transport="tls",
        collectors=(Collector(host="127.0.0.1", port=collector.port, tls_name=name),),
    )
    with serving(collector), pytest.raises(ExportError, match=words) as raised:
        ExportWays(firmware=firmware, tls=files, directory=None).check(plan)
    assert (raised.value.reason, raised.value.is_permanent) == (reason, True)


def test_a_collector_that_does_not_answer_is_no_error_of_a_plan(files: TlsFiles, firmware: Firmware) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    plan = ExportPlan(export_id="x", protocol="ipfix", transport="tls", collectors=(Collector(host="127.0.0.1", port=port),))
    ExportWays(firmware=firmware, tls=files, directory=None).check(plan)


def test_nothing_is_settled_when_a_collector_refuses_the_certificate_late(authority: TestAuthority, tmp_path: Path) -> None:
    certificate, key = TestAuthority(tmp_path, "another").issue("stranger")
    with serving(TlsCollector(authority)) as collector:
        session = session_over(collector, TlsFiles(ca=authority.path, certificate=certificate, key=key))
        with pytest.raises(ExportError):
            session.send(record_block(range(100)))
        assert session.take_settled() == 0
        assert session.counters().waiting.flows == 100
    assert collector.readings == []


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ("expired", "EXPORT_CERTIFICATE_EXPIRED", "this exporter's certificate expired at"),
        ("not yet", "EXPORT_CERTIFICATE_EXPIRED", "is not valid before"),
        ("no certificate", "EXPORT_TLS_CERTIFICATE", "certificate cannot be used: No such file"),
        ("no key", "EXPORT_TLS_CERTIFICATE", "private key cannot be used: No such file"),
        ("open key", "EXPORT_TLS_CERTIFICATE", "has mode 0644"),
        ("other key", "EXPORT_TLS_CERTIFICATE", "the key must be that of the first certificate"),
        ("no ca", "EXPORT_TLS_CERTIFICATE", "CA certificate cannot be used: No such file"),
        ("ca is none", "EXPORT_TLS_CERTIFICATE", "CA certificate cannot be used"),
    ],
)
def test_files_of_this_side_that_do_not_do_are_refused(
    authority: TestAuthority, files: TlsFiles, tmp_path: Path, *, fault: str, reason: str, words: str
) -> None:
    now = dt.datetime.now(dt.UTC)
    match fault:
        case "expired":
            now += dt.timedelta(days=31)
        case "not yet":
            now -= dt.timedelta(days=2)
        case "no certificate":
            files.certificate.unlink()
        case "no key":
            files.key.unlink()
        case "open key":
            files.key.chmod(0o644)
        case "other key":
            files = replace(files, key=authority.issue("other")[1])
        case "no ca":
            files = replace(files, ca=tmp_path / "missing.pem")
        case "ca is none":
            files.ca.write_text("nothing")
    with pytest.raises(ExportError, match=words) as raised:
        load_tls_context(files, now=now)
    assert (raised.value.reason, raised.value.is_permanent) == (reason, True)
