# SPDX-License-Identifier: Apache-2.0
"""The firmware manifest: what a release consists of, signed with the release key (RSA-4096, PSS with SHA-256, salt 32).

    release side:  Manifest -> sign_manifest -> manifest.json, manifest.sig
    host side:     manifest.json, manifest.sig, pinned public key -> verify_manifest -> Manifest -> check_object(digest)

The signature is over the manifest's bytes as they are on disk; `openssl dgst -sha256 -sigopt rsa_padding_mode:pss -verify` checks
it too. The domain tag is the manifest's own `format` field: nothing else that the release key may sign begins with `{`.
Imports `cryptography` and the standard library only: the offline meter loads this at start-up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from jarvis_trust.encoding import canonical_json, check_keys, is_rfc3339_utc, is_sha256_hex, parse_json_object
from jarvis_trust.errors import FirmwareError

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "manifest.sig"
FORMAT = "jarvis-manifest-v1"
RELEASE_KEY_BITS = 4096
MAX_MANIFEST_BYTES = 64 * 1024
MAX_OBJECTS = 64

_SIGNATURE_BYTES = RELEASE_KEY_BITS // 8
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_VERSION = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){2}")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_FILENAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}")
_FIELDS = frozenset({"format", "name", "version", "security_version", "architecture", "objects", "created"})
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One release of the firmware for one architecture. Checked on construction (FIRMWARE_MANIFEST_INVALID)."""

    name: str
    """Of the product, e.g. "jarvis-capture"."""
    version: str
    """"MAJOR.MINOR.PATCH"; the loaded library must say the same of itself."""
    security_version: int
    """Rollback counter, 0..2**32-1: a host refuses a release below its floor."""
    architecture: str
    """As `uname -m` says it, e.g. "x86_64"."""
    objects: Mapping[str, str]
    """File name -> SHA-256 of the file, 64 lower-case hex digits. Read-only."""
    created: str
    """RFC 3339 in UTC, e.g. "2026-11-22T10:00:00Z"; informative."""

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
        if not is_rfc3339_utc(self.created):
            raise _invalid(f"created is {_shown(self.created)}; RFC 3339 in UTC such as 2026-11-22T10:00:00Z is accepted")
        _check_objects(self.objects)
        object.__setattr__(self, "objects", MappingProxyType(dict(self.objects)))

    def to_bytes(self) -> bytes:
        """The canonical JSON that is signed."""
        return canonical_json(
            {
                "format": FORMAT,
                "name": self.name,
                "version": self.version,
                "security_version": self.security_version,
                "architecture": self.architecture,
                "objects": dict(self.objects),
                "created": self.created,
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


def sign_manifest(manifest: Manifest, release_key_pem: bytes) -> tuple[bytes, bytes]:
    """The bytes of manifest.json and manifest.sig.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID when the key is not RSA-4096; the message names what was found.
    """
    data = manifest.to_bytes()
    return data, sign_bytes(data, release_key_pem)


def verify_manifest(
    manifest_bytes: bytes, signature: bytes, release_public_pem: bytes, *, floor: int = 0, architecture: str | None = None
) -> Manifest:
    """The manifest, once everything about it holds: signature first, then form, floor and architecture.

    Args:
        manifest_bytes: contents of manifest.json; empty means that there is none.
        signature: contents of manifest.sig; empty means that there is none.
        release_public_pem: the pinned release key, SubjectPublicKeyInfo PEM.
        floor: lowest security_version that is accepted.
        architecture: what the manifest must be for; None accepts any.

    Raises:
        FirmwareError: FIRMWARE_UNSIGNED, FIRMWARE_KEY_INVALID, FIRMWARE_SIGNATURE_INVALID, FIRMWARE_MANIFEST_INVALID,
            FIRMWARE_BELOW_FLOOR, FIRMWARE_WRONG_ARCHITECTURE.
    """
    if not manifest_bytes:
        raise FirmwareError("FIRMWARE_UNSIGNED", f"no {MANIFEST_FILE}: the firmware is not signed")
    if not signature:
        raise FirmwareError("FIRMWARE_UNSIGNED", f"no {SIGNATURE_FILE}: the manifest is not signed")
    if len(manifest_bytes) > MAX_MANIFEST_BYTES:
        raise _invalid(f"{len(manifest_bytes)} bytes; at most {MAX_MANIFEST_BYTES} are accepted")
    verify_bytes(manifest_bytes, signature, release_public_pem, what="the manifest")
    manifest = Manifest.from_bytes(manifest_bytes)
    if manifest.security_version < floor:
        raise FirmwareError(
            "FIRMWARE_BELOW_FLOOR",
            f"security_version {manifest.security_version} of version {manifest.version} is below the floor {floor}",
        )
    if architecture is not None and manifest.architecture != architecture:
        raise FirmwareError(
            "FIRMWARE_WRONG_ARCHITECTURE", f"manifest is for {manifest.architecture}; {architecture} is accepted here"
        )
    return manifest


def sign_bytes(data: bytes, release_key_pem: bytes) -> bytes:
    """The release key's signature over bytes that carry their own domain tag, 512 bytes.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID when the key is not RSA-4096; the message names what was found.
    """
    try:
        key = load_pem_private_key(release_key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FirmwareError("FIRMWARE_KEY_INVALID", f"release key is not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise _wrong_key(type(key).__name__)
    if key.key_size != RELEASE_KEY_BITS:
        raise _wrong_key(f"RSA-{key.key_size}")
    return key.sign(data, _PSS, hashes.SHA256())


def verify_bytes(data: bytes, signature: bytes, release_public_pem: bytes, *, what: str) -> None:
    """The signature over these bytes must be the pinned release key's.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID, FIRMWARE_SIGNATURE_INVALID naming `what`.
    """
    key = load_release_public_key(release_public_pem)
    if len(signature) != _SIGNATURE_BYTES:
        raise FirmwareError(
            "FIRMWARE_SIGNATURE_INVALID", f"{what}'s signature has {len(signature)} bytes; RSA-4096 gives {_SIGNATURE_BYTES}"
        )
    try:
        key.verify(signature, data, _PSS, hashes.SHA256())
    except InvalidSignature as error:
        raise FirmwareError("FIRMWARE_SIGNATURE_INVALID", f"{what}'s signature is not the release key's") from error


def load_release_public_key(pem: bytes) -> rsa.RSAPublicKey:
    """The release key's public half.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID when it is not RSA-4096; the message names what was found.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FirmwareError("FIRMWARE_KEY_INVALID", f"release key is not a PEM public key: {error}") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise _wrong_key(type(key).__name__)
    if key.key_size != RELEASE_KEY_BITS:
        raise _wrong_key(f"RSA-{key.key_size}")
    return key


def generate_release_key() -> tuple[bytes, bytes]:
    """A new release key: (private PKCS#8 PEM, public SubjectPublicKeyInfo PEM). Takes seconds."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=RELEASE_KEY_BITS)
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


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


def _wrong_key(found: str) -> FirmwareError:
    return FirmwareError("FIRMWARE_KEY_INVALID", f"release key is {found}; RSA-{RELEASE_KEY_BITS} is accepted")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
