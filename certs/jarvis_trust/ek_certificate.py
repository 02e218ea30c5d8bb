# SPDX-License-Identifier: Apache-2.0
"""Endorsement key certificates: the vendor's word that an EK lives in a genuine TPM (TCG EK Credential Profile 2.x).

    EK certificate <- intermediates from the TPM's NV <- configured vendor roots

Certificates are judged on the DER as received and never re-encoded: some vendors' do not survive it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from jarvis_trust.ca import MALFORMED_X509
from jarvis_trust.errors import AttestationError
from jarvis_trust.tpm_structures import ALG_RSA, TpmPublic

EK_CERTIFICATE_USAGE = ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_TPM_MANUFACTURER = ObjectIdentifier("2.23.133.2.1")
_TPM_MODEL = ObjectIdentifier("2.23.133.2.2")
_TPM_VERSION = ObjectIdentifier("2.23.133.2.3")

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

MAX_CERTIFICATE_BYTES = 8192
MAX_CHAIN = 8
_MAX_INTERMEDIATES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EkCertificateInfo:
    """What the vendor says of the TPM."""

    sha256: bytes
    """Of the certificate's DER."""
    issuer: str
    """RFC 4514."""
    serial_number: int
    not_after: datetime
    manufacturer: str
    """E.g. "id:00001014"."""
    model: str
    version: str


def verify_ek_certificate(
    der: bytes, chain_ders: Sequence[bytes], roots_pem: Sequence[bytes], ek_public: TpmPublic, now: datetime
) -> EkCertificateInfo:
    """The certificate leads to one of the roots at `now`, is an EK certificate, and is of this key.

    Args:
        der: the EK certificate.
        chain_ders: intermediates that came with it, in any order; not trusted.
        roots_pem: the configured vendor roots; a PEM may hold several.
        ek_public: the key that the certificate must be of.
        now: aware.

    Raises:
        AttestationError: EK_CERTIFICATE_INVALID (malformed or wrong contents), EK_CERTIFICATE_UNTRUSTED (chain, validity),
            EK_CERTIFICATE_KEY_MISMATCH, EK_ROOTS_INVALID (our own configuration).
    """
    if len(chain_ders) > MAX_CHAIN:
        raise _invalid(f"{len(chain_ders)} intermediates; at most {MAX_CHAIN} are accepted")
    roots = _load_roots(roots_pem)
    try:
        certificate = _load(der, "EK certificate")
        intermediates = [_load(item, f"intermediate {index}") for index, item in enumerate(chain_ders)]
        info = _read(certificate, der, ek_public)
        _verify_chain(certificate, intermediates, roots, now)
        _check_key(certificate, ek_public)
    except MALFORMED_X509 as error:
        # `cryptography` parses lazily: any step above may be the first to look at a malformed part.
        raise _invalid(f"malformed: {error}") from error
    return info


def read_ek_certificate(der: bytes, ek_public: TpmPublic) -> EkCertificateInfo:
    """What the certificate of a key that was proved before says of its TPM. Judges no chain: verify_ek_certificate does.

    Raises:
        AttestationError: EK_CERTIFICATE_INVALID, EK_CERTIFICATE_KEY_MISMATCH.
    """
    try:
        certificate = _load(der, "EK certificate")
        info = _read(certificate, der, ek_public)
        _check_key(certificate, ek_public)
    except MALFORMED_X509 as error:
        raise _invalid(f"malformed: {error}") from error
    return info


def _load(der: bytes, what: str) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise _invalid(f"{what} has {len(der)} bytes; at most {MAX_CERTIFICATE_BYTES} are accepted")
    try:
        return x509.load_der_x509_certificate(der)
    except MALFORMED_X509 as error:
        raise _invalid(f"{what} is not a DER certificate: {error}") from error


def _load_roots(roots_pem: Sequence[bytes]) -> list[x509.Certificate]:
    roots: list[x509.Certificate] = []
    for pem in roots_pem:
        try:
            roots += x509.load_pem_x509_certificates(pem)
        except ValueError as error:
            raise AttestationError("EK_ROOTS_INVALID", f"EK vendor roots are not PEM certificates: {error}") from error
    if not roots:
        raise AttestationError("EK_ROOTS_INVALID", "no EK vendor root is configured: no TPM can be trusted")
    return roots


def _read(certificate: x509.Certificate, der: bytes, ek_public: TpmPublic) -> EkCertificateInfo:
    """Whatever the profile demands of the leaf itself."""
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    if EK_CERTIFICATE_USAGE not in usage:
        raise _invalid(f"extendedKeyUsage lacks {EK_CERTIFICATE_USAGE.dotted_string} (EK certificate)")
    if _extension(certificate, x509.BasicConstraints).ca:
        raise _invalid("basicConstraints says CA=true; an EK is no CA")
    key_usage = _extension(certificate, x509.KeyUsage)
    needed = "key_encipherment" if ek_public.kind == ALG_RSA else "key_agreement"
    if not getattr(key_usage, needed):
        raise _invalid(f"keyUsage lacks {needed}, which an EK of this kind needs")
    tpm = _tpm_attributes(_extension(certificate, x509.SubjectAlternativeName))
    return EkCertificateInfo(
        sha256=hashlib.sha256(der).digest(),
        issuer=certificate.issuer.rfc4514_string(),
        serial_number=certificate.serial_number,
        not_after=certificate.not_valid_after_utc,
        manufacturer=tpm[_TPM_MANUFACTURER],
        model=tpm[_TPM_MODEL],
        version=tpm[_TPM_VERSION],
    )


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound as error:
        raise _invalid(f"{kind.__name__} is missing") from error


def _tpm_attributes(names: x509.SubjectAlternativeName) -> dict[ObjectIdentifier, str]:
    found: dict[ObjectIdentifier, str] = {}
    for directory_name in names.get_values_for_type(x509.DirectoryName):
        for attribute in directory_name:
            value = attribute.value
            found[attribute.oid] = value if isinstance(value, str) else value.hex()
    for oid, name in ((_TPM_MANUFACTURER, "manufacturer"), (_TPM_MODEL, "model"), (_TPM_VERSION, "version")):
        if oid not in found:
            raise _invalid(f"subjectAltName lacks the TPM's {name} ({oid.dotted_string})")
    return found


def _verify_chain(
    certificate: x509.Certificate, intermediates: list[x509.Certificate], roots: list[x509.Certificate], now: datetime
) -> None:
    # The default leaf policy is for web servers and wants serverAuth; an EK certificate has its own usage, which _read checked.
    leaf = (
        ExtensionPolicy.permit_all()
        .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
        .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    )
    verifier = (
        PolicyBuilder()
        .store(Store(roots))
        .time(now)
        .max_chain_depth(_MAX_INTERMEDIATES)
        .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=leaf)
        .build_client_verifier()
    )
    try:
        verifier.verify(certificate, intermediates)
    except VerificationError as error:
        raise AttestationError(
            "EK_CERTIFICATE_UNTRUSTED", f"EK certificate: no valid chain to a configured vendor root: {error}"
        ) from error


def _check_key(certificate: x509.Certificate, ek_public: TpmPublic) -> None:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki != ek_public.spki_der:
        raise AttestationError("EK_CERTIFICATE_KEY_MISMATCH", "EK certificate is of another key than the EK that was presented")


def _invalid(message: str) -> AttestationError:
    return AttestationError("EK_CERTIFICATE_INVALID", f"EK certificate: {message}")
