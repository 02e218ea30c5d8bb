# SPDX-License-Identifier: Apache-2.0
"""EK certificates from a vendor CA of the test's own: whatever the profile demands is demanded."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from jarvis_trust.ek_certificate import EK_CERTIFICATE_USAGE, verify_ek_certificate
from jarvis_trust.errors import AttestationError
from jarvis_trust.tpm_structures import ALG_RSA, ALG_SHA256, TpmPublic

NOW = dt.datetime(2026, 11, 22, 10, 0, 0, tzinfo=dt.UTC)
YEAR = dt.timedelta(days=365)
EK_KEY = rsa.generate_private_key(65537, 2048).public_key()
EK = TpmPublic(
    raw=b"",
    kind=ALG_RSA,
    name_alg=ALG_SHA256,
    attributes=0,
    auth_policy=b"",
    symmetric=None,
    scheme=None,
    parameter=2048,
    exponent=0,
    key=EK_KEY,
)
MANUFACTURER, MODEL, VERSION = (ObjectIdentifier(f"2.23.133.2.{number}") for number in (1, 2, 3))
TPM = [(MANUFACTURER, "id:4A415256"), (MODEL, "testbed"), (VERSION, "id:00010002")]


def tpm_name(attributes: list[tuple[ObjectIdentifier, str]]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name([x509.NameAttribute(*item) for item in attributes]))])


def usage(**true: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
        "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: true.get(name, False) for name in names})


class Authority:
    """A CA certificate with its key."""

    def __init__(self, name: str, issuer: Authority | None = None, *, ca: bool = True) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = issuer or self
        builder = self._builder(self.name, signer.name, self.key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(usage(key_cert_sign=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
        builder = builder.add_extension(authority, critical=False)
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def ek_certificate(self, **changes: Any) -> bytes:
        """A good EK certificate; an extension named here is replaced, or left out when None."""
        extensions: dict[str, Any] = {
            "basic_constraints": (x509.BasicConstraints(ca=False, path_length=None), True),
            "key_usage": (usage(key_encipherment=True), True),
            "extended_key_usage": (x509.ExtendedKeyUsage([EK_CERTIFICATE_USAGE]), False),
            "alternative_name": (tpm_name(TPM), True),
            "authority": (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
        }
        builder = self._builder(x509.Name([]), self.name, EK_KEY)
        for extension in {**extensions, **changes}.values():
            if extension is not None:
                builder = builder.add_extension(extension[0], critical=extension[1])
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, key: Any) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - YEAR).not_valid_after(NOW + YEAR)


ROOT = Authority("vendor root")
ISSUER = Authority("vendor issuer", ROOT)


def refusal(der: bytes, *, chain: list[bytes] | None = None, ek: TpmPublic = EK, now: dt.datetime = NOW) -> AttestationError:
    with pytest.raises(AttestationError) as refused:
        verify_ek_certificate(der, [ISSUER.der] if chain is None else chain, [ROOT.pem], ek, now)
    return refused.value


def test_a_certificate_of_the_vendor_is_accepted_and_read() -> None:
    info = verify_ek_certificate(ISSUER.ek_certificate(), [ISSUER.der], [ROOT.pem], EK, NOW)
    assert (info.manufacturer, info.model, info.version) == ("id:4A415256", "testbed", "id:00010002")
    assert (info.issuer, info.not_after) == ("CN=vendor issuer", NOW + YEAR)


def test_a_root_that_issues_itself_and_one_of_several_roots_will_do() -> None:
    verify_ek_certificate(ROOT.ek_certificate(), [], [ROOT.pem], EK, NOW)
    verify_ek_certificate(ISSUER.ek_certificate(), [ISSUER.der], [Authority("other").pem + ROOT.pem], EK, NOW)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extended_key_usage": None}, "ExtendedKeyUsage is missing"),
        ({"extended_key_usage": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)}, "2.23.133.8.1"),
        ({"basic_constraints": None}, "BasicConstraints is missing"),
        ({"basic_constraints": (x509.BasicConstraints(ca=True, path_length=None), True)}, "CA=true"),
        ({"key_usage": None}, "KeyUsage is missing"),
        ({"key_usage": (usage(digital_signature=True), True)}, "key_encipherment"),
        ({"alternative_name": None}, "SubjectAlternativeName is missing"),
        ({"alternative_name": (x509.SubjectAlternativeName([x509.DNSName("tpm")]), True)}, "manufacturer"),
        ({"alternative_name": (tpm_name(TPM[:1]), True)}, "model"),
        ({"alternative_name": (tpm_name(TPM[:2]), True)}, "version"),
    ],
)
def test_a_certificate_that_lacks_what_the_profile_demands_is_refused(change: dict[str, Any], words: str) -> None:
    error = refusal(ISSUER.ek_certificate(**change))
    assert error.reason == "EK_CERTIFICATE_INVALID"
    assert words in error.message


@pytest.mark.parametrize("now", [NOW - YEAR - dt.timedelta(seconds=1), NOW + YEAR + dt.timedelta(seconds=1)])
def test_a_certificate_outside_its_time_is_refused(now: dt.datetime) -> None:
    assert refusal(ISSUER.ek_certificate(), now=now).reason == "EK_CERTIFICATE_UNTRUSTED"


def test_a_chain_through_a_certificate_that_is_no_ca_is_refused() -> None:
    impostor = Authority("impostor", ISSUER, ca=False)
    assert refusal(impostor.ek_certificate(), chain=[impostor.der, ISSUER.der]).reason == "EK_CERTIFICATE_UNTRUSTED"


def test_an_impostor_with_the_issuers_name_is_refused() -> None:
    assert refusal(Authority("vendor issuer").ek_certificate()).reason == "EK_CERTIFICATE_UNTRUSTED"


def test_a_self_signed_certificate_beside_the_chain_is_not_a_root() -> None:
    own = Authority("own root")
    assert refusal(own.ek_certificate(), chain=[own.der]).reason == "EK_CERTIFICATE_UNTRUSTED"


def test_a_good_certificate_of_another_tpm_is_refused() -> None:
    other = dataclasses.replace(EK, key=rsa.generate_private_key(65537, 2048).public_key())
    assert refusal(ISSUER.ek_certificate(), ek=other).reason == "EK_CERTIFICATE_KEY_MISMATCH"


def test_a_chain_longer_than_any_vendors_is_refused() -> None:
    authorities = [ISSUER]
    for depth in range(6):
        authorities.append(Authority(f"level {depth}", authorities[-1]))
    error = refusal(authorities[-1].ek_certificate(), chain=[authority.der for authority in authorities])
    assert error.reason == "EK_CERTIFICATE_UNTRUSTED"


def test_a_malformed_intermediate_is_refused_by_its_place() -> None:
    error = refusal(ISSUER.ek_certificate(), chain=[ISSUER.der, ISSUER.der[:-1]])
    assert (error.reason, "intermediate 1" in error.message) == ("EK_CERTIFICATE_INVALID", True)
