# SPDX-License-Identifier: Apache-2.0
"""The fleet's certificate authority, and the keys and certificates of its parties.

One ECDSA P-256 root per fleet signs every leaf directly (path length 0). Names come from the caller's Identity, never from the
request: a CSR gives its public key and proof of possession, nothing else.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import Identity, Role, validate_fleet_name
from jarvis_trust.keyfiles import load_private_key, write_private

CA_LIFETIME = timedelta(days=3650)
BACKDATING = timedelta(minutes=5)
"""Leaves are valid from this long ago, so that a host whose clock lags can use its certificate at once."""

MALFORMED_X509 = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises, at once or when a part is first looked at, for X.509 that is not as it should be."""

_CERTIFICATE_FILE = "ca.crt"
_KEY_FILE = "ca.key"
_MAX_CSR_BYTES = 4096
_MAX_CERTIFICATE_BYTES = 64 * 1024


class FleetCA:
    """Issues certificates for one fleet. Thread-safe: nothing changes after construction."""

    def __init__(self, fleet: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._fleet = fleet
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, fleet: str, *, now: datetime | None = None) -> Self:
        """A new root with a new key, valid for CA_LIFETIME.

        Raises:
            IdentityError: FLEET_NAME_INVALID.
        """
        validate_fleet_name(fleet)
        start = _now(now) - BACKDATING
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "JARVIS Capture fleet CA")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            # SPIFFE: a signing certificate carries its trust domain's id, without a path.
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{fleet}")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(fleet, certificate, key)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            IdentityError: KEY_FILE_EXPOSED, KEY_FILE_INVALID, CA_INVALID (not a CA, or key and certificate differ).
            OSError: a file cannot be opened.
        """
        key = _load_key(load_private_key(directory / _KEY_FILE), what=str(directory / _KEY_FILE))
        certificate = load_certificate((directory / _CERTIFICATE_FILE).read_bytes())
        if _spki(certificate.public_key()) != _spki(key.public_key()):
            raise IdentityError("CA_INVALID", f"{directory}: {_KEY_FILE} is not the key of {_CERTIFICATE_FILE}")
        return cls(fleet_of_ca(certificate.public_bytes(Encoding.PEM)), certificate, key)

    def save(self, directory: Path) -> None:
        """Writes ca.crt and ca.key (0600) into an existing directory.

        Raises:
            FileExistsError: there is a CA already; it is never overwritten.
            OSError: a file cannot be written.
        """
        write_private(directory / _KEY_FILE, _private_pem(self._key))
        certificate = directory / _CERTIFICATE_FILE
        write_private(certificate, self.certificate_pem)
        certificate.chmod(0o644)

    @property
    def fleet(self) -> str:
        """The fleet's name."""
        return self._fleet

    @property
    def certificate_pem(self) -> bytes:
        """The root that every party of the fleet trusts."""
        return self._certificate.public_bytes(Encoding.PEM)

    def issue(
        self, identity: Identity, public_key: ec.EllipticCurvePublicKey, lifetime: timedelta, *, now: datetime | None = None
    ) -> bytes:
        """A leaf certificate, PEM. Agents and controllers may serve and call; operators only call.

        Args:
            identity: the only name in it; of this fleet.
            public_key: ECDSA P-256.
            lifetime: from now; never beyond the CA's own end.
            now: the time of issue, aware; the clock's when not given.

        Raises:
            IdentityError: IDENTITY_INVALID (another fleet), KEY_INVALID, LIFETIME_INVALID.
        """
        if identity.fleet != self._fleet:
            raise IdentityError("IDENTITY_INVALID", f"fleet {identity.fleet!r}: this CA issues for {self._fleet!r} only")
        _check_p256(public_key)
        instant = _now(now)
        if lifetime <= timedelta(0):
            raise IdentityError("LIFETIME_INVALID", f"lifetime {lifetime}: more than zero is accepted")
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if not identity.role.is_operator:
            usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        names += [x509.DNSName(name) for name in identity.dns_names]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(instant - BACKDATING, self._certificate.not_valid_before_utc))
            .not_valid_after(min(instant + lifetime, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    def issue_audit_signer(
        self, name: str, public_key: ec.EllipticCurvePublicKey, lifetime: timedelta, *, now: datetime | None = None
    ) -> bytes:
        """The certificate, PEM, of a key that signs checkpoints of the audit chain and nothing else.

        Its id is spiffe://<fleet>/audit/<name>, which is no Identity: nobody accepts it on a connection.

        Args:
            name: of the controller, a DNS label.
            public_key: ECDSA P-256.
            lifetime: from now; never beyond the CA's own end.
            now: the time of issue, aware; the clock's when not given.

        Raises:
            IdentityError: IDENTITY_INVALID (the name), KEY_INVALID.
        """
        Identity(fleet=self._fleet, role=Role.CONTROLLER, name=name)  # the same names are accepted
        _check_p256(public_key)
        instant = _now(now)
        uri = x509.UniformResourceIdentifier(audit_signer_uri(self._fleet, name))
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"audit of {name}")]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(instant - BACKDATING, self._certificate.not_valid_before_utc))
            .not_valid_after(min(instant + lifetime, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )


def audit_signer_uri(fleet: str, name: str) -> str:
    """The id in the certificate of an audit key."""
    return f"spiffe://{fleet}/audit/{name}"


def uri_of_certificate(certificate: x509.Certificate) -> str:
    """The one URI name of a certificate.

    Raises:
        IdentityError: CERTIFICATE_INVALID.
    """
    return _only_uri(certificate)


def generate_key() -> bytes:
    """A new ECDSA P-256 private key, PKCS#8 PEM, unencrypted: write it with keyfiles.write_private."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def public_key_of(key_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public half of a P-256 private key in PEM.

    Raises:
        IdentityError: KEY_INVALID.
    """
    return _load_key(key_pem, what="the private key").public_key()


def make_csr(key_pem: bytes) -> bytes:
    """A PKCS#10 request (DER) that proves possession of the key and names nobody.

    Raises:
        IdentityError: KEY_INVALID.
    """
    key = _load_key(key_pem, what="the private key")
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


def public_key_from_csr(der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a PKCS#10 request whose own signature holds. Its names and extensions are ignored.

    Raises:
        IdentityError: CSR_INVALID.
    """
    if len(der) > _MAX_CSR_BYTES:
        raise IdentityError("CSR_INVALID", f"csr has {len(der)} bytes; at most {_MAX_CSR_BYTES} are accepted")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        valid = request.is_signature_valid
    except (*MALFORMED_X509, InvalidSignature) as error:
        raise IdentityError("CSR_INVALID", f"csr is not a PKCS#10 request: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("CSR_INVALID", "csr holds another kind of key; ECDSA P-256 is accepted")
    if not valid:
        raise IdentityError("CSR_INVALID", "csr is not signed with the key it holds")
    return key


def load_certificate(pem_or_der: bytes) -> x509.Certificate:
    """One certificate; of a PEM chain the first, which is the leaf.

    Raises:
        IdentityError: CERTIFICATE_INVALID.
    """
    if len(pem_or_der) > _MAX_CERTIFICATE_BYTES:
        raise IdentityError(
            "CERTIFICATE_INVALID", f"certificate has {len(pem_or_der)} bytes; at most {_MAX_CERTIFICATE_BYTES} are accepted"
        )
    try:
        if pem_or_der.lstrip().startswith(b"-----BEGIN"):
            certificate = x509.load_pem_x509_certificate(pem_or_der)
        else:
            certificate = x509.load_der_x509_certificate(pem_or_der)
        # Parsed only when looked at: what is malformed must be refused here, not later.
        _ = (certificate.subject, certificate.issuer, certificate.extensions, certificate.not_valid_after_utc)
    except MALFORMED_X509 as error:
        raise IdentityError("CERTIFICATE_INVALID", f"neither PEM nor DER of a certificate: {error}") from error
    return certificate


def spki_sha256(pem_or_der: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo (DER) of a certificate: how quotes and leases name a TLS key.

    Raises:
        IdentityError: CERTIFICATE_INVALID.
    """
    certificate = load_certificate(pem_or_der)
    try:
        return hashlib.sha256(_spki(certificate.public_key())).digest()
    except MALFORMED_X509 as error:
        raise IdentityError("CERTIFICATE_INVALID", f"certificate holds an unsupported key: {error}") from error


def spki_sha256_of_key(key: CertificatePublicKeyTypes) -> bytes:
    """The same of a key alone."""
    return hashlib.sha256(_spki(key)).digest()


def certificate_not_after(pem: bytes) -> datetime:
    """The end of a certificate's validity, aware, UTC.

    Raises:
        IdentityError: CERTIFICATE_INVALID.
    """
    return load_certificate(pem).not_valid_after_utc


def identity_of_certificate(pem_or_der: bytes) -> Identity:
    """The identity in a leaf: exactly one URI name, which is a SPIFFE id. The caller has checked the chain (TLS did).

    Raises:
        IdentityError: CERTIFICATE_INVALID, IDENTITY_INVALID.
    """
    return Identity.parse(_only_uri(load_certificate(pem_or_der)))


def fleet_of_ca(pem: bytes) -> str:
    """The fleet that a CA certificate is for.

    Raises:
        IdentityError: CERTIFICATE_INVALID, CA_INVALID, FLEET_NAME_INVALID.
    """
    certificate = load_certificate(pem)
    uri = _only_uri(certificate)
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    fleet = uri.removeprefix("spiffe://")
    if not is_ca or fleet == uri:
        raise IdentityError(
            "CA_INVALID", f"certificate named {uri[:120]!r} is not a fleet CA; spiffe://<fleet> with CA=true is accepted"
        )
    validate_fleet_name(fleet)
    return fleet


def _only_uri(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise IdentityError("CERTIFICATE_INVALID", "certificate has no subjectAltName; a SPIFFE id is accepted") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError("CERTIFICATE_INVALID", f"certificate has {len(uris)} URI names; exactly one SPIFFE id is accepted")
    return uris[0]


def _load_key(pem: bytes, *, what: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError("KEY_INVALID", f"{what} is not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError("KEY_INVALID", f"{what} is a {type(key).__name__}; ECDSA P-256 is accepted")
    _check_p256(key.public_key())
    return key


def _check_p256(key: ec.EllipticCurvePublicKey) -> None:
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    if curve != "secp256r1":
        raise IdentityError("KEY_INVALID", f"key is {curve}; ECDSA P-256 (secp256r1) is accepted")


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _now(now: datetime | None) -> datetime:
    # X.509 has whole seconds; keeping the fraction would make a certificate differ from what was asked for.
    return (datetime.now(UTC) if now is None else now.astimezone(UTC)).replace(microsecond=0)
