# SPDX-License-Identifier: Apache-2.0
"""Join files, tokens and the proof that ends an enrolment."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jarvis_trust.ca import FleetCA, generate_key, public_key_of
from jarvis_trust.commands import generate_command_key
from jarvis_trust.enrollment import check_enrollment_proof, enrollment_proof, new_secret
from jarvis_trust.errors import EnrollmentError, IdentityError
from jarvis_trust.joinfile import MAX_JOIN_FILE_BYTES, JoinFile, check_address, new_token, token_sha256

CA_PEM = FleetCA.create("lab.example").certificate_pem.decode()
COMMAND_PEM = generate_command_key()[1].decode()
TOKEN = "t" * 43
FIELDS: dict[str, str] = {
    "fleet": "lab.example",
    "token": TOKEN,
    "ca_pem": CA_PEM,
    "command_public_pem": COMMAND_PEM,
    "address": "controller.lab.example:7441",
}
JOIN = JoinFile(**FIELDS)


def with_fields(**changes: Any) -> str:
    return json.dumps({"format": "jarvis-join-v1", **FIELDS, **changes})


def test_a_join_file_is_read_back() -> None:
    assert JoinFile.from_json(JOIN.to_json()) == JOIN
    assert JoinFile.from_json(JOIN.to_json().encode()) == JOIN


def test_a_join_file_shows_its_token_to_nobody_by_accident() -> None:
    assert TOKEN not in repr(JOIN)
    assert TOKEN not in f"{JOIN}"


def test_a_join_file_on_disk_is_private_and_refused_when_it_is_not(tmp_path: Path) -> None:
    JOIN.save(tmp_path / "join.json")
    assert (tmp_path / "join.json").stat().st_mode & 0o777 == 0o600
    assert JoinFile.load(tmp_path / "join.json") == JOIN
    (tmp_path / "join.json").chmod(0o644)
    with pytest.raises(IdentityError) as refused:
        JoinFile.load(tmp_path / "join.json")
    assert refused.value.reason == "KEY_FILE_EXPOSED"


EC_PEM = public_key_of(generate_key()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
OTHER_CA = FleetCA.create("other.example").certificate_pem.decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[]", "object"),
        ("{}", "missing"),
        (with_fields(format="jarvis-join-v2"), "format"),
        (with_fields(release="x"), "'release' is unknown"),
        (with_fields(fleet="Lab"), "fleet"),
        (with_fields(fleet=7), "fleet"),
        (with_fields(token="short"), "token"),  # noqa: S106 - not a password
        (with_fields(token="t" * 42 + "\n"), "token"),
        (with_fields(token="\udcff" * 43), "token"),
        (with_fields(ca_pem="garbage"), "certificate"),
        (with_fields(ca_pem=OTHER_CA), "other.example"),
        (with_fields(ca_pem=CA_PEM + "é"), "ca_pem"),
        (with_fields(command_public_pem="garbage"), "command_public_pem"),
        (with_fields(command_public_pem=generate_key().decode()), "command_public_pem"),
        (with_fields(command_public_pem=EC_PEM), "Ed25519 is accepted"),
        (with_fields(address="nowhere"), "address"),
        (with_fields()[:-1] + ', "token": "' + TOKEN + '"}', "twice"),
        (with_fields() + " " * MAX_JOIN_FILE_BYTES, "at most"),
        (with_fields() + "x", "Extra data"),
    ],
)
def test_a_join_file_is_refused_by_the_field_that_is_wrong(text: str, words: str) -> None:
    with pytest.raises(EnrollmentError, match=words) as refused:
        JoinFile.from_json(text)
    assert refused.value.reason == "JOIN_FILE_INVALID"


@pytest.mark.parametrize("address", ["h:1", "10.0.0.1:65535", "[::1]:7441", "a-b.c:80"])
def test_host_and_port_are_an_address(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("address", ["", "h", "h:", ":1", "h:0", "h:65536", "::1:80", "[::1]", "h:1 ", "h:1\n", "a" * 301])
def test_anything_else_is_no_address(address: str) -> None:
    with pytest.raises(EnrollmentError) as refused:
        check_address(address)
    assert refused.value.reason == "ADDRESS_INVALID"


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_mutated_join_file_is_refused_or_is_valid(data: st.DataObject) -> None:
    valid = JOIN.to_json().encode()
    position = data.draw(st.integers(0, len(valid) - 1))
    changed = valid[:position] + data.draw(st.binary(max_size=3)) + valid[position + data.draw(st.integers(0, 3)) :]
    try:
        join = JoinFile.from_json(changed)
    except EnrollmentError:
        return
    assert JoinFile.from_json(join.to_json()) == join


def test_tokens_are_256_bits_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {43}


def test_the_controller_keeps_a_hash_that_is_no_token() -> None:
    assert token_sha256(TOKEN) == hashlib.sha256(b"jarvis-token-v1\0" + TOKEN.encode()).digest()
    assert token_sha256(TOKEN) != token_sha256("u" * 43)


SECRET, PARAMS, CHALLENGE = bytes(range(32)), b"params", b"challenge"


def test_the_proof_is_an_hmac_over_the_length_prefixed_transcript() -> None:
    transcript = b"jarvis-enrollment-v1\0" + b"\0\0\0\x06params" + b"\0\0\0\x09challenge"
    proof = enrollment_proof(SECRET, PARAMS, CHALLENGE)
    assert proof == hmac.new(SECRET, transcript, "sha256").digest()
    check_enrollment_proof(SECRET, PARAMS, CHALLENGE, proof)


@pytest.mark.parametrize(
    "arguments",
    [
        (bytes(32), PARAMS, CHALLENGE),
        (SECRET, b"paramS", CHALLENGE),
        (SECRET, PARAMS, b"challengE"),
        (SECRET, PARAMS + b"c", b"hallenge"),
    ],
)
def test_a_proof_for_another_secret_or_transcript_is_refused(arguments: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(EnrollmentError) as refused:
        check_enrollment_proof(SECRET, PARAMS, CHALLENGE, enrollment_proof(*arguments))
    assert refused.value.reason == "ENROLLMENT_PROOF_INVALID"


def test_an_empty_proof_or_a_secret_of_another_size_is_refused() -> None:
    with pytest.raises(EnrollmentError):
        check_enrollment_proof(SECRET, PARAMS, CHALLENGE, b"")
    with pytest.raises(EnrollmentError, match="31 bytes"):
        enrollment_proof(bytes(31), PARAMS, CHALLENGE)
    assert len(new_secret()) == 32
    assert new_secret() != new_secret()
