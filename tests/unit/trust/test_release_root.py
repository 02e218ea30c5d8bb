# SPDX-License-Identifier: Apache-2.0
"""The release root and what k of n sign: thresholds, rotation, rollback, and the advisories of TUF's implementations as tests."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jarvis_trust.encoding import canonical_json, instant_ns
from jarvis_trust.errors import FirmwareError
from jarvis_trust.firmware import Manifest, sign_manifest, verify_manifest
from jarvis_trust.release_root import (
    ReleaseRoot,
    RootVersion,
    SignedRoot,
    check_successor,
    encode_root_file,
    read_root_file,
    root_version,
)
from jarvis_trust.release_signatures import (
    Signature,
    count_signatures,
    encode_signatures,
    key_id,
    load_release_public_key,
    parse_signatures,
    sign_bytes,
)
from jarvis_trust.release_store import TRUSTED_REVOCATIONS_FILE, TRUSTED_ROOT_FILE, load_revocations, load_root
from jarvis_trust.revocations import Revocations, encode_revocations_file

from tests.unit.trust.support import KeyPair

CREATED, EXPIRES = datetime(2026, 11, 22, tzinfo=UTC), datetime(2031, 11, 22, tzinfo=UTC)
MANIFEST = Manifest(
    name="jarvis-capture",
    version="1.2.3",
    security_version=7,
    architecture="x86_64",
    objects={"libjarvis_capture.so": "ab" * 32},
    created="2026-11-22T10:00:00Z",
    expires="2027-11-22T10:00:00Z",
)


def version_of(keys: Sequence[KeyPair], threshold: int, version: int = 1) -> RootVersion:
    public = [load_release_public_key(key.public) for key in keys]
    return root_version(public, threshold=threshold, version=version, created=CREATED, expires=EXPIRES)


def signed(root: RootVersion, *signers: KeyPair) -> SignedRoot:
    return SignedRoot(root=root, signatures=tuple(sign_bytes(root.to_bytes(), key.private) for key in signers))


@pytest.fixture(scope="module")
def keys(release_key: KeyPair, other_release_key: KeyPair, third_release_key: KeyPair) -> list[KeyPair]:
    return [release_key, other_release_key, third_release_key]


@pytest.fixture(scope="module")
def first(keys: list[KeyPair]) -> SignedRoot:
    """Version 1: two of three."""
    return signed(version_of(keys, 2), keys[0], keys[1])


@pytest.fixture(scope="module")
def root(first: SignedRoot) -> ReleaseRoot:
    return ReleaseRoot.from_bytes(encode_root_file([first]))


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(FirmwareError) as refused:
        run()
    return refused.value.reason


def verify_signed_by(root: ReleaseRoot, *signers: KeyPair, twice: bool = False) -> Manifest:
    data, signatures = sign_manifest(MANIFEST, *(key.private for key in signers))
    if twice:
        objects = json.loads(signatures)["signatures"]
        signatures = canonical_json({"signatures": objects * 2})
    return verify_manifest(data, signatures, root)


def test_two_of_three_sign_a_release_whichever_two_they_are(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    for pair in (keys[:2], keys[1:], [keys[2], keys[0]], keys):
        assert verify_signed_by(root, *pair) == MANIFEST


def test_one_of_three_is_not_enough_and_the_message_counts(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    with pytest.raises(FirmwareError, match="1 of the release root's keys; 2 different ones are needed") as refused:
        verify_signed_by(root, keys[2])
    assert refused.value.reason == "FIRMWARE_THRESHOLD_NOT_MET"


def test_a_keys_signature_counts_once_however_often_it_is_there(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    """theupdateframework/specification#155: a threshold met by one key several times."""
    assert refusal(lambda: verify_signed_by(root, keys[0], twice=True)) == "FIRMWARE_THRESHOLD_NOT_MET"


def test_two_signatures_of_one_key_that_differ_count_once(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    """PSS is randomised: a key can make any number of different valid signatures."""
    data = MANIFEST.to_bytes()
    both = [sign_bytes(data, keys[0].private) for _ in range(2)]
    assert both[0].value != both[1].value
    signatures = canonical_json({"signatures": [signature.to_object() for signature in both]})
    assert refusal(lambda: verify_manifest(data, signatures, root)) == "FIRMWARE_THRESHOLD_NOT_MET"


def test_a_signature_under_another_keys_id_counts_for_neither(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    """The id is the verifier's to compute, not the signer's to say."""
    data = MANIFEST.to_bytes()
    genuine = sign_bytes(data, keys[0].private)
    lent = dataclasses.replace(genuine, keyid=key_id(load_release_public_key(keys[1].public)))
    assert refusal(lambda: verify_manifest(data, encode_signatures([genuine, lent]), root)) == "FIRMWARE_THRESHOLD_NOT_MET"
    assert refusal(lambda: verify_manifest(data, encode_signatures([lent]), root)) == "FIRMWARE_SIGNATURE_INVALID"


def test_signatures_of_unknown_keys_and_of_other_bytes_are_counted_apart(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    data = MANIFEST.to_bytes()
    good, stale = sign_bytes(data, keys[0].private), sign_bytes(b"other", keys[1].private)
    unknown = Signature(keyid="00" * 32, value=bytes(512))
    count = count_signatures(data, [unknown, stale, good], root.current.keys)
    assert (count.valid, count.invalid, count.unknown) == ((good.keyid,), (stale.keyid,), (unknown.keyid,))


def test_a_bad_signature_of_a_key_does_not_undo_its_good_one(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    data = MANIFEST.to_bytes()
    good, bad = sign_bytes(data, keys[0].private), sign_bytes(b"other", keys[0].private)
    for order in ([good, bad], [bad, good]):
        assert count_signatures(data, order, root.current.keys).valid == (good.keyid,)
        assert count_signatures(data, order, root.current.keys).invalid == ()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"signatures":{}}',
        b'{"signatures":[1]}',
        b'{"signatures":[{"keyid":"aa","sig":""}]}',
        canonical_json({"signatures": [{"keyid": "ab" * 32, "sig": "A" * 684}]}),
        canonical_json({"signatures": [{"keyid": "ab" * 32, "sig": 7}]}),
        canonical_json({"signatures": [{"keyid": "ab" * 32, "sig": "", "x": 1}]}),
        canonical_json({"signatures": [{"keyid": "ab" * 32, "sig": "AA=="}] * 33}),
        b'{"signatures": []}',
        b"[" * 30_000,
    ],
)
def test_a_signature_file_of_another_form_is_refused(data: bytes) -> None:
    assert refusal(lambda: parse_signatures(data, what="it")) == "FIRMWARE_SIGNATURE_INVALID"


def test_base64_has_one_spelling(keys: list[KeyPair]) -> None:
    """The last digit before the padding has bits that decode to nothing: a second spelling of the same signature."""
    text = encode_signatures([sign_bytes(b"x", keys[0].private)])
    at = text.index(b'="}') - 1
    respelt = text[:at] + bytes([text[at] + 1]) + text[at + 1 :]
    with pytest.raises(FirmwareError, match="one encoding"):
        parse_signatures(respelt, what="it")


def test_a_root_signed_by_too_few_of_its_own_keys_is_none(keys: list[KeyPair]) -> None:
    for signers in ([], [keys[0]]):
        data = encode_root_file([signed(version_of(keys, 2), *signers)])
        assert refusal(lambda data=data: ReleaseRoot.from_bytes(data)) == "RELEASE_ROOT_UNSIGNED"


def test_keys_change_with_the_old_threshold_and_the_new_one(
    root: ReleaseRoot, first: SignedRoot, keys: list[KeyPair], fourth_release_key: KeyPair
) -> None:
    next_keys = [keys[1], keys[2], fourth_release_key]
    second = version_of(next_keys, 2, version=2)
    rotated = ReleaseRoot.from_bytes(encode_root_file([first, signed(second, keys[0], keys[1], fourth_release_key)]))
    check_successor(rotated, root)
    assert verify_signed_by(rotated, keys[2], fourth_release_key) == MANIFEST
    # The key that went counts no more.
    assert refusal(lambda: verify_signed_by(rotated, keys[0], keys[1])) == "FIRMWARE_THRESHOLD_NOT_MET"
    for signers in ([keys[0], keys[1]], [fourth_release_key, keys[2]], []):
        data = encode_root_file([first, signed(second, *signers)])
        assert refusal(lambda data=data: ReleaseRoot.from_bytes(data)) == "RELEASE_ROOT_UNSIGNED"


@pytest.mark.parametrize("version", [1, 3, 2**32 - 1])
def test_a_version_that_is_not_the_next_one_is_refused(first: SignedRoot, keys: list[KeyPair], version: int) -> None:
    """Non-sequential roots and fast-forward: a number cannot be skipped even by those who hold the keys."""
    data = encode_root_file([first, signed(version_of(keys, 2, version=version), keys[0], keys[1])])
    assert refusal(lambda: ReleaseRoot.from_bytes(data)) == "RELEASE_ROOT_INVALID"


def test_an_older_or_another_root_does_not_take_the_place_of_the_trusted_one(
    root: ReleaseRoot, first: SignedRoot, keys: list[KeyPair], fourth_release_key: KeyPair
) -> None:
    second = signed(version_of(keys, 2, version=2), keys[0], keys[1])
    newer = ReleaseRoot.from_bytes(encode_root_file([first, second]))
    assert refusal(lambda: check_successor(root, newer)) == "RELEASE_ROOT_ROLLBACK"
    own = ReleaseRoot.from_bytes(encode_root_file([signed(version_of([fourth_release_key], 1), fourth_release_key)]))
    assert refusal(lambda: check_successor(own, root)) == "RELEASE_ROOT_NOT_SUCCESSOR"
    # One that begins behind the trusted version cannot be followed to.
    pruned = ReleaseRoot.from_bytes(encode_root_file([second]))
    assert refusal(lambda: check_successor(pruned, root)) == "RELEASE_ROOT_NOT_SUCCESSOR"
    check_successor(pruned, newer)


def test_own_keys_appended_to_the_genuine_chain_are_refused(first: SignedRoot, fourth_release_key: KeyPair) -> None:
    own = signed(version_of([fourth_release_key], 1, version=2), fourth_release_key)
    assert refusal(lambda: ReleaseRoot.from_bytes(encode_root_file([first, own]))) == "RELEASE_ROOT_UNSIGNED"


def edited(first: SignedRoot, **changes: Any) -> bytes:
    value = json.loads(encode_root_file([first]))
    value["roots"][0]["signed"] |= changes
    return canonical_json(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0},
        {"threshold": -1},
        {"threshold": 4},
        {"threshold": True},
        {"threshold": 1.0},
        {"threshold": "2"},
        {"threshold": 10**4000},
        {"version": 0},
        {"version": 2**32},
        {"version": None},
        {"keys": {}},
        {"keys": []},
        {"keys": {"ab" * 32: "AA=="}},
        {"expires": "2026-01-01T00:00:00Z"},
        {"expires": "never"},
        {"format": "jarvis-manifest-v2"},
        {"more": 1},
    ],
)
def test_a_root_of_another_form_is_refused(first: SignedRoot, changes: dict[str, Any]) -> None:
    assert refusal(lambda: read_root_file(edited(first, **changes))) == "RELEASE_ROOT_INVALID"


@pytest.mark.parametrize("kind", ["ec", "rsa-2048", "rsa-exponent-3", "wrong-id"])
def test_keys_of_another_kind_size_or_id_are_refused(first: SignedRoot, keys: list[KeyPair], kind: str) -> None:
    """Unknown key types must not count as good ones, and no key may have two ids."""
    public: Any = load_release_public_key(keys[0].public)
    if kind == "ec":
        public = ec.generate_private_key(ec.SECP256R1()).public_key()
    elif kind == "rsa-2048":
        public = rsa.generate_private_key(65537, 2048).public_key()
    elif kind == "rsa-exponent-3":
        public = rsa.RSAPublicNumbers(3, public.public_numbers().n).public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    keyid = "00" * 32 if kind == "wrong-id" else hashlib.sha256(der).hexdigest()
    data = edited(first, keys={keyid: base64.b64encode(der).decode()}, threshold=1)
    assert refusal(lambda: read_root_file(data)) == "RELEASE_ROOT_INVALID"


def test_an_expired_root_vouches_for_nothing(root: ReleaseRoot) -> None:
    root.check_expiry(instant_ns("2031-11-21T23:59:59Z"))
    assert refusal(lambda: root.check_expiry(instant_ns("2031-11-22T00:00:00Z"))) == "RELEASE_ROOT_EXPIRED"


def test_the_trusted_root_goes_on_across_restarts_and_never_back(
    tmp_path: Path, root: ReleaseRoot, first: SignedRoot, keys: list[KeyPair], fourth_release_key: KeyPair
) -> None:
    """CVE-2022-29173 (go-tuf): rollback; and what is refused must not have been persisted."""
    configured, state = tmp_path / "root.json", tmp_path / "state"
    state.mkdir()
    newer = encode_root_file([first, signed(version_of(keys, 2, version=2), keys[0], keys[1])])
    configured.write_bytes(root.data)
    assert load_root(configured, state).current.version == 1
    configured.write_bytes(newer)
    assert load_root(configured, state).current.version == 2
    own = encode_root_file([signed(version_of([fourth_release_key], 1), fourth_release_key)])
    for data, reason in ((root.data, "RELEASE_ROOT_ROLLBACK"), (own, "RELEASE_ROOT_ROLLBACK"), (b"{}", "RELEASE_ROOT_INVALID")):
        configured.write_bytes(data)
        assert refusal(lambda: load_root(configured, state)) == reason
        assert (state / TRUSTED_ROOT_FILE).read_bytes() == newer
    configured.unlink()
    assert refusal(lambda: load_root(configured, state)) == "RELEASE_ROOT_MISSING"


def revocations(version: int, **digests: str) -> Revocations:
    return Revocations(
        version=version,
        created="2026-11-22T00:00:00Z",
        expires="2027-11-22T00:00:00Z",
        digests={digit * 64: why for digit, why in digests.items()},
    )


def revoked_file(revoked: Revocations, *signers: KeyPair) -> bytes:
    return encode_revocations_file(revoked, [sign_bytes(revoked.to_bytes(), key.private) for key in signers])


def test_a_revocation_list_needs_the_threshold_too(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    revoked = revocations(1, a="CVE-2026-0001")
    assert Revocations.from_bytes(revoked_file(revoked, keys[0], keys[2]), root) == revoked
    for signers in ([keys[0]], []):
        data = revoked_file(revoked, *signers)
        assert refusal(lambda data=data: Revocations.from_bytes(data, root)) == "REVOCATIONS_UNSIGNED"


def test_what_is_revoked_is_named_with_its_reason() -> None:
    with pytest.raises(FirmwareError, match="is revoked: CVE-2026-0001") as refused:
        revocations(1, a="CVE-2026-0001").check([("lib.so", "a" * 64), ("lib.so", "b" * 64)])
    assert refused.value.reason == "FIRMWARE_REVOKED"
    revocations(1, a="CVE-2026-0001").check([("lib.so", "b" * 64)])


def test_a_revocation_list_never_goes_back_and_the_refused_one_is_not_kept(
    tmp_path: Path, root: ReleaseRoot, keys: list[KeyPair]
) -> None:
    """Rollback per role: each signed file has a version of its own that only rises."""
    configured = tmp_path / "revoked.json"
    old, new = (revoked_file(revocations(version, a="bad"), *keys[:2]) for version in (4, 5))
    configured.write_bytes(new)
    state = tmp_path / "state"
    state.mkdir()
    assert load_revocations(configured, root, state).version == 5
    other = revoked_file(revocations(5), *keys[:2])
    unsigned = revoked_file(revocations(6), keys[0])
    for data, reason in ((old, "REVOCATIONS_ROLLBACK"), (other, "REVOCATIONS_ROLLBACK"), (unsigned, "REVOCATIONS_UNSIGNED")):
        configured.write_bytes(data)
        assert refusal(lambda: load_revocations(configured, root, state)) == reason
        assert (state / TRUSTED_REVOCATIONS_FILE).read_bytes() == new


def test_an_expired_revocation_list_is_refused() -> None:
    """Freeze: who keeps newer lists away must not be able to do so for ever."""
    revoked = revocations(1)
    revoked.check_expiry(instant_ns("2027-11-21T23:59:59Z"))
    assert refusal(lambda: revoked.check_expiry(instant_ns("2027-11-22T00:00:00Z"))) == "REVOCATIONS_EXPIRED"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": 2**32},
        {"version": True},
        {"digests": []},
        {"digests": {"short": "why"}},
        {"digests": {"a" * 64: "line\nbreak"}},
        {"digests": {"a" * 64: "x" * 201}},
        {"expires": "2025-01-01T00:00:00Z"},
        {"format": "jarvis-root-v1"},
        {"more": 1},
    ],
)
def test_a_revocation_list_of_another_form_is_refused(root: ReleaseRoot, keys: list[KeyPair], changes: dict[str, Any]) -> None:
    value = json.loads(revoked_file(revocations(1, a="bad")))
    value["signed"] |= changes
    assert refusal(lambda: Revocations.from_bytes(canonical_json(value), root)) == "REVOCATIONS_INVALID"


def test_signatures_of_one_kind_of_document_are_none_of_another(root: ReleaseRoot, keys: list[KeyPair]) -> None:
    """The domain tag: what was signed as a revocation list is no manifest, whoever moves the signatures."""
    data = revocations(1).to_bytes()
    signatures = encode_signatures(sign_bytes(data, key.private) for key in keys[:2])
    assert refusal(lambda: verify_manifest(data, signatures, root)) == "FIRMWARE_MANIFEST_INVALID"
