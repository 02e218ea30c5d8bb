# SPDX-License-Identifier: Apache-2.0
"""Signed leases and command authorisations: golden bytes, and nothing that was changed on the way is obeyed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jarvis.capture.v1 import agent_pb2
from jarvis.capture.v1.trust_pb2 import CommandAuthorization, Lease, SignedLease
from jarvis_trust.ca import generate_key, public_key_of
from jarvis_trust.commands import (
    AGENT_SERVICE,
    LEASED_METHODS,
    MAX_LEASE_BYTES,
    CommandSigner,
    command_signing_bytes,
    generate_command_key,
    verify_authorization,
    verify_lease,
)
from jarvis_trust.errors import CommandError, IdentityError, LeaseError

AGENT = "abcdefghijklmnopqrstuvwxyz234567"
START = AGENT_SERVICE + "StartCapture"
PRIVATE, PUBLIC = generate_command_key()
SIGNER = CommandSigner(PRIVATE)
# RFC 8032, 7.1, test 1: a fixed key, so that the signatures below never change.
FIXED = CommandSigner(
    b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpe0QrQVbJ2hp7Bhpw\n-----END PRIVATE KEY-----\n"
)


LEASE_METHODS = sorted(
    AGENT_SERVICE + rpc for rpc in ("StartCapture", "StopCapture", "GetMetrics", "StreamMetrics", "ListFlows", "StreamFlows")
)
"""Of the lease whose signature is known: not all that there are by now."""


def lease(**changes: Any) -> Lease:
    fields: dict[str, Any] = {
        "agent_id": AGENT,
        "ak_name": b"\0\x0b" + bytes(32),
        "tls_spki_sha256": b"\1" * 32,
        "firmware_sha256": b"\2" * 32,
        "session_id": b"\3" * 16,
        "tpm_reset_count": 4,
        "methods": LEASE_METHODS,
        "sequence": 5,
        "audit_head": b"\6" * 32,
        "audit_sequence": 7,
        "duration_ns": 600 * 10**9,
        "nonce": b"\x08" * 32,
    }
    return Lease(**{**fields, **changes})


CALL: dict[str, Any] = {"agent_id": AGENT, "method": START, "session_id": b"\3" * 16, "payload": b"\x0a\x00"}
TERMS: dict[str, Any] = {
    "lease_sequence": 5,
    "request_id": "123e4567-e89b-12d3-a456-426614174000",
    "principal": "spiffe://lab/operator/operator/bob",
    "expires_ns": 30 * 10**9,
}


def authorization(**changes: Any) -> CommandAuthorization:
    return SIGNER.authorize(**{**CALL, **TERMS, **changes})


def test_the_leased_methods_are_those_that_the_proto_marks() -> None:
    text = Path(agent_pb2.__file__).with_name("agent.proto").read_text(encoding="utf-8")
    marked = re.findall(r"// \[lease\][^\n]*\n(?:\s*//[^\n]*\n)*\s*rpc (\w+)", text)
    assert frozenset(AGENT_SERVICE + rpc for rpc in marked) == LEASED_METHODS


def test_every_leased_method_exists() -> None:
    service = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    names = {f"/{service.full_name}/{method.name}" for method in service.methods}
    assert names >= LEASED_METHODS


def test_a_signed_lease_is_read_back() -> None:
    assert verify_lease(SIGNER.sign_lease(lease()), PUBLIC) == lease()
    assert SIGNER.public_pem == PUBLIC


def test_a_leases_signature_covers_the_tag_the_length_and_the_bytes() -> None:
    signed = FIXED.sign_lease(lease())
    data = lease().SerializeToString(deterministic=True)
    key = load_pem_public_key(FIXED.public_pem)
    key.verify(signed.signature, b"jarvis-lease-v1\0" + len(data).to_bytes(4, "big") + data)  # type: ignore[call-arg, union-attr]
    assert signed.signature.hex() == GOLDEN_LEASE_SIGNATURE


def test_a_commands_signature_covers_these_bytes() -> None:
    fields = (
        AGENT.encode(), START.encode(), b"\3" * 16, (5).to_bytes(8, "big"), b"123e4567-e89b-12d3-a456-426614174000",
        b"spiffe://lab/operator/operator/bob", (30 * 10**9).to_bytes(8, "big"), b"\x0a\x00",
    )  # fmt: skip
    expected = b"jarvis-command-v1\0" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    assert command_signing_bytes(CommandAuthorization(**TERMS), **CALL) == expected
    assert FIXED.authorize(**CALL, **TERMS).signature.hex() == GOLDEN_COMMAND_SIGNATURE


def test_a_lease_of_another_fleets_key_is_refused() -> None:
    with pytest.raises(LeaseError) as refused:
        verify_lease(FIXED.sign_lease(lease()), PUBLIC)
    assert refused.value.reason == "LEASE_SIGNATURE_INVALID"


@given(position=st.integers(0), flip=st.integers(1, 255), in_signature=st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_changed_bit_of_a_lease_is_accepted(position: int, flip: int, in_signature: bool) -> None:
    signed = SIGNER.sign_lease(lease())
    data = bytearray(signed.signature if in_signature else signed.lease)
    data[position % len(data)] ^= flip
    changed = SignedLease(lease=signed.lease, signature=bytes(data))
    if not in_signature:
        changed = SignedLease(lease=bytes(data), signature=signed.signature)
    with pytest.raises(LeaseError) as refused:
        verify_lease(changed, PUBLIC)
    assert refused.value.reason == "LEASE_SIGNATURE_INVALID"


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(LeaseError) as refused:
        verify_lease(SignedLease(lease=SIGNER.sign_lease(lease()).lease, signature=bytes(size)), PUBLIC)
    assert refused.value.reason == "LEASE_SIGNATURE_INVALID"


INCOMPLETE = {
    "agent_id": "someone",
    "ak_name": bytes(33),
    "tls_spki_sha256": b"",
    "firmware_sha256": bytes(31),
    "session_id": bytes(15),
    "methods": [],
    "sequence": 0,
    "audit_head": b"",
    "duration_ns": 0,
    "nonce": bytes(31),
    "export_collectors": ["192.0.2.1/24"],
}


@pytest.mark.parametrize(("field", "value"), INCOMPLETE.items(), ids=INCOMPLETE.keys())
def test_a_lease_without_a_valid_field_is_neither_signed_nor_accepted(field: str, value: Any) -> None:
    bad = lease(**{field: value})
    words = "agent id" if field == "agent_id" else field
    with pytest.raises(LeaseError, match=words) as refused:
        SIGNER.sign_lease(bad)
    assert refused.value.reason == "LEASE_INVALID"
    with pytest.raises(LeaseError, match=words):
        verify_lease(signed_anyway(bad.SerializeToString()), PUBLIC)


def signed_anyway(data: bytes) -> SignedLease:
    """A good signature over bytes that sign_lease would refuse."""
    return SignedLease(lease=data, signature=SIGNER._key.sign(b"jarvis-lease-v1\0" + len(data).to_bytes(4, "big") + data))


def test_a_lease_of_more_than_a_day_or_of_odd_methods_is_refused() -> None:
    for change in ({"duration_ns": 24 * 3600 * 10**9 + 1}, {"methods": ["StartCapture"]}, {"methods": [START, START]}):
        with pytest.raises(LeaseError, match=next(iter(change))):
            SIGNER.sign_lease(lease(**change))


def test_a_lease_carries_as_many_collectors_as_a_policy_may_name() -> None:
    collectors = [f"{number:02}{'a' * 60}.{'b' * 28}.example" for number in range(64)]
    assert {len(name) for name in collectors} == {99}
    assert verify_lease(SIGNER.sign_lease(lease(export_collectors=collectors)), PUBLIC).export_collectors == collectors
    with pytest.raises(LeaseError, match="export_collectors has 65 entries; at most 64"):
        SIGNER.sign_lease(lease(export_collectors=[*collectors, "siem.example"]))


def test_signed_bytes_that_are_no_lease_are_refused() -> None:
    for data in (b"\xff", bytes(MAX_LEASE_BYTES + 1)):
        with pytest.raises(LeaseError) as refused:
            verify_lease(signed_anyway(data), PUBLIC)
        assert refused.value.reason == "LEASE_INVALID"


def test_an_authorised_command_is_obeyed_where_it_was_meant() -> None:
    verify_authorization(authorization(), PUBLIC, **CALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent_id", "b" * 32),
        ("method", AGENT_SERVICE + "StopCapture"),
        ("session_id", b"\4" * 16),
        ("payload", b"\x0a\x01"),
        ("payload", b""),
    ],
)
def test_a_command_for_another_agent_method_process_or_payload_is_refused(field: str, value: Any) -> None:
    with pytest.raises(CommandError) as refused:
        verify_authorization(authorization(), PUBLIC, **{**CALL, field: value})
    assert refused.value.reason == "COMMAND_SIGNATURE_INVALID"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_sequence", 6),
        ("request_id", "123e4567-e89b-12d3-a456-426614174001"),
        ("principal", "spiffe://lab/operator/admin/bob"),
        ("expires_ns", 31 * 10**9),
        ("signature", bytes(64)),
        ("signature", b""),
    ],
)
def test_changed_terms_of_a_command_are_refused(field: str, value: Any) -> None:
    changed = authorization()
    setattr(changed, field, value)
    with pytest.raises(CommandError) as refused:
        verify_authorization(changed, PUBLIC, **CALL)
    assert refused.value.reason == "COMMAND_SIGNATURE_INVALID"


def test_bytes_cannot_move_from_one_field_to_the_next() -> None:
    signed = command_signing_bytes(CommandAuthorization(request_id="ab", principal="c"), **CALL)
    assert signed != command_signing_bytes(CommandAuthorization(request_id="a", principal="bc"), **CALL)


def test_a_leases_signature_authorises_no_command() -> None:
    signed = SIGNER.sign_lease(lease())
    with pytest.raises(CommandError):
        verify_authorization(
            CommandAuthorization(**TERMS, signature=signed.signature), PUBLIC, **{**CALL, "payload": signed.lease}
        )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("agent_id", "x", "agent id"),
        ("method", "StartCapture", "method"),
        ("session_id", b"", "session_id"),
        ("lease_sequence", 0, "lease_sequence"),
        ("request_id", "1", "request_id"),
        ("request_id", "123E4567-E89B-12D3-A456-426614174000", "request_id"),
        ("principal", "bob", "SPIFFE"),
        ("expires_ns", 0, "expires_ns"),
    ],
)
def test_terms_that_make_no_sense_are_not_signed(field: str, value: Any, words: str) -> None:
    with pytest.raises(CommandError, match=words) as refused:
        authorization(**{field: value})
    assert refused.value.reason == "COMMAND_INVALID"


def test_terms_that_make_no_sense_are_refused_even_when_signed() -> None:
    odd = CommandAuthorization(**{**TERMS, "request_id": "1"})
    odd.signature = SIGNER._key.sign(command_signing_bytes(odd, **CALL))
    with pytest.raises(CommandError, match="request_id") as refused:
        verify_authorization(odd, PUBLIC, **CALL)
    assert refused.value.reason == "COMMAND_INVALID"


def ec_public_pem() -> bytes:
    return public_key_of(generate_key()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_only_ed25519_keys_sign_and_verify() -> None:
    for pem in (generate_key(), b"", PUBLIC):
        with pytest.raises(IdentityError) as refused:
            CommandSigner(pem)
        assert refused.value.reason == "KEY_INVALID"
    for pem in (b"", PRIVATE, ec_public_pem()):
        with pytest.raises(IdentityError) as refused:
            verify_lease(SIGNER.sign_lease(lease()), pem)
        assert refused.value.reason == "KEY_INVALID"


@given(data=st.binary(max_size=300), signature=st.binary(max_size=70))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_garbage_is_refused_with_a_reason(data: bytes, signature: bytes) -> None:
    with pytest.raises(LeaseError):
        verify_lease(SignedLease(lease=data, signature=signature), PUBLIC)
    with pytest.raises(LeaseError):
        verify_lease(signed_anyway(data), PUBLIC)
    with pytest.raises(CommandError):
        verify_authorization(CommandAuthorization(**TERMS, signature=signature), PUBLIC, **{**CALL, "payload": data})


GOLDEN_LEASE_SIGNATURE = (
    "7735470bd60b4616ad1003d6310ac0746c47df1a049e151aeee8f599fdbaacad"
    "a43b3b08b22361b856a80b7fa01cf594f832c9165599e66e730ad8d84eb05001"
)
GOLDEN_COMMAND_SIGNATURE = (
    "6990b5b10f2aebacdd7eab125ad7cdb99f1481d3a5f91ed592b50190e17a1e9a"
    "6c979a3c8e686d0c8269e59b956e9d0cbbc13fbfd34d4b5cc2e88e14afb44e0e"
)
