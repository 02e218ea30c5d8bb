# SPDX-License-Identifier: Apache-2.0
"""The operator's certificate, checked before it is shown.

The controller would refuse a bad one with a bare TLS alert; here the cause can be said: expired, not yet valid, wrong role, wrong
fleet, wrong CA, wrong key. The controller decides all the same.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from jarvis_trust.ca import identity_of_certificate
from jarvis_trust.ca_bundle import CaBundle
from jarvis_trust.errors import TrustError
from jarvis_trust.identities import Identity

from jarvisctl.config import CtlConfig, read_private, read_public
from jarvisctl.errors import CtlError, ExitCode

_WARNED_BEFORE = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """PEM texts for mTLS and who they say we are."""

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes
    identity: Identity
    #: A sentence when the certificate ends before long; else empty.
    expires_soon: str = ""


def load_credentials(config: CtlConfig, now: datetime | None = None) -> Credentials:
    """Reads the three files and checks that they fit each other, the fleet and the time.

    Raises:
        CtlError: with what is wrong with which file, and what to do.
    """
    ca_pem = read_public(config.ca, "the fleet CA")
    certificate_pem = read_public(config.certificate, "the operator certificate")
    key_pem = read_private(config.key, "the key file")
    certificate = _certificate(certificate_pem, "operator certificate", config.certificate)
    trusted = _bundle(ca_pem, config)
    identity = _identity(certificate, config)
    instant = now or datetime.now(UTC)
    _check_time(certificate, config, instant)
    _check_issuer(certificate, trusted, config)
    _check_key(certificate, key_pem, config)
    return Credentials(
        ca_pem=ca_pem,
        certificate_pem=certificate_pem,
        key_pem=key_pem,
        identity=identity,
        expires_soon=_expires_soon(certificate, config, instant),
    )


def _certificate(pem: bytes, what: str, path: object) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise _refused(f"the {what} {path} is not a PEM certificate: {error}") from error


def _identity(certificate: x509.Certificate, config: CtlConfig) -> Identity:
    try:
        identity = identity_of_certificate(certificate.public_bytes(serialization.Encoding.PEM))
    except TrustError as error:
        raise _refused(f"the certificate {config.certificate} names no member of a fleet: {error.message}") from error
    if not identity.role.is_operator:
        raise _refused(
            f"the certificate {config.certificate} is {identity.uri}, role {identity.role.name.lower()}:"
            f" jarvisctl needs an operator's, spiffe://{config.fleet}/operator/{{viewer,operator,admin}}/<name>"
        )
    if identity.fleet != config.fleet:
        raise _refused(
            f"the certificate {config.certificate} is for fleet {identity.fleet!r},"
            f" the configuration names fleet {config.fleet!r}: use the pair of one fleet"
        )
    return identity


def _check_time(certificate: x509.Certificate, config: CtlConfig, now: datetime) -> None:
    if now > certificate.not_valid_after_utc:
        raise _refused(
            f"the certificate {config.certificate} expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}:"
            " have the controller's administrator issue a new one"
        )
    if now < certificate.not_valid_before_utc:
        raise _refused(
            f"the certificate {config.certificate} is valid only from {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
            f" and the clock here says {now:%Y-%m-%dT%H:%M:%SZ}: set the clock"
        )


def _expires_soon(certificate: x509.Certificate, config: CtlConfig, now: datetime) -> str:
    left = certificate.not_valid_after_utc - now
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if left >= min(_WARNED_BEFORE, life / 5):
        return ""
    return (
        f"the certificate {config.certificate} ends at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}:"
        " `jarvisctl certs renew` brings the next one, as long as it is valid"
    )


def _bundle(ca_pem: bytes, config: CtlConfig) -> CaBundle:
    try:
        return CaBundle.parse(ca_pem)
    except TrustError as error:
        raise _refused(f"the fleet CA {config.ca} cannot be used: {error.message}") from error


def _check_issuer(certificate: x509.Certificate, trusted: CaBundle, config: CtlConfig) -> None:
    if trusted.issuer_of(certificate) is None:
        raise _refused(f"the certificate {config.certificate} was not issued by the CA in {config.ca}: use the pair of one fleet")


def _check_key(certificate: x509.Certificate, key_pem: bytes, config: CtlConfig) -> None:
    try:
        public_key = serialization.load_pem_private_key(key_pem, password=None).public_key()
    except (ValueError, TypeError) as error:
        raise _refused(f"the key file {config.key} is not an unencrypted PEM private key: {error}") from error
    if public_key != certificate.public_key():
        raise _refused(
            f"the key file {config.key} does not belong to the certificate {config.certificate}:"
            " use the pair that was issued together"
        )


def _refused(message: str) -> CtlError:
    return CtlError(message, ExitCode.UNREACHABLE)
