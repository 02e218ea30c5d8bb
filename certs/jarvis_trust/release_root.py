# SPDX-License-Identifier: Apache-2.0
"""The release root: which keys sign releases and how many of them must. What hosts and controller pin as root.json.

    {"format":"jarvis-release-root-v1","roots":[{"signatures":[...],"signed":{...}}, ...]}

    signed: created, expires, format, keys {keyid: SubjectPublicKeyInfo (DER, base64)}, threshold, version

    root.json -> ReleaseRoot.from_bytes (every version signed as it must be) -> the last version is in force
    root.json of an update, the pinned one -> check_successor -> may take its place

The file holds the versions one after the other, each numbered one higher than the one before and signed by the threshold both
of the keys before it and of its own: as TUF rotates its root. A host that has any of them can therefore follow to the last one,
and to none that the keys it trusts did not vouch for. Manifests, revocations and boot references count the signatures of the
version in force.
Imports `cryptography` and the standard library only: the offline meter loads this at start-up.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from jarvis_trust.encoding import (
    canonical_json,
    check_keys,
    check_span,
    check_version,
    instant_ns,
    parse_json_object,
    rfc3339_utc,
)
from jarvis_trust.errors import FirmwareError
from jarvis_trust.release_signatures import (
    Signature,
    SignatureCount,
    check_threshold,
    count_signatures,
    key_id,
    load_release_private_key,
    load_release_spki,
    parse_signatures,
    read_base64,
    read_signatures,
    sign_bytes,
    signature_objects,
    spki_der,
)

ROOT_FILE = "root.json"
MAX_ROOT_BYTES = 512 * 1024
MAX_KEYS = 16
MAX_VERSIONS = 64

_FILE_FORMAT = "jarvis-release-root-v1"
_FORMAT = "jarvis-root-v1"
_FIELDS = frozenset({"format", "version", "created", "expires", "threshold", "keys"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RootVersion:
    """One version of the root. Checked on construction (RELEASE_ROOT_INVALID)."""

    version: int
    """From 1, rising by one, at most 2**32-1."""
    created: str
    """RFC 3339 in UTC; informative."""
    expires: str
    """RFC 3339 in UTC: from then on it vouches for nothing new."""
    threshold: int
    """Different keys that must have signed, 1..number of keys."""
    keys: Mapping[str, rsa.RSAPublicKey]
    """By their ids. Read-only."""

    def __post_init__(self) -> None:
        try:
            check_version(self.version)
            check_span(self.created, self.expires)
        except ValueError as error:
            raise _invalid(str(error)) from error
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise _invalid(f"there are {len(self.keys)} keys; 1 to {MAX_KEYS} are accepted")
        if type(self.threshold) is not int or not 1 <= self.threshold <= len(self.keys):
            raise _invalid(f"threshold is {str(self.threshold)[:40]}; 1 to {len(self.keys)}, the number of keys, is accepted")
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))

    def to_object(self) -> dict[str, Any]:
        """What is signed, as JSON values."""
        return {
            "format": _FORMAT,
            "version": self.version,
            "created": self.created,
            "expires": self.expires,
            "threshold": self.threshold,
            "keys": {keyid: base64.b64encode(spki_der(key)).decode("ascii") for keyid, key in self.keys.items()},
        }

    def to_bytes(self) -> bytes:
        """The canonical JSON that is signed."""
        return canonical_json(self.to_object())


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRoot:
    """A version and the signatures beside it."""

    root: RootVersion
    signatures: tuple[Signature, ...]

    def signed_by(self, other: RootVersion) -> SignatureCount:
        """Which keys of a version signed this one."""
        return count_signatures(self.root.to_bytes(), self.signatures, other.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRoot:
    """A whole root.json, every version of it signed as it must be."""

    data: bytes
    """The file."""
    versions: tuple[SignedRoot, ...]
    """Oldest first; never empty."""

    @classmethod
    def from_bytes(cls, data: bytes) -> ReleaseRoot:
        """Reads and verifies a root.json. That it is the right one is for its place, or check_successor, to say.

        Raises:
            FirmwareError: RELEASE_ROOT_INVALID (form, numbers), RELEASE_ROOT_UNSIGNED (a threshold is not met).
        """
        root = cls(data=bytes(data), versions=read_root_file(data))
        root.check_signatures()
        return root

    def check_signatures(self) -> None:
        """Each version is signed by its own threshold, and by that of the version before it.

        Raises:
            FirmwareError: RELEASE_ROOT_UNSIGNED.
        """
        before: SignedRoot | None = None
        for signed in self.versions:
            for signer in (signed, before):
                if signer is None:
                    continue
                what = f"release root version {signed.root.version}, by the keys of version {signer.root.version},"
                try:
                    check_threshold(signed.signed_by(signer.root), signer.root.threshold, what=what)
                except FirmwareError as error:
                    raise FirmwareError("RELEASE_ROOT_UNSIGNED", error.message) from error
            before = signed

    @property
    def current(self) -> RootVersion:
        """The version in force."""
        return self.versions[-1].root

    def count(self, data: bytes, signatures: bytes, *, what: str) -> SignatureCount:
        """Which of the keys in force signed these bytes.

        Raises:
            FirmwareError: FIRMWARE_SIGNATURE_INVALID: the signature file has another form.
        """
        return count_signatures(data, parse_signatures(signatures, what=what), self.current.keys)

    def verify(self, data: bytes, signatures: bytes, *, what: str) -> None:
        """The threshold of the keys in force must have signed these bytes.

        Args:
            data: what was signed.
            signatures: contents of the signature file.
            what: what is signed, for errors, e.g. "the manifest".

        Raises:
            FirmwareError: FIRMWARE_SIGNATURE_INVALID, FIRMWARE_THRESHOLD_NOT_MET.
        """
        check_threshold(self.count(data, signatures, what=what), self.current.threshold, what=what)

    def check_expiry(self, now_ns: int) -> None:
        """It must not have expired at this time of the wall clock (ns since the Unix epoch).

        Raises:
            FirmwareError: RELEASE_ROOT_EXPIRED.
        """
        check_not_expired(
            self.current.expires, now_ns, reason="RELEASE_ROOT_EXPIRED", what=f"release root version {self.current.version}"
        )


def check_successor(root: ReleaseRoot, pinned: ReleaseRoot) -> None:
    """The new root may take the pinned one's place: it goes on from it.

    Raises:
        FirmwareError: RELEASE_ROOT_ROLLBACK (a lower version), RELEASE_ROOT_NOT_SUCCESSOR (it does not hold the pinned version).
    """
    known = pinned.current
    if root.current.version < known.version:
        raise FirmwareError(
            "RELEASE_ROOT_ROLLBACK", f"release root version {root.current.version} is below {known.version}, which is trusted"
        )
    same = [signed.root for signed in root.versions if signed.root.version == known.version]
    if not same:
        first = root.versions[0].root.version
        message = (
            f"release root holds versions {first} to {root.current.version}; {known.version}, which is trusted, must be there"
        )
        raise FirmwareError("RELEASE_ROOT_NOT_SUCCESSOR", message)
    if same[0].to_bytes() != known.to_bytes():
        message = f"release root has another version {known.version} than the one that is trusted"
        raise FirmwareError("RELEASE_ROOT_NOT_SUCCESSOR", message)


def check_not_expired(expires: str, now_ns: int, *, reason: str, what: str) -> None:
    """Raises FirmwareError with this reason from the instant `expires` on."""
    if now_ns >= instant_ns(expires):
        raise FirmwareError(reason, f"{what} expired at {expires}")


def root_version(
    keys: Iterable[rsa.RSAPublicKey], *, threshold: int, version: int, created: datetime, expires: datetime
) -> RootVersion:
    """A new version of these keys.

    Raises:
        FirmwareError: RELEASE_ROOT_INVALID.
    """
    return RootVersion(
        version=version,
        created=rfc3339_utc(created.replace(microsecond=0)),
        expires=rfc3339_utc(expires.replace(microsecond=0)),
        threshold=threshold,
        keys={key_id(key): key for key in keys},
    )


def single_key_root(private_pem: bytes, *, created: datetime, expires: datetime) -> bytes:
    """root.json of one key that signs alone: version 1, threshold 1.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID, RELEASE_ROOT_INVALID.
    """
    key = load_release_private_key(private_pem).public_key()
    root = root_version([key], threshold=1, version=1, created=created, expires=expires)
    return encode_root_file([SignedRoot(root=root, signatures=(sign_bytes(root.to_bytes(), private_pem),))])


def with_signature(signed: SignedRoot, signature: Signature) -> SignedRoot:
    """The same with one more signature, which takes the place of an earlier one of that key."""
    kept = [other for other in signed.signatures if other.keyid != signature.keyid]
    return replace(signed, signatures=(*kept, signature))


def encode_root_file(versions: Iterable[SignedRoot]) -> bytes:
    """root.json. A version that is not signed yet is written too: `ReleaseRoot.from_bytes` refuses it until it is."""
    return canonical_json(
        {
            "format": _FILE_FORMAT,
            "roots": [
                {"signed": signed.root.to_object(), "signatures": signature_objects(signed.signatures)} for signed in versions
            ],
        }
    )


def read_root_file(data: bytes) -> tuple[SignedRoot, ...]:
    """Every version of a root.json, whoever signed them.

    Raises:
        FirmwareError: RELEASE_ROOT_INVALID: form, or numbers that do not rise by one.
    """
    try:
        versions = _read_versions(parse_json_object(data, max_bytes=MAX_ROOT_BYTES, canonical=True))
    except ValueError as error:
        raise _invalid(str(error)) from error
    for before, after in itertools.pairwise(versions):
        if after.root.version != before.root.version + 1:
            raise _invalid(f"version {after.root.version} follows {before.root.version}; {before.root.version + 1} is accepted")
    return versions


def _read_versions(fields: dict[str, Any]) -> tuple[SignedRoot, ...]:
    check_keys(fields, frozenset({"format", "roots"}))
    if fields["format"] != _FILE_FORMAT:
        raise ValueError(f"format is not {_FILE_FORMAT!r}")
    roots = fields["roots"]
    if not isinstance(roots, list) or not 1 <= len(roots) <= MAX_VERSIONS:
        raise ValueError(f"roots is not a list of 1 to {MAX_VERSIONS}")
    return tuple(_read_signed(item) for item in roots)


def _read_signed(item: Any) -> SignedRoot:
    if not isinstance(item, dict):
        raise ValueError("a root is not an object")  # noqa: TRY004 - callers turn ValueError into a reason
    check_keys(item, frozenset({"signed", "signatures"}))
    fields = item["signed"]
    if not isinstance(fields, dict):
        raise ValueError("signed is not an object")  # noqa: TRY004 - likewise
    check_keys(fields, _FIELDS)
    if fields["format"] != _FORMAT:
        raise ValueError(f"signed.format is not {_FORMAT!r}")
    root = RootVersion(
        version=fields["version"],
        created=fields["created"],
        expires=fields["expires"],
        threshold=fields["threshold"],
        keys=_read_keys(fields["keys"]),
    )
    return SignedRoot(root=root, signatures=read_signatures(item["signatures"]))


def _read_keys(value: Any) -> dict[str, rsa.RSAPublicKey]:
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_KEYS:
        raise ValueError(f"keys does not map 1 to {MAX_KEYS} ids to keys")
    keys = {}
    for keyid, encoded in value.items():
        der = read_base64(encoded, f"key {keyid[:64]}")
        try:
            key = load_release_spki(der)
        except FirmwareError as error:
            raise ValueError(f"key {keyid[:64]}: {error.message}") from error
        if key_id(key) != keyid:
            raise ValueError(f"key {keyid[:64]} has the id {key_id(key)}")
        keys[keyid] = key
    return keys


def _invalid(message: str) -> FirmwareError:
    return FirmwareError("RELEASE_ROOT_INVALID", f"release root: {message}")
