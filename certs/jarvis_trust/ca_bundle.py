# SPDX-License-Identifier: Apache-2.0
"""The CAs that a party of the fleet trusts: one, or two while the fleet changes over to a new one.

    join file, jarvisctl's `ca`, EnrollResult.ca_pem  ->  CaBundle.parse  ->  the roots of TLS; the digest that leases carry

A bundle is replaced only by what came over a connection whose peer a CA of the bundle before had certified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from jarvis_trust.ca import MALFORMED_X509, fleet_of_ca
from jarvis_trust.errors import IdentityError

MAX_CAS = 8
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CaBundle:
    """Different CAs of one fleet, the one that issues first. Thread-safe."""

    fleet: str
    certificates: tuple[x509.Certificate, ...]

    @classmethod
    def parse(cls, pem: bytes, *, fleet: str | None = None) -> Self:
        """Reads PEM certificates, each of which must be a fleet CA.

        Args:
            pem: one to MAX_CAS certificates.
            fleet: the fleet that they must be of; that of the first when not given.

        Raises:
            IdentityError: CA_INVALID, CERTIFICATE_INVALID, FLEET_NAME_INVALID.
        """
        if len(pem) > _MAX_BYTES:
            raise IdentityError("CA_INVALID", f"the CAs have {len(pem)} bytes; at most {_MAX_BYTES} are accepted")
        try:
            found = x509.load_pem_x509_certificates(pem)
        except MALFORMED_X509 as error:
            raise IdentityError("CA_INVALID", f"the CAs are not certificates in PEM: {error}") from error
        certificates = tuple({certificate.public_bytes(Encoding.DER): certificate for certificate in found}.values())
        if len(certificates) > MAX_CAS:
            raise IdentityError("CA_INVALID", f"{len(certificates)} CAs; at most {MAX_CAS} are accepted")
        fleets = [fleet_of_ca(certificate.public_bytes(Encoding.PEM)) for certificate in certificates]
        wanted = fleet or fleets[0]
        strangers = [other for other in fleets if other != wanted]
        if strangers:
            raise IdentityError("CA_INVALID", f"a CA is of fleet {strangers[0]!r}; that of {wanted!r} is accepted")
        return cls(fleet=wanted, certificates=certificates)

    @property
    def pem(self) -> bytes:
        """All of them."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.certificates)

    @property
    def sha256(self) -> bytes:
        """SHA-256 over the SHA-256 digests of the certificates (DER) in their order: another one when another CA issues, too."""
        digests = (hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest() for certificate in self.certificates)
        return hashlib.sha256(b"".join(digests)).digest()

    def issuer_of(self, leaf: x509.Certificate) -> x509.Certificate | None:
        """The CA whose key signed the leaf; None when no CA of these did."""
        return next((ca for ca in self.certificates if issued_by(leaf, ca)), None)


def issued_by(leaf: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether this CA's key signed the certificate, whatever names are in it."""
    try:
        leaf.verify_directly_issued_by(ca)
    except (InvalidSignature, *MALFORMED_X509):
        return False
    return True


def ca_id(ca: x509.Certificate) -> str:
    """How a CA is named in lists: its subject key identifier, hexadecimal.

    Raises:
        IdentityError: CA_INVALID when it has none.
    """
    try:
        return ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except (x509.ExtensionNotFound, *MALFORMED_X509) as error:
        raise IdentityError("CA_INVALID", "the CA has no subject key identifier") from error


def serial_of(certificate: x509.Certificate) -> str:
    """A serial number as lists show it: 40 hexadecimal digits."""
    return f"{certificate.serial_number:040x}"


def join_pem(parts: Iterable[bytes]) -> bytes:
    """Certificates in PEM, one after the other."""
    return b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts)
