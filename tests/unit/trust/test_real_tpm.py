# SPDX-License-Identifier: Apache-2.0
"""What a real TPM 2.0 (swtpm) makes is read, judged and challenged by the pure-Python side."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jarvis_trust.credential import make_credential
from jarvis_trust.ek_certificate import verify_ek_certificate
from jarvis_trust.errors import AttestationError
from jarvis_trust.identities import agent_id_from_ek
from jarvis_trust.tpm_structures import (
    ALG_SHA256,
    TpmPublic,
    parse_attest_quote,
    parse_ecdsa_signature,
    parse_public,
    qualified_name,
)
from jarvis_trust.tpm_templates import check_ak_template, check_ek_template

from tests.unit.trust.support import AK_TEMPLATE_ATTRIBUTES, RealTpm, signing_key_template

NOW = datetime.now(UTC) + timedelta(days=1)  # the certificates are made after this line runs


def ek(tpm: RealTpm) -> TpmPublic:
    return parse_public(tpm.ek_public)


def test_a_real_quote_is_read_in_full_and_its_signature_holds(tpm: RealTpm) -> None:
    quote, ak = parse_attest_quote(tpm.attest), parse_public(tpm.ak_public)
    hash_alg, der = parse_ecdsa_signature(tpm.signature)
    assert hash_alg == ALG_SHA256
    assert isinstance(ak.key, ec.EllipticCurvePublicKey)
    ak.key.verify(der, tpm.attest, ec.ECDSA(hashes.SHA256()))
    assert quote.extra_data == bytes(range(32))
    assert (quote.pcr_bank, quote.pcr_indices) == (ALG_SHA256, (14,))
    assert quote.pcr_digest == hashlib.sha256(tpm.pcr14).digest()
    assert quote.qualified_signer == qualified_name(ak.name)
    assert quote.reset_count >= 1


def test_the_readers_agree_with_libtss2_on_every_field(tpm: RealTpm) -> None:
    from tpm2_pytss.types import TPM2B_PUBLIC, TPMS_ATTEST, TPMT_PUBLIC  # noqa: PLC0415

    ours = parse_attest_quote(tpm.attest)
    theirs, consumed = TPMS_ATTEST.unmarshal(tpm.attest)
    assert consumed == len(tpm.attest)
    clock = theirs.clockInfo
    assert (ours.clock, ours.reset_count, ours.restart_count, ours.safe, ours.firmware_version) == (
        int(clock.clock), int(clock.resetCount), int(clock.restartCount), bool(clock.safe), int(theirs.firmwareVersion)
    )  # fmt: skip
    assert ours.qualified_signer == bytes(theirs.qualifiedSigner)
    assert ours.pcr_digest == bytes(theirs.attested.quote.pcrDigest)
    for raw in (tpm.ek_public, tpm.ak_public):
        mine = parse_public(raw)
        area, _ = TPMT_PUBLIC.unmarshal(raw)
        assert mine.name == bytes(TPM2B_PUBLIC(area).get_name())
        assert mine.attributes == int(area.objectAttributes)
        assert mine.auth_policy == bytes(area.authPolicy)
        assert mine.spki_der == area.to_der()


def test_the_keys_of_a_real_tpm_have_the_accepted_templates(tpm: RealTpm) -> None:
    check_ek_template(ek(tpm))
    check_ak_template(parse_public(tpm.ak_public))


def test_an_ek_is_no_ak_and_an_ak_is_no_ek(tpm: RealTpm) -> None:
    with pytest.raises(AttestationError, match="type is 1, 35 is accepted") as refused:
        check_ak_template(ek(tpm))
    assert refused.value.reason == "AK_TEMPLATE_WRONG"
    with pytest.raises(AttestationError, match="type is 35, 1 is accepted") as refused:
        check_ek_template(parse_public(tpm.ak_public))
    assert refused.value.reason == "EK_TEMPLATE_WRONG"


@pytest.mark.parametrize(
    ("bit", "words"),
    [
        (1 << 16, "restricted is clear, set is accepted"),
        (1 << 10, "noDA is clear, set is accepted"),
    ],
)
def test_a_key_that_a_genuine_tpm_made_with_other_attributes_is_no_ak(tpm: RealTpm, bit: int, words: str) -> None:
    from tpm2_pytss.constants import ESYS_TR  # noqa: PLC0415

    handle, public, *_ = tpm.esapi.create_primary(None, signing_key_template(AK_TEMPLATE_ATTRIBUTES & ~bit), ESYS_TR.ENDORSEMENT)
    tpm.esapi.flush_context(handle)
    with pytest.raises(AttestationError, match=words):
        check_ak_template(parse_public(public.publicArea.marshal()))


def test_an_ak_of_the_owner_hierarchy_shows_in_the_qualified_signer(tpm: RealTpm) -> None:
    from tpm2_pytss.constants import ESYS_TR  # noqa: PLC0415

    handle, public, *_ = tpm.esapi.create_primary(None, signing_key_template(AK_TEMPLATE_ATTRIBUTES), ESYS_TR.OWNER)
    attest, _ = tpm.esapi.quote(handle, "sha256:14", b"nonce")
    tpm.esapi.flush_context(handle)
    name = parse_public(public.publicArea.marshal()).name
    assert parse_attest_quote(bytes(attest)).qualified_signer != qualified_name(name)
    assert parse_attest_quote(bytes(attest)).qualified_signer == qualified_name(name, 0x40000001)


def test_a_time_attestation_of_the_same_key_is_no_quote(tpm: RealTpm) -> None:
    from tpm2_pytss.types import TPMT_SIG_SCHEME  # noqa: PLC0415

    attest, _ = tpm.esapi.get_time(tpm.ak_handle, b"nonce", TPMT_SIG_SCHEME(scheme=0x0010))
    with pytest.raises(AttestationError) as refused:
        parse_attest_quote(bytes(attest))
    assert refused.value.reason == "ATTEST_TYPE_WRONG"


@given(secret=st.binary(min_size=1, max_size=32))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_tpm_recovers_every_secret_that_make_credential_hides(tpm: RealTpm, secret: bytes) -> None:
    ak = parse_public(tpm.ak_public)
    assert tpm.activate(*make_credential(ek(tpm), ak.name, secret)) == secret


def test_the_tpm_opens_no_credential_for_another_name(tpm: RealTpm) -> None:
    from tpm2_pytss import TSS2_Exception  # noqa: PLC0415

    other_name = b"\0\x0b" + hashlib.sha256(b"another key").digest()
    with pytest.raises(TSS2_Exception, match="integrity check failed"):
        tpm.activate(*make_credential(ek(tpm), other_name, bytes(32)))


def test_a_credential_of_libtss2_and_ours_have_the_same_form(tpm: RealTpm) -> None:
    from tpm2_pytss.types import TPM2B_NAME, TPM2B_PUBLIC, TPMT_PUBLIC  # noqa: PLC0415
    from tpm2_pytss.utils import make_credential as reference  # noqa: PLC0415

    area, _ = TPMT_PUBLIC.unmarshal(tpm.ek_public)
    name = parse_public(tpm.ak_public).name
    blob, secret = reference(TPM2B_PUBLIC(area), bytes(32), TPM2B_NAME(name))
    ours = make_credential(ek(tpm), name, bytes(32))
    assert [len(part) for part in ours] == [len(blob.marshal()), len(secret.marshal())]


def test_the_vendors_certificate_of_this_ek_is_accepted(tpm: RealTpm) -> None:
    info = verify_ek_certificate(tpm.ek_certificate, [tpm.issuer], [tpm.root_pem], ek(tpm), NOW)
    assert info.sha256 == hashlib.sha256(tpm.ek_certificate).digest()
    assert info.manufacturer.startswith("id:")
    assert info.model
    assert info.version
    assert len(agent_id_from_ek(ek(tpm).spki_der)) == 32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("another vendor's root", "EK_CERTIFICATE_UNTRUSTED"),
        ("no intermediate", "EK_CERTIFICATE_UNTRUSTED"),
        ("before it was issued", "EK_CERTIFICATE_UNTRUSTED"),
        ("another key", "EK_CERTIFICATE_KEY_MISMATCH"),
        ("trailing byte", "EK_CERTIFICATE_INVALID"),
        ("the CA's certificate instead", "EK_CERTIFICATE_INVALID"),
        ("no roots", "EK_ROOTS_INVALID"),
        ("garbage roots", "EK_ROOTS_INVALID"),
        ("nine intermediates", "EK_CERTIFICATE_INVALID"),
        ("a huge certificate", "EK_CERTIFICATE_INVALID"),
    ],
)
def test_an_ek_certificate_is_refused_with(tpm: RealTpm, change: str, reason: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "another vendor's root": {"roots_pem": [tpm.other_vendor_root_pem]},
        "no intermediate": {"chain_ders": []},
        "before it was issued": {"now": NOW - timedelta(days=400)},
        "another key": {"ek_public": another_ek(ek(tpm))},
        "trailing byte": {"der": tpm.ek_certificate + b"\0"},
        "the CA's certificate instead": {"der": tpm.issuer},
        "no roots": {"roots_pem": []},
        "garbage roots": {"roots_pem": [b"not a certificate"]},
        "nine intermediates": {"chain_ders": [tpm.issuer] * 9},
        "a huge certificate": {"der": bytes(10_000)},
    }
    accepted = {
        "der": tpm.ek_certificate,
        "chain_ders": [tpm.issuer],
        "roots_pem": [tpm.root_pem],
        "ek_public": ek(tpm),
        "now": NOW,
    }
    with pytest.raises(AttestationError) as refused:
        verify_ek_certificate(**{**accepted, **changes[change]})
    assert refused.value.reason == reason


def another_ek(public: TpmPublic) -> TpmPublic:
    """The same template with another modulus."""
    for change in range(3, 99, 2):
        modulus = int.from_bytes(public.raw[-256:], "big") ^ (change << 8)
        try:
            return parse_public(public.raw[:-256] + modulus.to_bytes(256, "big"))
        except AttestationError:
            continue
    raise AssertionError("no other modulus was accepted")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_changed_byte_of_a_real_ek_certificate_is_accepted(tpm: RealTpm, data: st.DataObject) -> None:
    # The count of unused bits before the signature may be 1 where the signature's last bit is 0: the same signature, by DER.
    unused_bits = len(tpm.ek_certificate) - len(x509.load_der_x509_certificate(tpm.ek_certificate).signature) - 1
    position = data.draw(st.integers(0, len(tpm.ek_certificate) - 1).filter(lambda position: position != unused_bits))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != tpm.ek_certificate[position]))
    changed = tpm.ek_certificate[:position] + bytes([value]) + tpm.ek_certificate[position + 1 :]
    with pytest.raises(AttestationError):
        verify_ek_certificate(changed, [tpm.issuer], [tpm.root_pem], ek(tpm), NOW)


def test_the_ek_certificates_chain_has_a_real_intermediate(tpm: RealTpm) -> None:
    issuer = x509.load_der_x509_certificate(tpm.issuer)
    assert issuer.issuer != issuer.subject
