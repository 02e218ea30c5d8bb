# SPDX-License-Identifier: Apache-2.0
"""The controller's own certificate: loaded from the state directory, renewed before it ends, swapped without a restart.

New connections to both ports see the new certificate at once; channels to agents are made anew by their generation.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from jarvis_trust.ca import FleetCA, certificate_not_after, generate_key, load_certificate, public_key_of, spki_sha256
from jarvis_trust.identities import Identity, Role
from jarvis_trust.keyfiles import load_private_key, replace_private

CERTIFICATE_FILE = "controller.pem"
"""Certificate and private key in one file, so that a renewal replaces both in one step."""
LIFETIME = timedelta(days=30)
_RENEW_BEFORE = LIFETIME / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """One generation of the controller's certificate."""

    generation: int
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    spki_sha256: bytes
    not_after: datetime

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """To dial agents with."""
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        """To serve with."""
        return grpc.ssl_server_certificate_configuration([(self.key_pem, self.certificate_pem)], self.ca_pem)


class ControllerCredentials:
    """The certificate in force. `current` may be read from any thread; renewing belongs to the event loop."""

    def __init__(self, directory: Path, ca: FleetCA, identity: Identity) -> None:
        """Loads the certificate, and renews it at once when it is about to end.

        Raises:
            IdentityError: the file is exposed to others or holds no key or certificate.
            OSError: it cannot be opened.
        """
        self._path = directory / CERTIFICATE_FILE
        self._ca = ca
        self._identity = identity
        self.current = self._load(generation=1)
        self.renew_if_due()

    def renew_if_due(self, *, now: datetime | None = None) -> bool:
        """Issues and stores a new certificate with a new key when less than a third of the lifetime is left."""
        if self.current.not_after - (now or datetime.now(UTC)) > _RENEW_BEFORE:
            return False
        replace_private(self._path, issue_controller_pem(self._ca, self._identity))
        self.current = self._load(generation=self.current.generation + 1)
        return True

    def server_credentials(self, *, clients_need_certificates: bool) -> grpc.ServerCredentials:
        """For a port; new connections get the certificate in force.

        gRPC asks at every handshake, from threads of its own, and replaces its handshaker by what it is given while others use
        the old one: under many connections at once that ends the process (grpcio 1.85). So a certificate is handed over once,
        when it is new; else the answer is "as before".
        """
        material = self.current
        served, lock = material.generation, threading.Lock()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            with lock:
                current = self.current
                if current.generation == served:
                    return None
                served = current.generation
            return current.server_configuration()

        # None is documented as "keep what was served"; the stubs do not know it.
        fetcher: Any = fetch
        return grpc.dynamic_ssl_server_credentials(material.server_configuration(), fetcher, clients_need_certificates)

    def _load(self, *, generation: int) -> TlsMaterial:
        pem = load_private_key(self._path)
        certificate_pem = pem[pem.index(b"-----BEGIN CERTIFICATE-----") :] if b"-----BEGIN CERTIFICATE-----" in pem else pem
        load_certificate(certificate_pem)
        return TlsMaterial(
            generation=generation,
            ca_pem=self._ca.certificate_pem,
            certificate_pem=certificate_pem,
            key_pem=pem[: len(pem) - len(certificate_pem)],
            spki_sha256=spki_sha256(certificate_pem),
            not_after=certificate_not_after(certificate_pem),
        )


def issue_controller_pem(ca: FleetCA, identity: Identity) -> bytes:
    """A new key and its certificate, the key first."""
    key = generate_key()
    return key + ca.issue(identity, public_key_of(key), LIFETIME)


def controller_identity(fleet: str, name: str) -> Identity:
    """Who the controller is."""
    return Identity(fleet=fleet, role=Role.CONTROLLER, name=name)
