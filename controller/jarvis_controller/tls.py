# SPDX-License-Identifier: Apache-2.0
"""The controller's own certificate: loaded from the state directory, renewed before it ends, swapped without a restart.

New connections to the ports see the new certificate at once; channels to agents are made anew by their generation. While the
fleet changes over to another CA the ports show a second certificate for the same key, of the CA before: whoever was away and does
not know the new CA yet can still reach the controller, and learns it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from jarvis_trust.ca import FleetCA, certificate_not_after, generate_key, load_certificate, public_key_of, spki_sha256
from jarvis_trust.ca_bundle import issued_by
from jarvis_trust.identities import Identity, Role
from jarvis_trust.keyfiles import load_private_key, replace_private

from jarvis_controller.issuer import Issuer

CERTIFICATE_FILE = "controller.pem"
"""Certificate and private key in one file, so that a renewal replaces both in one step."""
LIFETIME = timedelta(days=30)
_RENEW_BEFORE = LIFETIME / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """One generation of the controller's certificate."""

    generation: int
    ca_pem: bytes
    """Every CA that is trusted."""
    ca_sha256: bytes
    """Of them, as leases carry it."""
    certificate_pem: bytes
    served_pem: bytes
    """Certificate for the same key that the ports show; another one during a change of the CA only."""
    key_pem: bytes
    spki_sha256: bytes
    not_after: datetime

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """To dial agents with."""
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        """To serve with."""
        return grpc.ssl_server_certificate_configuration([(self.key_pem, self.served_pem)], self.ca_pem)


class ControllerCredentials:
    """The certificate in force. `current` may be read from any thread; renewing belongs to the event loop."""

    def __init__(self, directory: Path, issuer: Issuer, identity: Identity) -> None:
        """Loads the certificate, and renews it at once when it is about to end or of a CA that does not issue any more.

        Raises:
            IdentityError: the file is exposed to others or holds no key or certificate.
            OSError: it cannot be opened.
        """
        self._path = directory / CERTIFICATE_FILE
        self._issuer = issuer
        self._identity = identity
        self._generation = 0
        self.current = self._load()
        self.renew_if_due()

    def renew_if_due(self, *, now: datetime | None = None) -> bool:
        """Stores a new certificate with a new key when less than a third of the lifetime is left, or the CA is another one."""
        issuing = load_certificate(self._issuer.authorities.issuing.certificate_pem)
        left = self.current.not_after - (now or datetime.now(UTC))
        if left > _RENEW_BEFORE and issued_by(load_certificate(self.current.certificate_pem), issuing):
            return False
        key = generate_key()
        replace_private(self._path, key + self._issuer.issue(self._identity, public_key_of(key), LIFETIME))
        self.current = self._load()
        return True

    def trust_changed(self) -> None:
        """The CAs are others: connections that begin from now on trust these, with a certificate of the one that issues."""
        if not self.renew_if_due():
            self.current = self._load()

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

    def _load(self) -> TlsMaterial:
        pem = load_private_key(self._path)
        certificate_pem = pem[pem.index(b"-----BEGIN CERTIFICATE-----") :] if b"-----BEGIN CERTIFICATE-----" in pem else pem
        load_certificate(certificate_pem)
        key_pem = pem[: len(pem) - len(certificate_pem)]
        authorities = self._issuer.authorities
        served_pem = certificate_pem
        if authorities.previous is not None:
            served_pem = self._issuer.issue_for_serving(self._identity, public_key_of(key_pem), LIFETIME)
        self._generation += 1
        return TlsMaterial(
            generation=self._generation,
            ca_pem=authorities.bundle.pem,
            ca_sha256=authorities.bundle.sha256,
            certificate_pem=certificate_pem,
            served_pem=served_pem,
            key_pem=key_pem,
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
