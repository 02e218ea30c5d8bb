# SPDX-License-Identifier: Apache-2.0
"""Release keys and what k of n of them signed: RSA-4096, PSS with SHA-256 and a salt of 32 bytes.

    sign:    private key, bytes -> sign_bytes -> Signature -> encode_signatures -> manifest.sig
    verify:  manifest.sig -> parse_signatures -> count_signatures(bytes, keys) -> check_threshold(k)

    {"signatures":[{"keyid":"<hex>","sig":"<base64>"}]}      keyid = SHA-256 of the key's SubjectPublicKeyInfo (DER)

An id follows from the key itself, so that no key has two; the signatures of one key count once, however many there are; those of
keys that the root does not name count nothing. The bytes that are signed carry their own domain tag, the field `format`.
Imports `cryptography` and the standard library only: the offline meter loads this at start-up.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from jarvis_trust.encoding import canonical_json, check_keys, is_sha256_hex, parse_json_object
from jarvis_trust.errors import FirmwareError

RELEASE_KEY_BITS = 4096
MAX_SIGNATURES = 32
MAX_SIGNATURES_BYTES = 32 * 1024

_SIGNATURE_BYTES = RELEASE_KEY_BITS // 8
_EXPONENT = 65537
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One key's signature over some bytes."""

    keyid: str
    """SHA-256 of the key's SubjectPublicKeyInfo, 64 lower-case hex digits."""
    value: bytes
    """512 bytes."""

    def to_object(self) -> dict[str, str]:
        """As it is in JSON."""
        return {"keyid": self.keyid, "sig": base64.b64encode(self.value).decode("ascii")}


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureCount:
    """What a set of signatures is worth to those who trust certain keys."""

    valid: tuple[str, ...]
    """Ids of the trusted keys that signed these very bytes, ascending, each once."""
    invalid: tuple[str, ...]
    """Ids of trusted keys under which there is a signature of something else, and none that is valid."""
    unknown: tuple[str, ...]
    """Ids that are not trusted: not looked at any further."""


def key_id(key: rsa.RSAPublicKey) -> str:
    """SHA-256 of its SubjectPublicKeyInfo, hex."""
    return hashlib.sha256(spki_der(key)).hexdigest()


def spki_der(key: rsa.RSAPublicKey) -> bytes:
    """SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign_bytes(data: bytes, private_pem: bytes) -> Signature:
    """A release key's signature over bytes that carry their own domain tag.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID when the key is not RSA-4096; the message names what was found.
    """
    key = load_release_private_key(private_pem)
    return Signature(keyid=key_id(key.public_key()), value=key.sign(data, _PSS, hashes.SHA256()))


def encode_signatures(signatures: Iterable[Signature]) -> bytes:
    """The signature file: ascending by key id, the last one given for a key."""
    return canonical_json({"signatures": signature_objects(signatures)})


def signature_objects(signatures: Iterable[Signature]) -> list[dict[str, str]]:
    """The JSON list of signatures, ascending by key id, the last one given for a key."""
    newest = {signature.keyid: signature for signature in signatures}
    return [newest[keyid].to_object() for keyid in sorted(newest)]


def parse_signatures(data: bytes, *, what: str) -> tuple[Signature, ...]:
    """Reads a signature file. Says nothing of what they are worth.

    Args:
        data: contents of the file.
        what: whose signatures they are, for errors, e.g. "the manifest".

    Raises:
        FirmwareError: FIRMWARE_SIGNATURE_INVALID: it has another form.
    """
    try:
        fields = parse_json_object(data, max_bytes=MAX_SIGNATURES_BYTES, canonical=True)
        check_keys(fields, frozenset({"signatures"}))
        return read_signatures(fields["signatures"])
    except ValueError as error:
        raise FirmwareError("FIRMWARE_SIGNATURE_INVALID", f"{what}'s signature file: {error}") from error


def read_signatures(value: Any) -> tuple[Signature, ...]:
    """The JSON list of signatures.

    Raises:
        ValueError: with a sentence.
    """
    if not isinstance(value, list) or len(value) > MAX_SIGNATURES:
        raise ValueError(f"signatures is not a list of at most {MAX_SIGNATURES}")
    return tuple(_read_signature(item) for item in value)


def _read_signature(item: Any) -> Signature:
    if not isinstance(item, dict):
        raise ValueError("a signature is not an object")  # noqa: TRY004 - callers turn ValueError into a reason
    check_keys(item, frozenset({"keyid", "sig"}))
    if not is_sha256_hex(item["keyid"]):
        raise ValueError("keyid is not 64 lower-case hex digits")
    value = read_base64(item["sig"], "sig")
    if len(value) != _SIGNATURE_BYTES:
        raise ValueError(f"sig has {len(value)} bytes; RSA-{RELEASE_KEY_BITS} gives {_SIGNATURE_BYTES}")
    return Signature(keyid=item["keyid"], value=value)


def read_base64(value: Any, what: str) -> bytes:
    """The bytes of a text in base64, in its one encoding.

    Raises:
        ValueError: it is none.
    """
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError as error:  # binascii.Error is one
        raise ValueError(f"{what} is not base64") from error
    if base64.b64encode(data).decode("ascii") != value:
        raise ValueError(f"{what} is not base64 in its one encoding")
    return data


def count_signatures(data: bytes, signatures: Iterable[Signature], keys: Mapping[str, rsa.RSAPublicKey]) -> SignatureCount:
    """Which of these keys signed exactly these bytes. Never raises."""
    valid: set[str] = set()
    invalid: set[str] = set()
    unknown: set[str] = set()
    for signature in signatures:
        key = keys.get(signature.keyid)
        if key is None:
            unknown.add(signature.keyid)
        elif signature.keyid not in valid:
            (valid if _holds(key, signature.value, data) else invalid).add(signature.keyid)
    return SignatureCount(valid=tuple(sorted(valid)), invalid=tuple(sorted(invalid - valid)), unknown=tuple(sorted(unknown)))


def check_threshold(count: SignatureCount, threshold: int, *, what: str) -> None:
    """At least `threshold` different trusted keys must have signed.

    Raises:
        FirmwareError: FIRMWARE_SIGNATURE_INVALID when none did, FIRMWARE_THRESHOLD_NOT_MET when too few did; `what` is named.
    """
    if len(count.valid) >= threshold:
        return
    others = f"; {len(count.invalid)} of them signed something else" if count.invalid else ""
    others += f"; {len(count.unknown)} signatures are of keys that the root does not name" if count.unknown else ""
    if not count.valid:
        raise FirmwareError("FIRMWARE_SIGNATURE_INVALID", f"{what} is signed by none of the release root's keys{others}")
    message = f"{what} is signed by {len(count.valid)} of the release root's keys; {threshold} different ones are needed{others}"
    raise FirmwareError("FIRMWARE_THRESHOLD_NOT_MET", message)


def _holds(key: rsa.RSAPublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data, _PSS, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def generate_release_key() -> tuple[bytes, bytes]:
    """A new release key: (private PKCS#8 PEM, public SubjectPublicKeyInfo PEM). Takes seconds."""
    key = rsa.generate_private_key(public_exponent=_EXPONENT, key_size=RELEASE_KEY_BITS)
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def load_release_private_key(pem: bytes) -> rsa.RSAPrivateKey:
    """A release key's private half.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FirmwareError("FIRMWARE_KEY_INVALID", f"release key is not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise _wrong_key(type(key).__name__)
    _check_key(key.public_key())
    return key


def load_release_public_key(pem: bytes) -> rsa.RSAPublicKey:
    """A release key's public half, PEM.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID when it is not RSA-4096; the message names what was found.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FirmwareError("FIRMWARE_KEY_INVALID", f"release key is not a PEM public key: {error}") from error
    return _checked(key)


def load_release_spki(der: bytes) -> rsa.RSAPublicKey:
    """A release key's public half, DER.

    Raises:
        FirmwareError: FIRMWARE_KEY_INVALID, also for a second encoding of the same key: it would have another id.
    """
    try:
        key = load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FirmwareError("FIRMWARE_KEY_INVALID", f"release key is not a DER public key: {error}") from error
    checked = _checked(key)
    if spki_der(checked) != der:
        raise FirmwareError("FIRMWARE_KEY_INVALID", "release key is not in its one DER encoding")
    return checked


def _checked(key: object) -> rsa.RSAPublicKey:
    if not isinstance(key, rsa.RSAPublicKey):
        raise _wrong_key(type(key).__name__)
    _check_key(key)
    return key


def _check_key(key: rsa.RSAPublicKey) -> None:
    if key.key_size != RELEASE_KEY_BITS:
        raise _wrong_key(f"RSA-{key.key_size}")
    exponent = key.public_numbers().e
    if exponent != _EXPONENT:
        raise _wrong_key(f"RSA-{key.key_size} with exponent {exponent}")


def _wrong_key(found: str) -> FirmwareError:
    return FirmwareError(
        "FIRMWARE_KEY_INVALID", f"release key is {found}; RSA-{RELEASE_KEY_BITS} with exponent {_EXPONENT} is accepted"
    )
