# SPDX-License-Identifier: Apache-2.0
"""TLS 1.3 over TCP, both sides with certificates (RFC 7011, 11.3): the collector's name is checked, its late word heard.

Records are made in memory and written by the TCP transport, so that the bytes on the wire are known for every message. In TLS 1.3
the client's handshake is over before the server has judged its certificate: until the server has said anything more (session
tickets, as servers do at once) or some seconds are over, nothing counts as settled.
"""

from __future__ import annotations

import datetime as dt
import select
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from cryptography import x509
from jarvis_native.export import ExportBlock
from jarvis_trust.errors import IdentityError
from jarvis_trust.keyfiles import load_private_key

from jarvis_agent.export.blocks import length_of, message
from jarvis_agent.export.errors import ExportError, unreachable
from jarvis_agent.export.plan import ExportTransport
from jarvis_agent.export.stream import MESSAGE_MAX, MOST_READS, READ_BYTES, TcpTransport
from jarvis_agent.export.transport import CONNECT_TIMEOUT_S, Interrupt, never, wait_for

_VERDICT_WAIT_S = 1.0
"""How long after the handshake the server's word on our certificate is waited for."""

_VERDICT_SILENCE_S = 5.0
"""After so long a server that has said nothing has accepted it."""

_ALERT_BYTES = 24
"""An encrypted alert: record header 5, alert 2, content type 1, tag 16."""

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _HAS_EXPIRED = 9, 10
_NAME_MISMATCHES: Final = {62, 64}  # host, IP address


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of this side."""

    ca: Path
    """What collectors' certificates must come from."""
    certificate: Path
    """This exporter's, with the chain up to what collectors trust."""
    key: Path
    """Its private key, readable by its owner alone."""


def load_tls_context(files: TlsFiles, *, now: dt.datetime | None = None) -> ssl.SSLContext:
    """Reads and judges this side's files; `now` is given by tests.

    Raises:
        ExportError: EXPORT_TLS_CERTIFICATE, EXPORT_CERTIFICATE_EXPIRED; permanent.
    """
    _check_own_certificate(files.certificate, now or dt.datetime.now(dt.UTC))
    try:
        load_private_key(files.key)
    except (IdentityError, OSError) as error:
        raise _bad_file("private key", files.key, error) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False
    try:
        context.load_verify_locations(cafile=files.ca)
    except OSError as error:
        raise _bad_file("CA certificate", files.ca, error) from error
    try:
        context.load_cert_chain(files.certificate, files.key)
    except OSError as error:
        raise _bad_file("certificate", files.certificate, error, "; the key must be that of the first certificate") from error
    return context


class TlsTransport(TcpTransport):
    """One collector over TLS."""

    kind: ExportTransport = "tls"

    def __init__(self, host: str, port: int, *, files: TlsFiles, name: str = "", interrupt: Interrupt = never) -> None:
        super().__init__(host, port, interrupt=interrupt)
        self._files = files
        self._name = name or host
        self._incoming = self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._heard = 0
        """Bytes from the server since the handshake."""
        self._began_at = 0.0

    def settled(self) -> int:
        """Messages since `connect` that need not be sent again."""
        if not self._is_accepted() and time.monotonic() - self._began_at < _VERDICT_SILENCE_S:
            return 0
        return super().settled()

    def connect(self) -> None:
        """Connects, as Transport says."""
        super().connect()
        try:
            self.probe(_VERDICT_WAIT_S)
        except ExportError:
            self.close()
            raise

    def send(self, block: ExportBlock) -> None:
        """Sends a stamped block, as Transport says."""
        self.check()
        tls = self._session()
        data, first = memoryview(block.data), 0
        while first < block.messages:
            last = self._run_end(block, first)
            start = message(block, first).offset
            tls.write(data[start : start + length_of(block, first, last)])
            records = self._outgoing.read()
            self._ends.extend([self._written + len(records)] * (last - first))
            self._write(records)
            self._sent += last - first
            first = last

    def check(self) -> None:
        """Takes what came back, as Transport says."""
        connected, tls = self._connected(), self._session()
        try:
            for _ in range(MOST_READS):
                data = connected.recv(READ_BYTES)
                if not data:
                    break
                self._heard += len(data)
                self._incoming.write(data)
                self._read(tls)
            else:
                return
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(error)
        self._give_up("the collector closed the connection")

    def probe(self, timeout_s: float) -> None:
        """Waits for a refusal, as Transport says."""
        connected = self._connected()
        end = time.monotonic() + timeout_s
        while not self._is_accepted() and (left := end - time.monotonic()) > 0:
            if not wait_for(connected.fileno(), select.POLLIN, left, self._interrupt):
                return
            self.check()

    def _begin(self, connected: socket.socket) -> None:
        context = load_tls_context(self._files)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=self._name)
        self._heard, self._began_at = 0, time.monotonic()
        end = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._write(self._outgoing.read())
                self._feed(connected, end - time.monotonic())
            except ssl.SSLError as error:
                self._tell_why(connected)
                raise self._refusal(error) from error
            else:
                break
        self._write(self._outgoing.read())

    def _say_goodbye(self, connected: socket.socket) -> None:
        if self._tls is not None:
            try:
                self._tls.unwrap()
            except ssl.SSLError:  # it has only said its own close_notify, and waits for the other
                self._tell_why(connected)
        self._tls = None

    def _is_accepted(self) -> bool:
        """Whether the server said more than an alert is long, and it was none: session tickets."""
        return self._heard > _ALERT_BYTES

    def _session(self) -> ssl.SSLObject:
        if self._tls is None:
            raise unreachable(self.address, "not connected")
        return self._tls

    def _run_end(self, block: ExportBlock, first: int) -> int:
        """Messages that fit a TLS record together, one at least."""
        octets, last = 0, first
        while last < block.messages:
            octets += message(block, last).length
            if octets > MESSAGE_MAX and last > first:
                break
            last += 1
        return last

    def _feed(self, connected: socket.socket, timeout_s: float) -> None:
        if timeout_s <= 0 or not wait_for(connected.fileno(), select.POLLIN, timeout_s, self._interrupt):
            self._give_up(f"no TLS handshake within {CONNECT_TIMEOUT_S:.0f} s")
        try:
            data = connected.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(error)
        if not data:
            self._give_up("the collector closed the connection in the TLS handshake")
        self._incoming.write(data)

    def _read(self, tls: ssl.SSLObject) -> None:
        """Takes what the server said after the handshake."""
        try:
            while tls.read(16_384):
                pass  # collectors say nothing; what they say all the same is of no interest
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            self._refuse(error)
        self._give_up("the collector closed the connection")

    def _refuse(self, error: ssl.SSLError) -> NoReturn:
        """An alert after the handshake: what left since then was not read, unless the server had accepted us before."""
        try:
            self._give_up(_alert(error))
        except ExportError as unreached:
            if any(word in _alert(error) for word in ("certificate", "unknown ca", "access denied")):
                text = f"{self.address}: refused this exporter's certificate ({_alert(error)})"
                raise ExportError("EXPORT_TLS_CERTIFICATE", text, is_permanent=True) from error
            raise unreached from error

    def _tell_why(self, connected: socket.socket) -> None:
        """Sends the alert that TLS has written, as far as the kernel takes it at once."""
        try:
            connected.send(self._outgoing.read())
        except OSError:
            return  # the connection is over in any case

    def _refusal(self, error: ssl.SSLError) -> ExportError:
        who = f"{self.address}: the collector's certificate"
        if not isinstance(error, ssl.SSLCertVerificationError):
            return unreachable(self.address, f"TLS handshake: {_alert(error)}")
        if error.verify_code in _NAME_MISMATCHES:
            text = (
                f"{who} is not of {self._name!r}: {error.verify_message}; accepted is one whose subject alternative names have it"
            )
            return ExportError("EXPORT_TLS_NAME_MISMATCH", text, is_permanent=True)
        if error.verify_code in {_HAS_EXPIRED, _NOT_YET_VALID}:
            return ExportError("EXPORT_CERTIFICATE_EXPIRED", f"{who}: {error.verify_message}", is_permanent=True)
        text = f"{who} does not come from {self._files.ca}: {error.verify_message}"
        return ExportError("EXPORT_TLS_CERTIFICATE", text, is_permanent=True)


def _check_own_certificate(path: Path, now: dt.datetime) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _bad_file("certificate", path, error) from error
    if now > certificate.not_valid_after_utc:
        text = f"{path}: this exporter's certificate expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise ExportError("EXPORT_CERTIFICATE_EXPIRED", text, is_permanent=True)
    if now < certificate.not_valid_before_utc:
        text = f"{path}: this exporter's certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise ExportError("EXPORT_CERTIFICATE_EXPIRED", text, is_permanent=True)


def _bad_file(what: str, path: Path, error: Exception, help_text: str = "") -> ExportError:
    words = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else str(error)
    text = f"{path}: this exporter's {what} cannot be used: {words}{help_text}"
    return ExportError("EXPORT_TLS_CERTIFICATE", text, is_permanent=True)


def _alert(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
