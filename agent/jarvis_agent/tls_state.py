# SPDX-License-Identifier: Apache-2.0
"""The agent's certificate and, for the direct carrier, its key: made once, renewed in place, 0600 below `<state_directory>/tls`.

The key of the tunnel carrier lives in the TPM (tls_key.py).

The key stays the same over renewals, so that quotes and leases that name it stay valid; the certificate lives at most a day.
Beside it: `trust.pem`, the CAs that are trusted once the controller has said so (the join file's until then), and `joined`,
which join token was used last: another join file means that an operator wants this host to join again, with a new key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jarvis_trust.ca import BACKDATING, generate_key, identity_of_certificate, load_certificate, spki_sha256
from jarvis_trust.ca_bundle import CaBundle
from jarvis_trust.errors import EnrollmentError, IdentityError
from jarvis_trust.identities import Identity
from jarvis_trust.keyfiles import load_private_key, read_private, replace_private, write_private

from jarvis_agent.tls_key import SoftwareTlsKey, TlsKey

RENEWAL_SHARE = 2 / 3
"""Share of a certificate's life after which it is renewed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsIdentity:
    """A certificate for the agent's key."""

    certificate_pem: bytes
    """Leaf first, then the CA that issued it."""
    spki_sha256: bytes
    """Of the leaf."""
    not_before: datetime
    not_after: datetime

    @property
    def renewal_time(self) -> datetime:
        """When to ask for the next certificate, counted from its issue (not_before lies before that)."""
        issued = min(self.not_before + BACKDATING, self.not_after)
        return issued + (self.not_after - issued) * RENEWAL_SHARE

    def is_valid(self, now: datetime) -> bool:
        """Within its validity."""
        return self.not_before <= now < self.not_after


class TlsState:
    """Key and certificate of one agent. Used from one thread."""

    def __init__(self, directory: Path, *, identity: Identity, ca_pem: bytes, key: TlsKey | None = None) -> None:
        """Reads the certificate if it is ours, and reads or makes the key unless it is given.

        Args:
            directory: made 0700 when it is not there.
            identity: whom the certificate must name.
            ca_pem: the fleet CA of the join file: what is trusted until the controller sends what is trusted instead.
            key: the agent's TLS key; None = a software key in the directory.

        Raises:
            IdentityError: the key file is exposed or is no key.
            OSError: the directory cannot be read or written.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._identity = identity
        self._trust_path = directory / "trust.pem"
        self._joined_path = directory / "joined"
        self.trust = self._load_trust(ca_pem)
        """The CAs whose certificates are accepted."""
        self._certificate_path = directory / "agent.crt"
        self._key_path = directory / "agent.key"
        self.key: TlsKey = SoftwareTlsKey(_load_or_make_key(self._key_path)) if key is None else key
        self._current: TlsIdentity | None = None
        if self._certificate_path.exists():
            try:
                self._current = self._check(read_private(self._certificate_path), self.trust)
            except IdentityError:
                self._current = None  # of another key, CA or TPM: enrolment brings a new one

    @property
    def current(self) -> TlsIdentity | None:
        """What is served; None before the first enrolment."""
        return self._current

    def require(self) -> TlsIdentity:
        """What is served.

        Raises:
            EnrollmentError: NOT_ENROLLED.
        """
        if self._current is None:
            raise EnrollmentError("NOT_ENROLLED", "this agent has no certificate yet")
        return self._current

    def install(self, certificate_pem: bytes, ca_pem: bytes = b"") -> TlsIdentity:
        """Takes a new certificate for the key, on disk first, and the CAs that came with it over an authenticated connection.

        Raises:
            IdentityError: CERTIFICATE_INVALID when it is not of this key, identity and these CAs; CA_INVALID when they are none
                of this fleet.
            OSError: it cannot be written.
        """
        trust = CaBundle.parse(ca_pem, fleet=self._identity.fleet) if ca_pem else self.trust
        checked = self._check(certificate_pem, trust)
        if trust.sha256 != self.trust.sha256:
            # First: a certificate is never there without its CA.
            replace_private(self._trust_path, trust.pem)
            self.trust = trust
        replace_private(self._certificate_path, certificate_pem)
        self._current = checked
        return checked

    def joins_with(self, token: str, ca_pem: bytes) -> None:
        """Tells the join file in hand. One with another token than was used last begins anew: its CA, a new key, no certificate.

        Raises:
            IdentityError: the join file's CA cannot be used.
            OSError: something cannot be read or written.
        """
        mark = hashlib.sha256(b"jarvis-joined-v1\0" + token.encode()).hexdigest().encode()
        if self._joined_path.exists() and read_private(self._joined_path) == mark:
            return
        if self._joined_path.exists():
            self._certificate_path.unlink(missing_ok=True)
            self._current = None
            self._trust_path.unlink(missing_ok=True)
            self.trust = CaBundle.parse(ca_pem, fleet=self._identity.fleet)
            if isinstance(self.key, SoftwareTlsKey):  # one in the TPM cannot have been copied
                replace_private(self._key_path, generate_key())
                self.key = SoftwareTlsKey(load_private_key(self._key_path))
        replace_private(self._joined_path, mark)

    def _load_trust(self, ca_pem: bytes) -> CaBundle:
        if self._trust_path.exists():
            return CaBundle.parse(read_private(self._trust_path), fleet=self._identity.fleet)
        return CaBundle.parse(ca_pem, fleet=self._identity.fleet)

    def _check(self, certificate_pem: bytes, trust: CaBundle) -> TlsIdentity:
        leaf = load_certificate(certificate_pem)
        if leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != self.key.spki_der:
            raise IdentityError("CERTIFICATE_INVALID", "the certificate is of another key than this agent's")
        found = identity_of_certificate(certificate_pem)
        if found != self._identity:
            raise IdentityError("CERTIFICATE_INVALID", f"the certificate names {found.uri}; {self._identity.uri} is accepted")
        if trust.issuer_of(leaf) is None:
            raise IdentityError("CERTIFICATE_INVALID", "the certificate was not issued by a CA that this agent trusts")
        return TlsIdentity(
            certificate_pem=certificate_pem,
            spki_sha256=spki_sha256(certificate_pem),
            not_before=leaf.not_valid_before_utc.astimezone(UTC),
            not_after=leaf.not_valid_after_utc.astimezone(UTC),
        )


def _load_or_make_key(path: Path) -> bytes:
    if not path.exists():
        write_private(path, generate_key())
    return load_private_key(path)
