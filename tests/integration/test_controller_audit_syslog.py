# SPDX-License-Identifier: Apache-2.0
"""The audit chain reaches a syslog collector over TLS, whatever becomes of either in between."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from jarvis_controller.audit_export import PAGE, AuditExporter
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.store import Store
from jarvis_controller.syslog_sender import SyslogTarget

from tests.support import ReleaseKey
from tests.unit.controller.fleet import eventually, running_fleet

_SEQUENCE = re.compile(rb' sequence="(\d+)"')


class SiteCA:
    """A CA of the site's own, with certificates for a collector on localhost."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
        self.pem = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0), []).public_bytes(Encoding.PEM)

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, basic: x509.BasicConstraints, names: list[x509.GeneralName]
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(basic, critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def write(self, directory: Path, name: str = "localhost") -> Path:
        """Certificate and key for this DNS name in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, x509.BasicConstraints(ca=False, path_length=None), [x509.DNSName(name)])
        path = directory / f"{name}-{x509.random_serial_number():x}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(private + certificate.public_bytes(Encoding.PEM))
        path.chmod(0o600)
        return path


@dataclass(slots=True, kw_only=True)
class Collector:
    """What a collector got, frame by frame."""

    port: int = 0
    messages: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def sequences(self) -> list[int]:
        found = [_SEQUENCE.search(message) for message in self.messages]
        return [int(match[1]) for match in found if match]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length = int(await reader.readuntil(b" "))
                self.messages.append(await reader.readexactly(length))

    def hang_up(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@dataclass(slots=True, kw_only=True)
class Site:
    """The collector's place."""

    directory: Path
    ca: SiteCA
    store: Store

    @asynccontextmanager
    async def collector(
        self, into: Collector, *, certificate: Path | None = None, clients: bool = False
    ) -> AsyncIterator[Collector]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificate or self.ca.write(self.directory)))
        if clients:
            context.load_verify_locations(cadata=self.ca.pem.decode())
            context.verify_mode = ssl.CERT_REQUIRED
        server = await asyncio.start_server(into.serve, "localhost", into.port, ssl=context)
        into.port = server.sockets[0].getsockname()[1]
        try:
            yield into
        finally:
            server.close()
            into.hang_up()

    @asynccontextmanager
    async def exporter(self, port: int, *, certificate: Path | None = None) -> AsyncIterator[AuditExporter]:
        ca = self.directory / "site.pem"
        ca.write_bytes(self.ca.pem)
        target = SyslogTarget(
            host="localhost", port=port, ca=ca, certificate=certificate, sd_id="jarvis@32473", hostname="main.controllers.lab"
        )
        exporter = AuditExporter(self.store, target, look_s=0.02, first_backoff_s=0.02, longest_backoff_s=0.2)
        task = asyncio.ensure_future(exporter.run())
        try:
            yield exporter
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def append(self, count: int) -> None:
        for _ in range(count):
            await self.store.audit(AuditEntry(principal=CONTROLLER, action="test", detail={"text": "x" * 100}))

    async def position(self, port: int) -> int:
        return await self.store.exported_up_to(f"tls://localhost:{port}")


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    store = Store(f"sqlite:///{tmp_path / 'controller.db'}")
    await store.open()
    yield Site(directory=tmp_path, ca=SiteCA(), store=store)
    await store.close()


async def got(condition: Callable[[], bool]) -> None:
    async def met() -> bool:
        return condition()

    await eventually(met, "the collector had what it should", seconds=30)


async def position_reaches(site: Site, port: int, sequence: int) -> None:
    async def reached() -> bool:
        return await site.position(port) >= sequence

    await eventually(reached, f"{sequence} entries were taken", seconds=30)


async def test_all_entries_arrive_in_order_and_new_ones_follow(site: Site) -> None:
    await site.append(2 * PAGE + 50)
    async with site.collector(Collector()) as collector, site.exporter(collector.port):
        await got(lambda: len(collector.messages) == 2 * PAGE + 50)
        await site.append(1)
        await got(lambda: len(collector.messages) == 2 * PAGE + 51)
        assert collector.sequences == list(range(1, 2 * PAGE + 52))
        assert all(message.startswith(b"<109>1 ") for message in collector.messages)
        await position_reaches(site, collector.port, 2 * PAGE + 51)


async def test_a_restart_goes_on_after_what_was_taken(site: Site) -> None:
    await site.append(30)
    async with site.collector(Collector()) as collector:
        async with site.exporter(collector.port):
            await position_reaches(site, collector.port, 30)
        await site.append(5)
        async with site.exporter(collector.port):
            await position_reaches(site, collector.port, 35)
            await got(lambda: len(collector.messages) >= 35)
        assert collector.sequences == list(range(1, 36))


async def test_a_collector_that_was_away_misses_nothing(site: Site) -> None:
    collector = Collector()
    async with site.collector(collector):
        port = collector.port
    async with site.exporter(port):
        await site.append(40)
        async with site.collector(collector):
            await got(lambda: set(collector.sequences) == set(range(1, 41)))
        await site.append(40)
        async with site.collector(collector):
            await got(lambda: set(collector.sequences) == set(range(1, 81)))
            collector.hang_up()
            await site.append(40)
            await got(lambda: set(collector.sequences) == set(range(1, 121)))


@pytest.mark.parametrize("stranger", [True, False], ids=["of another CA", "of another name"])
async def test_a_collector_that_is_not_the_one_gets_nothing(site: Site, stranger: bool) -> None:
    await site.append(3)
    certificate = SiteCA().write(site.directory) if stranger else site.ca.write(site.directory, "elsewhere.example")
    async with site.collector(Collector(), certificate=certificate) as collector, site.exporter(collector.port) as exporter:
        await got(lambda: exporter._failures >= 3)
        assert collector.messages == []
        assert await site.position(collector.port) == 0


async def test_a_collector_may_ask_for_a_client_certificate(site: Site) -> None:
    await site.append(3)
    mine = site.ca.write(site.directory, "controller.example")
    async with site.collector(Collector(), clients=True) as collector, site.exporter(collector.port, certificate=mine):
        await got(lambda: collector.sequences == [1, 2, 3])


async def test_a_controller_sends_its_chain_where_it_is_configured_to(
    site: Site, tmp_path: Path, release_key: ReleaseKey
) -> None:
    ca = tmp_path / "site.pem"
    ca.write_bytes(site.ca.pem)
    async with site.collector(Collector()) as collector:
        settings = {"audit_syslog": f"tls://localhost:{collector.port}", "audit_syslog_ca": ca}
        async with running_fleet(tmp_path, release_key, **settings) as fleet:
            await fleet.join_file()
            await got(lambda: any(b" enroll.token [jarvis@32473 sequence=" in message for message in collector.messages))
            assert b" main.controllers.lab.example " in collector.messages[0]


async def test_a_collector_that_takes_nothing_holds_nobody_up(site: Site, tmp_path: Path, release_key: ReleaseKey) -> None:
    """It accepts the connection and never says a word: the handshake waits, the controller does not."""
    silent = await asyncio.start_server(lambda _reader, _writer: None, "localhost", 0)
    port = silent.sockets[0].getsockname()[1]
    async with running_fleet(tmp_path, release_key, audit_syslog=f"tls://localhost:{port}") as fleet:
        await fleet.join_file()
        events = await fleet.controller.store.audit_page(0, 10)
        assert events[-1].action == "enroll.token"
        assert await fleet.controller.store.exported_up_to(f"tls://localhost:{port}") == 0
    silent.close()
