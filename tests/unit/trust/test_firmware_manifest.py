# SPDX-License-Identifier: Apache-2.0
"""The signed manifest: what is accepted, and each reason for refusing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jarvis_trust.encoding import instant_ns
from jarvis_trust.errors import FirmwareError
from jarvis_trust.firmware import MAX_MANIFEST_BYTES, MAX_MINIMUM, Manifest, sign_manifest, verify_manifest
from jarvis_trust.release_root import ReleaseRoot
from jarvis_trust.release_signatures import encode_signatures, load_release_public_key, parse_signatures, sign_bytes

from tests.unit.trust.support import KeyPair

DIGEST = "ab" * 32
FIELDS: dict[str, Any] = {
    "name": "jarvis-capture",
    "version": "1.2.3",
    "security_version": 7,
    "architecture": "x86_64",
    "objects": {"libjarvis_capture.so": DIGEST},
    "created": "2026-11-22T10:00:00Z",
    "expires": "2027-11-22T10:00:00Z",
    "minimum_security_version": 3,
}
GOLDEN = (
    b'{"architecture":"x86_64","created":"2026-11-22T10:00:00Z","expires":"2027-11-22T10:00:00Z","format":"jarvis-manifest-v2",'
    b'"minimum_security_version":3,"name":"jarvis-capture",'
    b'"objects":{"libjarvis_capture.so":"' + DIGEST.encode() + b'"},"security_version":7,"version":"1.2.3"}'
)


def sign_raw(data: bytes, key: KeyPair) -> bytes:
    """A valid release signature over any bytes, well-formed or not."""
    return encode_signatures([sign_bytes(data, key.private)])


def reason_for(manifest: bytes, signature: bytes, root: ReleaseRoot, **options: Any) -> str:
    with pytest.raises(FirmwareError) as refused:
        verify_manifest(manifest, signature, root, **options)
    return refused.value.reason


def test_the_signed_bytes_are_these() -> None:
    assert Manifest(**FIELDS).to_bytes() == GOLDEN


def test_what_was_signed_is_what_is_read(release_key: KeyPair) -> None:
    manifest = Manifest(**FIELDS)
    data, signature = sign_manifest(manifest, release_key.private)
    assert verify_manifest(data, signature, release_key.root, floor=7, architecture="x86_64") == manifest


def test_openssl_verifies_a_signature_too(release_key: KeyPair, tmp_path: Path) -> None:
    data, signatures = sign_manifest(Manifest(**FIELDS), release_key.private)
    (signature,) = parse_signatures(signatures, what="the manifest")
    for name, content in (("manifest.json", data), ("manifest.bin", signature.value), ("release.pub", release_key.public)):
        (tmp_path / name).write_bytes(content)
    command = ["openssl", "dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"]
    command += ["-verify", "release.pub", "-signature", "manifest.bin", "manifest.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"Verified OK\n")


def test_a_missing_manifest_or_signature_is_unsigned(release_key: KeyPair) -> None:
    assert reason_for(b"", b"x", release_key.root) == "FIRMWARE_UNSIGNED"
    assert reason_for(GOLDEN, b"", release_key.root) == "FIRMWARE_UNSIGNED"


def test_another_release_keys_signature_is_refused(release_key: KeyPair, other_release_key: KeyPair) -> None:
    data, signature = sign_manifest(Manifest(**FIELDS), other_release_key.private)
    assert reason_for(data, signature, release_key.root) == "FIRMWARE_SIGNATURE_INVALID"


@pytest.mark.parametrize("size", [1, 256, 511, 513])
def test_a_signature_of_another_size_is_refused(release_key: KeyPair, size: int) -> None:
    (signature,) = parse_signatures(sign_raw(GOLDEN, release_key), what="it")
    other = encode_signatures([dataclasses.replace(signature, value=bytes(size))])
    assert reason_for(GOLDEN, other, release_key.root) == "FIRMWARE_SIGNATURE_INVALID"
    assert reason_for(GOLDEN, bytes(size), release_key.root) == "FIRMWARE_SIGNATURE_INVALID"


def test_a_pkcs1_signature_of_the_right_key_is_refused(release_key: KeyPair) -> None:
    private = load_pem_private_key(release_key.private, password=None)
    assert isinstance(private, rsa.RSAPrivateKey)
    (genuine,) = parse_signatures(sign_raw(GOLDEN, release_key), what="it")
    pkcs1 = private.sign(GOLDEN, padding.PKCS1v15(), hashes.SHA256())
    signature = encode_signatures([dataclasses.replace(genuine, value=pkcs1)])
    assert reason_for(GOLDEN, signature, release_key.root) == "FIRMWARE_SIGNATURE_INVALID"


def test_a_release_below_the_floor_is_refused_and_one_at_the_floor_is_not(release_key: KeyPair) -> None:
    data, signature = sign_manifest(Manifest(**FIELDS), release_key.private)
    assert reason_for(data, signature, release_key.root, floor=8) == "FIRMWARE_BELOW_FLOOR"
    assert verify_manifest(data, signature, release_key.root, floor=7).security_version == 7


def test_a_release_is_refused_from_the_instant_of_its_expiry_on(release_key: KeyPair) -> None:
    data, signature = sign_manifest(Manifest(**FIELDS), release_key.private)
    expires = instant_ns(FIELDS["expires"])
    assert verify_manifest(data, signature, release_key.root, now_ns=expires - 1).expires == FIELDS["expires"]
    assert reason_for(data, signature, release_key.root, now_ns=expires) == "FIRMWARE_EXPIRED"
    assert reason_for(data, signature, release_key.root, now_ns=instant_ns("2100-01-01T00:00:00Z")) == "RELEASE_ROOT_EXPIRED"


def test_the_floor_that_a_release_sets_is_bounded() -> None:
    high = {**FIELDS, "security_version": 2**32 - 1}
    assert Manifest(**{**high, "minimum_security_version": MAX_MINIMUM}).minimum_security_version == MAX_MINIMUM
    with pytest.raises(FirmwareError, match=f"from 0 to {MAX_MINIMUM} is accepted"):
        Manifest(**{**high, "minimum_security_version": MAX_MINIMUM + 1})


def test_a_release_for_another_architecture_is_refused(release_key: KeyPair) -> None:
    data, signature = sign_manifest(Manifest(**FIELDS), release_key.private)
    assert reason_for(data, signature, release_key.root, architecture="aarch64") == "FIRMWARE_WRONG_ARCHITECTURE"


def test_an_object_with_another_digest_or_name_is_altered() -> None:
    manifest = Manifest(**FIELDS)
    manifest.check_object("libjarvis_capture.so", DIGEST)
    for name, digest in (("libjarvis_capture.so", "ba" * 32), ("libjarvis_capture.so", DIGEST.upper()), ("other.so", DIGEST)):
        with pytest.raises(FirmwareError, match=name) as refused:
            manifest.check_object(name, digest)
        assert refused.value.reason == "FIRMWARE_ALTERED"


@pytest.mark.parametrize("bits", [2048, 3072])
def test_a_smaller_release_key_is_refused_by_its_size(bits: int) -> None:
    key = rsa.generate_private_key(65537, bits)
    with pytest.raises(FirmwareError, match=f"RSA-{bits}; RSA-4096 with exponent 65537 is accepted") as refused:
        sign_manifest(Manifest(**FIELDS), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert refused.value.reason == "FIRMWARE_KEY_INVALID"
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(FirmwareError, match=f"RSA-{bits}"):
        load_release_public_key(public)


def test_a_release_key_of_another_kind_or_none_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for pem in (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), b"", b"-----BEGIN nonsense"):
        with pytest.raises(FirmwareError) as refused:
            sign_manifest(Manifest(**FIELDS), pem)
        assert refused.value.reason == "FIRMWARE_KEY_INVALID"
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for pem in (public, b"", b"-----BEGIN nonsense"):
        with pytest.raises(FirmwareError) as refused:
            load_release_public_key(pem)
        assert refused.value.reason == "FIRMWARE_KEY_INVALID"


MALFORMED = {
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "trailing bytes": GOLDEN + b"\n",
    "spaces": GOLDEN.replace(b":7", b": 7"),
    "a duplicate key": GOLDEN.replace(b'"security_version":7', b'"security_version":7,"security_version":7'),
    "an unknown field": GOLDEN.replace(b'"version":"1.2.3"}', b'"version":"1.2.3","zone":1}'),
    "a missing field": GOLDEN.replace(b',"version":"1.2.3"', b""),
    "another format": GOLDEN.replace(b"manifest-v2", b"manifest-v1"),
    "a text for a number": GOLDEN.replace(b":7", b':"7"'),
    "a boolean for a number": GOLDEN.replace(b":7", b":true"),
    "a fraction": GOLDEN.replace(b":7", b":7.0"),
    "a negative counter": GOLDEN.replace(b":7", b":-1"),
    "a counter over 32 bits": GOLDEN.replace(b":7", b":4294967296"),
    "a number of 5000 digits": GOLDEN.replace(b":7", b":" + b"9" * 5000),
    "NaN": GOLDEN.replace(b":7", b":NaN"),
    "upper-case hex": GOLDEN.replace(b"abab", b"ABab", 1),
    "a short digest": GOLDEN.replace(b"abab", b"ab", 1),
    "no objects": GOLDEN.replace(b'{"libjarvis_capture.so":"' + DIGEST.encode() + b'"}', b"{}"),
    "objects as a list": GOLDEN.replace(b'{"libjarvis_capture.so":"' + DIGEST.encode() + b'"}', b"[]"),
    "a path for a file name": GOLDEN.replace(b"libjarvis", b"../libjarvis"),
    "a hidden file name": GOLDEN.replace(b"libjarvis", b".libjarvis"),
    "a version with a leading zero": GOLDEN.replace(b"1.2.3", b"1.02.3"),
    "a version of two numbers": GOLDEN.replace(b"1.2.3", b"1.2"),
    "a version with a newline": GOLDEN.replace(b"1.2.3", b"1.2.3\\n"),
    "no such day": GOLDEN.replace(b"2026-11-22", b"2026-13-22"),
    "an offset for UTC": GOLDEN.replace(b"00Z", b"00+00:00"),
    "an upper-case name": GOLDEN.replace(b"jarvis-capture", b"Jarvis-capture"),
    "a null architecture": GOLDEN.replace(b'"x86_64"', b"null"),
    "deep nesting": b"[" * 60_000,
    "a minimum above the security version": GOLDEN.replace(b'_version":3', b'_version":8'),
    "a negative minimum": GOLDEN.replace(b'_version":3', b'_version":-1'),
    "a boolean for the minimum": GOLDEN.replace(b'_version":3', b'_version":true'),
    "an expiry before it was made": GOLDEN.replace(b"2027-11-22", b"2025-11-22"),
    "no expiry": GOLDEN.replace(b'"expires":"2027-11-22T10:00:00Z",', b""),
    "too long": GOLDEN + b" " * MAX_MANIFEST_BYTES,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_manifest_is_refused_even_when_signed_if_it_has(release_key: KeyPair, data: bytes) -> None:
    assert reason_for(data, sign_raw(data, release_key), release_key.root) == "FIRMWARE_MANIFEST_INVALID"


def test_too_many_objects_are_refused() -> None:
    with pytest.raises(FirmwareError, match="1 to 64"):
        Manifest(**{**FIELDS, "objects": {f"module{index}.so": DIGEST for index in range(65)}})


def test_a_manifest_cannot_be_changed_after_it_was_checked() -> None:
    objects = {"libjarvis_capture.so": DIGEST}
    manifest = Manifest(**{**FIELDS, "objects": objects})
    objects["libjarvis_capture.so"] = "0" * 64
    assert manifest.objects["libjarvis_capture.so"] == DIGEST
    with pytest.raises(TypeError):
        manifest.objects["x"] = DIGEST  # type: ignore[index]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_mutated_manifest_is_refused_or_reads_back_to_the_same_bytes(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(GOLDEN) - 1))
    piece = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from([b'"', b"0", b"}", b",", b"\\u0061"])))
    changed = GOLDEN[:position] + piece + GOLDEN[position + data.draw(st.integers(0, 3)) :]
    try:
        manifest = Manifest.from_bytes(changed)
    except FirmwareError:
        return
    assert manifest.to_bytes() == changed


@given(position=st.integers(0, len(GOLDEN) + 780), flip=st.integers(1, 255))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_changed_bit_of_manifest_or_signature_is_accepted(
    signed: bytes, release_key: KeyPair, position: int, flip: int
) -> None:
    both = bytearray(signed)
    position %= len(both)
    both[position] ^= flip
    data, signature = bytes(both[: len(GOLDEN)]), bytes(both[len(GOLDEN) :])
    assert reason_for(data, signature, release_key.root) == "FIRMWARE_SIGNATURE_INVALID"


@pytest.fixture(scope="module")
def signed(release_key: KeyPair) -> bytes:
    return GOLDEN + sign_raw(GOLDEN, release_key)


def test_the_meter_can_import_it_without_protobuf_grpc_or_a_tpm_stack() -> None:
    code = "import sys, json, jarvis_trust.firmware; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert not {"google", "grpc", "jarvis", "structlog", "tpm2_pytss", "cffi", "sqlalchemy"} & set(json.loads(done.stdout))
