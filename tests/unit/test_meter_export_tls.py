# SPDX-License-Identifier: Apache-2.0
"""`jarvis-agent meter --export ipfix/tls`: TLS 1.3 with both certificates; wrong names and lapsed certificates end it at once."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from testbed.exported_flows import flows_in, messages_in, totals_of
from tests.support import DATA

CONNECTION = str(DATA / "connection.pcap")
NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A CA that issues what a test asks for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {directory.name}")])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self._name, self._key, NOW + 9 * DAY).add_extension(basic, critical=True)
        self.path = directory / "ca.pem"
        self.path.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, until: dt.datetime = NOW + DAY) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, until)
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        certificate = builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        made = Issued(certificate=self._directory / f"{name}.pem", key=self._directory / f"{name}.key")
        made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        made.key.write_bytes(pem)
        made.key.chmod(0o600)
        return made

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, until: dt.datetime) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 2 * DAY)
            .not_valid_after(until)
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextmanager
def collector(issued: Issued, ca: Path) -> Iterator[tuple[int, list[bytes]]]:
    """A collector that wants a certificate of that CA: its port, and what one connection brought."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(issued.certificate, issued.key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    received: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve() -> None:
        try:
            with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                while data := connection.recv(65_536):
                    received.append(data)
        except OSError:  # refused, or nobody came
            return

    thread = threading.Thread(target=serve)
    thread.start()
    with listener:
        yield listener.getsockname()[1], received
        thread.join(20)


def meter(environment: dict[str, str], target: str, ca: Path, issued: Issued) -> subprocess.CompletedProcess[str]:
    files = ["--export-tls-ca", str(ca), "--export-tls-certificate", str(issued.certificate), "--export-tls-key", str(issued.key)]
    command = [sys.executable, "-m", "jarvis_agent", "meter", CONNECTION, "--export", target, *files]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_a_collector_gets_every_record(program_environment: dict[str, str], authority: Authority) -> None:
    with collector(authority.issue("localhost"), authority.path) as (port, received):
        done = meter(program_environment, f"ipfix/tls:localhost:{port}", authority.path, authority.issue("exporter"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exported_records"] == 6
    assert totals_of(flows_in(messages_in(b"".join(received)))) == (6, 11, 1740)


def refused(done: subprocess.CompletedProcess[str], reason: str) -> bool:
    """Exit 2 and one line, before anything was metered."""
    lines = done.stderr.splitlines()
    return (done.returncode, done.stdout, len(lines)) == (2, "", 1) and f": {reason}: " in lines[0]


def test_a_collector_with_another_name_is_refused(program_environment: dict[str, str], authority: Authority) -> None:
    with collector(authority.issue("collector.example"), authority.path) as (port, received):
        done = meter(program_environment, f"ipfix/tls:localhost:{port}", authority.path, authority.issue("exporter"))
    assert refused(done, "EXPORT_TLS_NAME_MISMATCH"), done.stderr
    assert not received


def test_a_collectors_expired_certificate_is_refused(program_environment: dict[str, str], authority: Authority) -> None:
    with collector(authority.issue("localhost", until=NOW - DAY), authority.path) as (port, received):
        done = meter(program_environment, f"ipfix/tls:localhost:{port}", authority.path, authority.issue("exporter"))
    assert refused(done, "EXPORT_CERTIFICATE_EXPIRED"), done.stderr
    assert not received


def test_an_expired_certificate_of_ours_is_refused(program_environment: dict[str, str], authority: Authority) -> None:
    with collector(authority.issue("localhost"), authority.path) as (port, _received):
        own = authority.issue("exporter", until=NOW - DAY)
        done = meter(program_environment, f"ipfix/tls:localhost:{port}", authority.path, own)
        socket.create_connection(("127.0.0.1", port)).close()  # nobody else came
    assert refused(done, "EXPORT_CERTIFICATE_EXPIRED"), done.stderr


def test_a_collector_of_another_ca_is_refused(program_environment: dict[str, str], authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    with collector(other.issue("localhost"), authority.path) as (port, _received):
        done = meter(program_environment, f"ipfix/tls:localhost:{port}", authority.path, authority.issue("exporter"))
    assert refused(done, "EXPORT_TLS_CERTIFICATE"), done.stderr


def test_a_collector_that_refuses_our_certificate_is_told(
    program_environment: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with collector(authority.issue("localhost"), Authority(tmp_path / "other").path) as (port, _received):
        done = meter(program_environment, f"ipfix/tls:localhost:{port}", authority.path, authority.issue("exporter"))
    assert refused(done, "EXPORT_TLS_CERTIFICATE"), done.stderr
