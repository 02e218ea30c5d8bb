# SPDX-License-Identifier: Apache-2.0
"""A TLS key is in the TPM when the attestation key says so, of this very key, for this very enrolment."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis_trust.errors import TrustError
from jarvis_trust.tls_certification import certification_binding, check_certification, check_tls_key
from jarvis_trust.tpm_structures import parse_attest_certify, parse_public, qualified_name
from jarvis_trust.tpm_templates import AK_ATTRIBUTES, TLS_KEY_ATTRIBUTES

from tests.unit.controller.software_tpm import QUOTE, SoftwareTpm, ecc_public, sized

TPM = SoftwareTpm()
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = ecc_public(KEY.public_key(), TLS_KEY_ATTRIBUTES)
OTHER = ecc_public(OTHER_KEY.public_key(), TLS_KEY_ATTRIBUTES)
NONCE = bytes(range(32))
TLS = check_tls_key(PUBLIC, KEY.public_key())


def certified(**changes: bytes) -> bytes:
    return TPM.certify(TLS.name, certification_binding(NONCE, TPM.agent_id), **changes)


def judge(certify: bytes, signature: bytes | None = None, *, nonce: bytes = NONCE, agent_id: str = TPM.agent_id) -> None:
    signed = TPM.sign(certify) if signature is None else signature
    check_certification(tls=TLS, ak=TPM.ak, certify=certify, signature=signed, nonce=nonce, agent_id=agent_id)


def reason_of(act: Callable[[], Any]) -> str:
    with pytest.raises(TrustError) as refused:
        act()
    return refused.value.reason


def test_the_aks_word_for_this_key_and_challenge_is_taken() -> None:
    judge(certified())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"magic": b"\xff\x54\x43\x48"}, "ATTEST_MAGIC_WRONG"),
        ({"type": QUOTE}, "ATTEST_TYPE_WRONG"),
        ({"signer": sized(qualified_name(TPM.ak.name, 0x40000001))}, "TLS_KEY_SIGNER_MISMATCH"),
        ({"extra": sized(bytes(32))}, "TLS_KEY_NONCE_MISMATCH"),
        ({"extra": sized(b"")}, "TLS_KEY_NONCE_MISMATCH"),
        ({"name": sized(parse_public(OTHER).name)}, "TLS_KEY_NAME_MISMATCH"),
        ({"qualified_name": sized(qualified_name(TLS.name, 0x40000001))}, "TLS_KEY_NAME_MISMATCH"),
        ({"name": sized(b"")}, "ATTEST_INVALID"),
        ({"clock": struct.pack(">QIIB", 1, 1, 1, 2)}, "ATTEST_INVALID"),
        ({"tail": b"\0"}, "ATTEST_INVALID"),
    ],
)
def test_a_certification_that_says_anything_else_is_refused(changes: dict[str, bytes], reason: str) -> None:
    assert reason_of(lambda: judge(certified(**changes))) == reason


def test_a_certification_of_another_enrolment_or_agent_is_refused() -> None:
    recorded = certified()
    assert reason_of(lambda: judge(recorded, nonce=bytes(32))) == "TLS_KEY_NONCE_MISMATCH"
    assert reason_of(lambda: judge(recorded, agent_id=SoftwareTpm().agent_id)) == "TLS_KEY_NONCE_MISMATCH"
    assert reason_of(lambda: judge(recorded, nonce=b"short")) == "TLS_KEY_NONCE_INVALID"


def test_a_signature_of_any_other_key_is_refused() -> None:
    assert reason_of(lambda: judge(certified(), TPM.sign(certified(), OTHER_KEY))) == "TLS_KEY_SIGNATURE_INVALID"
    assert reason_of(lambda: judge(certified(), TPM.sign(certified(), KEY))) == "TLS_KEY_SIGNATURE_INVALID"
    signature = bytearray(TPM.sign(certified()))
    signature[3] = 0x04  # SHA-1
    assert reason_of(lambda: judge(certified(), bytes(signature))) == "TLS_KEY_SIGNATURE_INVALID"


def test_nothing_is_taken_for_a_certification() -> None:
    assert reason_of(lambda: judge(b"", b"")) == "TLS_KEY_NOT_CERTIFIED"
    assert reason_of(lambda: judge(certified(), b"")) == "TLS_KEY_NOT_CERTIFIED"


def test_the_key_must_be_the_requests_and_have_the_template() -> None:
    assert reason_of(lambda: check_tls_key(PUBLIC, OTHER_KEY.public_key())) == "TLS_KEY_CSR_MISMATCH"
    restricted = ecc_public(KEY.public_key(), AK_ATTRIBUTES)
    assert reason_of(lambda: check_tls_key(restricted, KEY.public_key())) == "TLS_KEY_TEMPLATE_WRONG"
    assert reason_of(lambda: check_tls_key(PUBLIC + b"\0", KEY.public_key())) == "TPM_PUBLIC_INVALID"


VALID = certified()


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_cut_or_lengthened_certification_is_never_read(data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(VALID) - 1))
    assert reason_of(lambda: parse_attest_certify(VALID[:cut])) == "ATTEST_INVALID"
    tail = data.draw(st.binary(min_size=1, max_size=8))
    assert reason_of(lambda: parse_attest_certify(VALID + tail)) == "ATTEST_INVALID"


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_reader_agrees_with_libtss2_on_whatever_it_takes(data: st.DataObject) -> None:
    pytss = pytest.importorskip("tpm2_pytss.types", reason="tpm2-pytss is not installed: the agent extra brings it")
    changed = bytearray(VALID)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(VALID) - 1))] = data.draw(st.integers(0, 255))
    try:
        ours = parse_attest_certify(bytes(changed))
    except TrustError:
        return
    theirs, consumed = pytss.TPMS_ATTEST.unmarshal(bytes(changed))
    assert consumed == len(changed)
    certify = theirs.attested.certify
    assert (ours.qualified_signer, ours.extra_data) == (bytes(theirs.qualifiedSigner), bytes(theirs.extraData))
    assert (ours.name, ours.qualified_name) == (bytes(certify.name), bytes(certify.qualifiedName))
