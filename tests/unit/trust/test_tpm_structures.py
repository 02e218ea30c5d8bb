# SPDX-License-Identifier: Apache-2.0
"""The TPM readers on structures built by hand: every byte means one thing, and garbage is refused with a reason."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis_trust.credential import make_credential
from jarvis_trust.errors import AttestationError
from jarvis_trust.tpm_structures import (
    QuoteAttest,
    TpmPublic,
    parse_attest_quote,
    parse_ecdsa_signature,
    parse_public,
    qualified_name,
)
from jarvis_trust.tpm_templates import (
    AK_ATTRIBUTES,
    EK_ATTRIBUTES,
    EK_POLICY_SHA256,
    TLS_KEY_ATTRIBUTES,
    check_ak_template,
    check_ek_template,
    check_tls_key_template,
)

SIGNER_NAME = b"\0\x0b" + b"\x11" * 32


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def attest(**changes: Any) -> bytes:
    """TPMS_ATTEST, field by field (TPM 2.0 Part 2, 10.12.12)."""
    fields: dict[str, bytes] = {
        "magic": bytes.fromhex("ff544347"),
        "type": bytes.fromhex("8018"),
        "signer": sized(SIGNER_NAME),
        "extra": sized(b"\x22" * 32),
        "clock": struct.pack(">QIIB", 1000, 2, 3, 1),
        "firmware": struct.pack(">Q", 0x2019102300163636),
        "count": struct.pack(">I", 1),
        "selection": bytes.fromhex("000b03004000"),
        "digest": sized(b"\x33" * 32),
    }
    return b"".join({**fields, **changes}.values())


def encode_quote(quote: QuoteAttest) -> bytes:
    """What `attest` writes, from what was read."""
    bitmap = sum(1 << index for index in quote.pcr_indices).to_bytes(3, "little")
    return attest(
        magic=struct.pack(">I", quote.magic),
        type=struct.pack(">H", quote.type),
        signer=sized(quote.qualified_signer),
        extra=sized(quote.extra_data),
        clock=struct.pack(">QIIB", quote.clock, quote.reset_count, quote.restart_count, quote.safe),
        firmware=struct.pack(">Q", quote.firmware_version),
        selection=struct.pack(">HB", quote.pcr_bank, 3) + bitmap,
        digest=sized(quote.pcr_digest),
    )


AK_KEY = ec.derive_private_key(0x1234, ec.SECP256R1()).public_key().public_numbers()
EK_MODULUS = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n


def ak(**changes: Any) -> bytes:
    """TPMT_PUBLIC of an attestation key."""
    fields: dict[str, bytes] = {
        "type": b"\0\x23",
        "name_alg": b"\0\x0b",
        "attributes": struct.pack(">I", AK_ATTRIBUTES),
        "policy": sized(b""),
        "symmetric": b"\0\x10",
        "scheme": b"\0\x18\0\x0b",
        "curve": b"\0\3",
        "kdf": b"\0\x10",
        "x": sized(AK_KEY.x.to_bytes(32, "big")),
        "y": sized(AK_KEY.y.to_bytes(32, "big")),
    }
    return b"".join({**fields, **changes}.values())


def ek(**changes: Any) -> bytes:
    """TPMT_PUBLIC of an endorsement key, template L-1."""
    fields: dict[str, bytes] = {
        "type": b"\0\1",
        "name_alg": b"\0\x0b",
        "attributes": struct.pack(">I", EK_ATTRIBUTES),
        "policy": sized(EK_POLICY_SHA256),
        "symmetric": b"\0\6\0\x80\0\x43",
        "scheme": b"\0\x10",
        "bits": struct.pack(">H", 2048),
        "exponent": bytes(4),
        "unique": sized(EK_MODULUS.to_bytes(256, "big")),
    }
    return b"".join({**fields, **changes}.values())


def encode_public(public: TpmPublic) -> bytes:
    """What `ak` and `ek` write, from what was read (the unique field as it was: leading zeros are the TPM's choice)."""
    symmetric = b"\0\x10" if public.symmetric is None else struct.pack(">HHH", *public.symmetric)
    scheme = b"\0\x10" if public.scheme is None else struct.pack(">HH", *public.scheme)
    head = struct.pack(">HHI", public.kind, public.name_alg, public.attributes) + sized(public.auth_policy) + symmetric + scheme
    if isinstance(public.key, rsa.RSAPublicKey):
        bits = public.key.key_size
        return head + struct.pack(">HI", bits, public.exponent) + sized(public.key.public_numbers().n.to_bytes(bits // 8, "big"))
    return head + struct.pack(">HH", public.parameter, 0x0010) + public.raw[len(head) + 4 :]


SIGNATURE = bytes.fromhex("0018000b") + sized(b"\x44" * 32) + sized(b"\x55" * 32)


def reason_for(read: Callable[[bytes], object], data: bytes) -> str:
    with pytest.raises(AttestationError) as refused:
        read(data)
    return refused.value.reason


def test_every_field_of_a_quote_is_read() -> None:
    assert parse_attest_quote(attest()) == QuoteAttest(
        magic=0xFF544347,
        type=0x8018,
        qualified_signer=SIGNER_NAME,
        extra_data=b"\x22" * 32,
        clock=1000,
        reset_count=2,
        restart_count=3,
        safe=True,
        firmware_version=0x2019102300163636,
        pcr_bank=0x000B,
        pcr_indices=(14,),
        pcr_digest=b"\x33" * 32,
    )


def test_pcr_bits_are_counted_from_the_first_bytes_lowest() -> None:
    assert parse_attest_quote(attest(selection=bytes.fromhex("000b03018080"))).pcr_indices == (0, 15, 23)
    assert parse_attest_quote(attest(selection=bytes.fromhex("000b03000000"))).pcr_indices == ()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (attest(magic=bytes.fromhex("ff544348")), "ATTEST_MAGIC_WRONG"),
        (attest(type=bytes.fromhex("8017")), "ATTEST_TYPE_WRONG"),
        (attest(count=struct.pack(">I", 0), selection=b""), "ATTEST_PCR_SELECTION_INVALID"),
        (attest(count=struct.pack(">I", 2), selection=bytes.fromhex("000b03004000") * 2), "ATTEST_PCR_SELECTION_INVALID"),
        (attest(count=b"\xff" * 4), "ATTEST_PCR_SELECTION_INVALID"),
        (attest(selection=bytes.fromhex("000b0400400000")), "ATTEST_PCR_SELECTION_INVALID"),
        (attest(selection=bytes.fromhex("000b020040")), "ATTEST_PCR_SELECTION_INVALID"),
        (attest() + b"\0", "ATTEST_INVALID"),
        (attest()[:-1], "ATTEST_INVALID"),
        (attest(signer=sized(b"")), "ATTEST_INVALID"),
        (attest(signer=sized(SIGNER_NAME + b"\0")), "ATTEST_INVALID"),
        (attest(extra=sized(bytes(65))), "ATTEST_INVALID"),
        (attest(digest=sized(bytes(65))), "ATTEST_INVALID"),
        (attest(clock=struct.pack(">QIIB", 1000, 2, 3, 2)), "ATTEST_INVALID"),
        (bytes(1025), "ATTEST_INVALID"),
        (b"", "ATTEST_INVALID"),
    ],
)
def test_an_attestation_is_refused_with_its_own_reason(data: bytes, reason: str) -> None:
    assert reason_for(parse_attest_quote, data) == reason


def test_built_keys_have_the_accepted_templates() -> None:
    check_ak_template(parse_public(ak()))
    check_ek_template(parse_public(ek()))


@pytest.mark.parametrize(
    "data",
    [
        ak(type=b"\0\x08"),
        ak(name_alg=b"\0\4"),
        ak(policy=sized(bytes(65))),
        ak(symmetric=b"\0\x25\0\x80\0\x43"),
        ak(symmetric=b"\0\6\0\x80\0\x44"),
        ak(scheme=b"\0\x16\0\x0b"),
        ak(scheme=b"\0\x1a\0\x0b\0\0"),
        ak(curve=b"\0\5"),
        ak(kdf=b"\0\x20\0\x0b"),
        ak(x=sized(b"\1" * 32)),
        ak(x=sized(b"")),
        ak(x=sized(b"\0" + AK_KEY.x.to_bytes(32, "big"))),
        ak() + b"\0",
        ak()[:-1],
        ek(bits=struct.pack(">H", 1024)),
        ek(exponent=struct.pack(">I", 3)),
        ek(unique=sized(bytes(256))),
        ek(unique=sized(b"\x7f" * 256)),
        ek(unique=sized(b"\xfe" * 256)),
        ek(unique=sized(bytes(255))),
        ek(scheme=b"\0\x18\0\x0b"),
        bytes(1025),
        b"",
    ],
)
def test_a_malformed_public_area_is_refused(data: bytes) -> None:
    assert reason_for(parse_public, data) == "TPM_PUBLIC_INVALID"


@pytest.mark.parametrize("bit", range(32))
def test_any_other_attribute_bit_makes_it_no_ak_no_ek_and_no_tls_key(bit: int) -> None:
    changed = parse_public(ak(attributes=struct.pack(">I", AK_ATTRIBUTES ^ (1 << bit))))
    assert reason_for(lambda _: check_ak_template(changed), b"") == "AK_TEMPLATE_WRONG"
    changed = parse_public(ek(attributes=struct.pack(">I", EK_ATTRIBUTES ^ (1 << bit))))
    assert reason_for(lambda _: check_ek_template(changed), b"") == "EK_TEMPLATE_WRONG"
    changed = parse_public(ak(attributes=struct.pack(">I", TLS_KEY_ATTRIBUTES ^ (1 << bit))))
    assert reason_for(lambda _: check_tls_key_template(changed), b"") == "TLS_KEY_TEMPLATE_WRONG"


def test_an_unrestricted_key_is_a_tls_key_and_a_restricted_one_is_not() -> None:
    check_tls_key_template(parse_public(ak(attributes=struct.pack(">I", TLS_KEY_ATTRIBUTES))))
    assert reason_for(lambda data: check_tls_key_template(parse_public(data)), ak()) == "TLS_KEY_TEMPLATE_WRONG"


P384 = ec.derive_private_key(5, ec.SECP384R1()).public_key().public_numbers()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (ak(policy=sized(bytes(32))), "authPolicy"),
        (ak(symmetric=b"\0\6\0\x80\0\x43"), "symmetric"),
        (ak(scheme=b"\0\x10"), "scheme"),
        (ak(scheme=b"\0\x18\0\4"), "scheme"),
        (ak(curve=b"\0\4", x=sized(P384.x.to_bytes(48, "big")), y=sized(P384.y.to_bytes(48, "big"))), "curveID"),
    ],
)
def test_an_ak_of_another_template_is_refused_by_the_field(data: bytes, field: str) -> None:
    with pytest.raises(AttestationError, match=field) as refused:
        check_ak_template(parse_public(data))
    assert refused.value.reason == "AK_TEMPLATE_WRONG"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (ek(policy=sized(bytes(32))), "authPolicy"),
        (ek(symmetric=b"\0\x10"), "symmetric"),
        (ek(symmetric=b"\0\6\1\0\0\x43"), "symmetric"),
        (ek(scheme=b"\0\x14\0\x0b"), "scheme"),
        (ek(bits=struct.pack(">H", 3072), unique=sized(b"\xff" * 384)), "keyBits"),
        (ek(exponent=struct.pack(">I", 65537)), "exponent"),
    ],
)
def test_an_ek_of_another_template_is_refused_by_the_field(data: bytes, field: str) -> None:
    with pytest.raises(AttestationError, match=field) as refused:
        check_ek_template(parse_public(data))
    assert refused.value.reason == "EK_TEMPLATE_WRONG"


def test_no_credential_is_made_for_a_wrong_ek_name_or_secret() -> None:
    name, good = b"\0\x0b" + bytes(32), parse_public(ek())
    for public, ak_name, secret, reason in (
        (parse_public(ak()), name, bytes(32), "EK_TEMPLATE_WRONG"),
        (good, name[:-1], bytes(32), "CREDENTIAL_INVALID"),
        (good, name, b"", "CREDENTIAL_INVALID"),
        (good, name, bytes(33), "CREDENTIAL_INVALID"),
    ):
        with pytest.raises(AttestationError) as refused:
            make_credential(public, ak_name, secret)
        assert refused.value.reason == reason


def test_two_credentials_of_one_secret_differ() -> None:
    first, second = (make_credential(parse_public(ek()), b"\0\x0b" + bytes(32), bytes(32)) for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_signature_is_given_as_der() -> None:
    hash_alg, der = parse_ecdsa_signature(SIGNATURE)
    assert hash_alg == 0x000B
    assert decode_dss_signature(der) == (int.from_bytes(b"\x44" * 32, "big"), int.from_bytes(b"\x55" * 32, "big"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\x14" + SIGNATURE[2:],
        SIGNATURE + b"\0",
        SIGNATURE[:-1],
        bytes.fromhex("0018000b") + sized(b"") + sized(b"\1"),
        bytes.fromhex("0018000b") + sized(b"\0") + sized(b"\1"),
        bytes.fromhex("0018000b") + sized(b"\1") + sized(bytes(32)),
        bytes.fromhex("0018000b") + sized(b"\1" * 49) + sized(b"\1"),
        bytes(1025),
    ],
)
def test_a_malformed_signature_is_refused(data: bytes) -> None:
    assert reason_for(parse_ecdsa_signature, data) == "TPM_SIGNATURE_INVALID"


def test_the_qualified_name_depends_on_hierarchy_and_name() -> None:
    assert qualified_name(SIGNER_NAME).hex() == GOLDEN_QUALIFIED_NAME
    assert qualified_name(SIGNER_NAME, 0x40000001) != qualified_name(SIGNER_NAME)


def mutated(data: st.DataObject, valid: bytes) -> bytes:
    """`valid` with up to three bytes replaced, removed or inserted."""
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    return bytes(changed)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_mutated_quote_is_refused_or_says_exactly_its_bytes(data: st.DataObject) -> None:
    changed = mutated(data, attest())
    try:
        quote = parse_attest_quote(changed)
    except AttestationError:
        return
    assert encode_quote(quote) == changed


@given(data=st.data(), valid=st.sampled_from([ak(), ek()]))
@settings(max_examples=400, deadline=None)
def test_a_mutated_public_area_is_refused_or_says_exactly_its_bytes(data: st.DataObject, valid: bytes) -> None:
    changed = mutated(data, valid)
    try:
        public = parse_public(changed)
    except AttestationError:
        return
    assert encode_public(public) == changed


@given(data=st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda tail: attest()[:40] + tail)))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_with_a_reason(data: bytes) -> None:
    readers: tuple[Callable[[bytes], object], ...] = (parse_attest_quote, parse_public, parse_ecdsa_signature)
    for read in readers:
        try:
            read(data)
        except AttestationError as refused:
            assert refused.reason  # noqa: PT017 - any reason will do, but nothing else may escape


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_public_reader_is_no_laxer_than_libtss2(data: st.DataObject) -> None:
    types = pytest.importorskip("tpm2_pytss.types", reason="tpm2-pytss is not installed")
    exception = pytest.importorskip("tpm2_pytss").TSS2_Exception
    changed = mutated(data, data.draw(st.sampled_from([ak(), ek()])))
    try:
        ours = parse_public(changed)
    except AttestationError:
        return
    try:
        theirs, consumed = types.TPMT_PUBLIC.unmarshal(changed)
    except exception as error:
        raise AssertionError("libtss2 refuses what was accepted here") from error
    assert consumed == len(changed)
    assert theirs.marshal() == changed
    assert types.TPM2B_PUBLIC(theirs).get_name() == ours.name


GOLDEN_QUALIFIED_NAME = "000ba4d4b9c7fc355222c7dc07e6154bd47d7fc31806e9a5ba49999d15aa94fac168"
