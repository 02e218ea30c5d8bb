# SPDX-License-Identifier: Apache-2.0
"""The firmware manifest: what a release consists of, signed by k of the n keys of the release root (release_root.py).

    release side:  Manifest -> manifest.json; sign_bytes by one key after the other -> manifest.sig
    host side:     manifest.json, manifest.sig, pinned root.json -> verify_manifest -> Manifest -> check_object(digest)

The signatures are over the manifest's bytes as they are on disk. The domain tag is the manifest's own `format` field: nothing
else that release keys sign has it.
Imports `cryptography` and the standard library only: the offline meter loads this at start-up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jarvis_trust.encoding import canonical_json, check_keys, instant_ns, is_rfc3339_utc, is_sha256_hex, parse_json_object
from jarvis_trust.errors import FirmwareError
from jarvis_trust.release_root import ReleaseRoot, check_not_expired
from jarvis_trust.release_signatures import encode_signatures, sign_bytes

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
FORMAT = "jarvis-manifest-v2"
MAX_MANIFEST_BYTES = 64 * 1024
MAX_OBJECTS = 64
MAX_MINIMUM = 4095
"""Of minimum_security_version: each step of it is a write of a TPM's NV memory."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_VERSION = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){2}")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_FILENAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}")
_FIELDS = frozenset(
    {
        "format",
        "name",
        "version",
        "security_version",
        "minimum_security_version",
        "architecture",
        "objects",
        "created",
        "expires",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One release of the firmware for one architecture. Checked on construction (FIRMWARE_MANIFEST_INVALID)."""

    name: str
    """Of the product, e.g. "jarvis-capture"."""
    version: str
    """"MAJOR.MINOR.PATCH"; the loaded library must say the same of itself."""
    security_version: int
    """Rollback counter, 0..2**32-1: a host refuses a release below its floor."""
    minimum_security_version: int = 0
    """The floor that this release sets, at most its own security_version and 4095: once it ran and was attested, a host's TPM
    refuses releases below it for good."""
    architecture: str
    """As `uname -m` says it, e.g. "x86_64"."""
    objects: Mapping[str, str]
    """File name -> SHA-256 of the file, 64 lower-case hex digits. Read-only."""
    created: str
    """RFC 3339 in UTC, e.g. "2026-11-22T10:00:00Z"; informative."""
    expires: str
    """RFC 3339 in UTC, later than created: from then on the release is not loaded any more."""

    def __post_init__(self) -> None:
        for field, value, pattern, accepted in (
            ("name", self.name, _NAME, "1-64 characters of a-z 0-9 - are"),
            ("version", self.version, _VERSION, "three numbers such as 1.2.3 are"),
            ("architecture", self.architecture, _ARCHITECTURE, "a machine name such as x86_64 is"),
        ):
            if not isinstance(value, str) or pattern.fullmatch(value) is None:
                raise _invalid(f"{field} is {_shown(value)}; {accepted} accepted")
        if type(self.security_version) is not int or not 0 <= self.security_version < 2**32:
            raise _invalid(f"security_version is {_shown(self.security_version)}; an integer from 0 to 4294967295 is accepted")
        self._check_minimum()
        for field, value in (("created", self.created), ("expires", self.expires)):
            if not is_rfc3339_utc(value):
                raise _invalid(f"{field} is {_shown(value)}; RFC 3339 in UTC such as 2026-11-22T10:00:00Z is accepted")
        if instant_ns(self.expires) <= instant_ns(self.created):
            raise _invalid(f"expires is {self.expires}; later than created ({self.created}) is accepted")
        _check_objects(self.objects)
        object.__setattr__(self, "objects", MappingProxyType(dict(self.objects)))

    def _check_minimum(self) -> None:
        found, most = self.minimum_security_version, min(self.security_version, MAX_MINIMUM)
        if type(found) is not int or not 0 <= found <= most:
            accepted = f"an integer from 0 to {most} is accepted (at most security_version and {MAX_MINIMUM})"
            raise _invalid(f"minimum_security_version is {_shown(found)}; {accepted}")

    def to_bytes(self) -> bytes:
        """The canonical JSON that is signed."""
        return canonical_json(
            {
                "format": FORMAT,
                "name": self.name,
                "version": self.version,
                "security_version": self.security_version,
                "minimum_security_version": self.minimum_security_version,
                "architecture": self.architecture,
                "objects": dict(self.objects),
                "created": self.created,
                "expires": self.expires,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Reads exactly what `to_bytes` writes. Says nothing about who wrote it: see verify_manifest.

        Raises:
            FirmwareError: FIRMWARE_MANIFEST_INVALID.
        """
        try:
            fields: dict[str, Any] = parse_json_object(data, max_bytes=MAX_MANIFEST_BYTES, canonical=True)
            check_keys(fields, _FIELDS)
        except ValueError as error:
            raise _invalid(str(error)) from error
        if fields.pop("format") != FORMAT:
            raise _invalid(f"format is not {FORMAT!r}")
        return cls(**fields)

    def check_floor(self, floor: int, *, source: str = "") -> None:
        """Its security_version must not be below the floor.

        Args:
            floor: lowest security_version that is accepted.
            source: who says so, for the message, e.g. "of NV index 0x01800100".

        Raises:
            FirmwareError: FIRMWARE_BELOW_FLOOR.
        """
        if self.security_version < floor:
            message = f"security_version {self.security_version} of version {self.version} is below the floor {floor}"
            raise FirmwareError("FIRMWARE_BELOW_FLOOR", f"{message} {source}".rstrip())

    def check_expiry(self, now_ns: int) -> None:
        """It must not have expired at this time of the wall clock (ns since the Unix epoch).

        Raises:
            FirmwareError: FIRMWARE_EXPIRED.
        """
        check_not_expired(self.expires, now_ns, reason="FIRMWARE_EXPIRED", what=f"the manifest of {self.name} {self.version}")

    def check_object(self, filename: str, sha256_hex: str) -> None:
        """The file of this name must have this digest.

        Raises:
            FirmwareError: FIRMWARE_ALTERED, also when the manifest names no such file.
        """
        expected = self.objects.get(filename)
        if expected is None:
            raise FirmwareError("FIRMWARE_ALTERED", f"{filename} is not in the manifest of {self.name} {self.version}")
        if sha256_hex != expected:
            raise FirmwareError(
                "FIRMWARE_ALTERED",
                f"{filename} has SHA-256 {sha256_hex[:64]}; the manifest of {self.name} {self.version} says {expected}",
            )


def sign_manifest(manifest: Manifest, *private_pems: bytes) -> tuple[bytes, bytes]:
    """The bytes of manifest.json, and of manifest.sig with a signature by each of these release keys.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID when a key is not RSA-4096; the message names what was found.
    """
    data = manifest.to_bytes()
    return data, encode_signatures(sign_bytes(data, pem) for pem in private_pems)


def verify_manifest(
    manifest_bytes: bytes,
    signatures: bytes,
    root: ReleaseRoot,
    *,
    floor: int = 0,
    floor_source: str = "",
    architecture: str | None = None,
    now_ns: int | None = None,
) -> Manifest:
    """The manifest, once everything about it holds: signatures first, then form, expiry, floor and architecture.

    Args:
        manifest_bytes: contents of manifest.json; empty means that there is none.
        signatures: contents of manifest.sig; empty means that there is none.
        root: the pinned release root.
        floor: lowest security_version that is accepted.
        floor_source: who says so, see Manifest.check_floor.
        architecture: what the manifest must be for; None accepts any.
        now_ns: wall clock, ns since the Unix epoch, at which neither root nor manifest may have expired; None: the caller judges
            that itself.

    Raises:
        FirmwareError: FIRMWARE_UNSIGNED, FIRMWARE_SIGNATURE_INVALID, FIRMWARE_THRESHOLD_NOT_MET, FIRMWARE_MANIFEST_INVALID,
            RELEASE_ROOT_EXPIRED, FIRMWARE_EXPIRED, FIRMWARE_BELOW_FLOOR, FIRMWARE_WRONG_ARCHITECTURE.
    """
    if not manifest_bytes:
        raise FirmwareError("FIRMWARE_UNSIGNED", f"no {MANIFEST_FILE}: the firmware is not signed")
    if not signatures:
        raise FirmwareError("FIRMWARE_UNSIGNED", f"no {SIGNATURE_FILE}: the manifest is not signed")
    if len(manifest_bytes) > MAX_MANIFEST_BYTES:
        raise _invalid(f"{len(manifest_bytes)} bytes; at most {MAX_MANIFEST_BYTES} are accepted")
    root.verify(manifest_bytes, signatures, what="the manifest")
    manifest = Manifest.from_bytes(manifest_bytes)
    if now_ns is not None:
        root.check_expiry(now_ns)
        manifest.check_expiry(now_ns)
    manifest.check_floor(floor, source=floor_source)
    if architecture is not None and manifest.architecture != architecture:
        raise FirmwareError(
            "FIRMWARE_WRONG_ARCHITECTURE", f"manifest is for {manifest.architecture}; {architecture} is accepted here"
        )
    return manifest


def _check_objects(objects: object) -> None:
    if not isinstance(objects, Mapping) or not 1 <= len(objects) <= MAX_OBJECTS:
        raise _invalid(f"objects must map 1 to {MAX_OBJECTS} file names to digests")
    for filename, digest in objects.items():
        if not isinstance(filename, str) or _FILENAME.fullmatch(filename) is None:
            raise _invalid(f"objects names the file {_shown(filename)}; a plain file name of A-Z a-z 0-9 . _ + - is accepted")
        if not is_sha256_hex(digest):
            raise _invalid(f"objects[{filename!r}] is {_shown(digest)}; 64 lower-case hex digits are accepted")


def _invalid(message: str) -> FirmwareError:
    return FirmwareError("FIRMWARE_MANIFEST_INVALID", f"manifest: {message}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
