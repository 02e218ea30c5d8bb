# SPDX-License-Identifier: Apache-2.0
"""Revoked firmware: digests of objects and manifests that must not run any more although they were properly signed.

    {"format":"jarvis-revocations-v1","signatures":[...],"signed":{created, digests {sha256: why}, expires, format, version}}

    revoked.json, pinned root -> Revocations.from_bytes -> check_newer(the one before) -> check(digests)

One file, so that it is replaced as a whole. Signed by the threshold of the release root; the version rises, and none below one
that was seen is taken (rollback); once it has expired nobody can say what was revoked since (freeze).
Imports the standard library and what the manifest needs only: the loader reads this too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jarvis_trust.encoding import canonical_json, check_keys, check_span, check_version, is_sha256_hex, parse_json_object
from jarvis_trust.errors import FirmwareError
from jarvis_trust.release_root import ReleaseRoot, check_not_expired
from jarvis_trust.release_signatures import (
    Signature,
    check_threshold,
    count_signatures,
    read_signatures,
    signature_objects,
)

REVOCATIONS_FILE = "revoked.json"
MAX_REVOCATIONS_BYTES = 1024 * 1024
MAX_REVOKED = 4096
MAX_WHY = 200

_FILE_FORMAT = "jarvis-revocations-v1"
_FORMAT = "jarvis-revoked-v1"
_FIELDS = frozenset({"format", "version", "created", "expires", "digests"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """One version of the list. Checked on construction (REVOCATIONS_INVALID)."""

    version: int
    """Rises with every list, 1..2**32-1."""
    created: str
    """RFC 3339 in UTC; informative."""
    expires: str
    """RFC 3339 in UTC: until then no newer list need be known."""
    digests: Mapping[str, str]
    """SHA-256 (64 lower-case hex digits) of an object or a manifest.json -> why, at most 200 characters. Read-only."""

    def __post_init__(self) -> None:
        try:
            check_version(self.version)
            check_span(self.created, self.expires)
        except ValueError as error:
            raise _invalid(str(error)) from error
        if not isinstance(self.digests, Mapping) or len(self.digests) > MAX_REVOKED:
            raise _invalid(f"digests does not map at most {MAX_REVOKED} digests to reasons")
        for digest, why in self.digests.items():
            if not is_sha256_hex(digest):
                raise _invalid(f"digests names {str(digest)[:80]!r}; 64 lower-case hex digits are accepted")
            if not isinstance(why, str) or len(why) > MAX_WHY or not why.isprintable():
                raise _invalid(f"digests[{digest!r}] is not a printable text of at most {MAX_WHY} characters")
        object.__setattr__(self, "digests", MappingProxyType(dict(self.digests)))

    def to_object(self) -> dict[str, Any]:
        """What is signed, as JSON values."""
        return {
            "format": _FORMAT,
            "version": self.version,
            "created": self.created,
            "expires": self.expires,
            "digests": dict(self.digests),
        }

    def to_bytes(self) -> bytes:
        """The canonical JSON that is signed."""
        return canonical_json(self.to_object())

    @classmethod
    def from_bytes(cls, data: bytes, root: ReleaseRoot) -> Revocations:
        """Reads and verifies a revoked.json. Expiry and version are for the caller to judge.

        Raises:
            FirmwareError: REVOCATIONS_INVALID (form), REVOCATIONS_UNSIGNED (the root's threshold is not met).
        """
        revocations, signatures = read_revocations_file(data)
        count = count_signatures(revocations.to_bytes(), signatures, root.current.keys)
        try:
            check_threshold(count, root.current.threshold, what=f"revocation list version {revocations.version}")
        except FirmwareError as error:
            raise FirmwareError("REVOCATIONS_UNSIGNED", error.message) from error
        return revocations

    @classmethod
    def from_signed_bytes(cls, data: bytes) -> Revocations:
        """Reads what `to_bytes` writes. Says nothing of who signed it.

        Raises:
            FirmwareError: REVOCATIONS_INVALID.
        """
        try:
            return _read_signed(parse_json_object(data, max_bytes=MAX_REVOCATIONS_BYTES, canonical=True))
        except ValueError as error:
            raise _invalid(str(error)) from error

    def check_newer(self, before: Revocations | None) -> None:
        """It may take the place of the one before: none has been seen that is newer, or another one of its version.

        Raises:
            FirmwareError: REVOCATIONS_ROLLBACK.
        """
        if before is None or self.version > before.version or self.to_bytes() == before.to_bytes():
            return
        other = " with other contents" if self.version == before.version else ""
        message = f"revocation list version {self.version} was offered; version {before.version}{other} was in force before"
        raise FirmwareError("REVOCATIONS_ROLLBACK", message)

    def check_expiry(self, now_ns: int) -> None:
        """It must not have expired at this time of the wall clock (ns since the Unix epoch).

        Raises:
            FirmwareError: REVOCATIONS_EXPIRED.
        """
        check_not_expired(self.expires, now_ns, reason="REVOCATIONS_EXPIRED", what=f"revocation list version {self.version}")

    def check(self, digests: Iterable[tuple[str, str]]) -> None:
        """None of these (name, SHA-256 in hex) may be revoked.

        Raises:
            FirmwareError: FIRMWARE_REVOKED, naming every one that is.
        """
        check_revoked(self.digests, digests)


def check_revoked(revoked: Mapping[str, str], digests: Iterable[tuple[str, str]]) -> None:
    """None of these (name, SHA-256 in hex) may be among the revoked ones.

    Raises:
        FirmwareError: FIRMWARE_REVOKED, naming every one that is.
    """
    found = [f"{name} with SHA-256 {digest} is revoked: {revoked[digest]}" for name, digest in digests if digest in revoked]
    if found:
        raise FirmwareError("FIRMWARE_REVOKED", "; ".join(dict.fromkeys(found)))


def encode_revocations_file(revocations: Revocations, signatures: Iterable[Signature]) -> bytes:
    """revoked.json."""
    return canonical_json(
        {"format": _FILE_FORMAT, "signed": revocations.to_object(), "signatures": signature_objects(signatures)}
    )


def read_revocations_file(data: bytes) -> tuple[Revocations, tuple[Signature, ...]]:
    """What a revoked.json says, whoever signed it.

    Raises:
        FirmwareError: REVOCATIONS_INVALID.
    """
    try:
        return _read_file(parse_json_object(data, max_bytes=MAX_REVOCATIONS_BYTES, canonical=True))
    except ValueError as error:
        raise _invalid(str(error)) from error


def _read_file(fields: dict[str, Any]) -> tuple[Revocations, tuple[Signature, ...]]:
    check_keys(fields, frozenset({"format", "signed", "signatures"}))
    if fields["format"] != _FILE_FORMAT:
        raise ValueError(f"format is not {_FILE_FORMAT!r}")
    return _read_signed(fields["signed"]), read_signatures(fields["signatures"])


def _read_signed(signed: Any) -> Revocations:
    if not isinstance(signed, dict):
        raise ValueError("signed is not an object")  # noqa: TRY004 - callers turn ValueError into a reason
    check_keys(signed, _FIELDS)
    fields = dict(signed)
    if fields.pop("format") != _FORMAT:
        raise ValueError(f"signed.format is not {_FORMAT!r}")
    return Revocations(**fields)


def _invalid(message: str) -> FirmwareError:
    return FirmwareError("REVOCATIONS_INVALID", f"revocation list: {message}")
