# SPDX-License-Identifier: Apache-2.0
"""The join file: what an operator carries to a host so that it can join the fleet. It holds a secret (the token): 0600."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from jarvis_trust.ca_bundle import CaBundle
from jarvis_trust.encoding import canonical_json, check_keys, parse_json_object
from jarvis_trust.errors import EnrollmentError, IdentityError
from jarvis_trust.identities import validate_fleet_name
from jarvis_trust.keyfiles import read_private, write_private

MAX_JOIN_FILE_BYTES = 32 * 1024

_FORMAT = "jarvis-join-v1"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinFile:
    """Checked on construction (JOIN_FILE_INVALID); repr shows no token."""

    fleet: str
    token: str
    """Single use; see new_token."""
    ca_pem: str
    """The fleet CA, or both while it changes; the agent talks to nobody that it did not certify."""
    command_public_pem: str
    """Ed25519: leases and commands are signed with its private half."""
    address: str
    """host:port of the controller's enrolment service; IPv6 in brackets."""

    def __repr__(self) -> str:
        return f"JoinFile(fleet={self.fleet!r}, address={self.address!r})"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or not value.isascii():
                raise _invalid(f"{field.name} is not an ASCII text")
        try:
            validate_fleet_name(self.fleet)
            ca_fleet = CaBundle.parse(self.ca_pem.encode()).fleet
            check_address(self.address)
        except (IdentityError, EnrollmentError) as error:
            raise _invalid(error.message) from error
        if ca_fleet != self.fleet:
            raise _invalid(f"ca_pem is the CA of {ca_fleet!r}; that of {self.fleet!r} is accepted")
        if _TOKEN.fullmatch(self.token) is None:
            raise _invalid("token is not 32 to 128 characters of A-Z a-z 0-9 _ -")
        try:
            key = load_pem_public_key(self.command_public_pem.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _invalid(f"command_public_pem is not a PEM public key: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise _invalid(f"command_public_pem is a {type(key).__name__}; Ed25519 is accepted")

    def to_json(self) -> str:
        """The file's contents."""
        return canonical_json({"format": _FORMAT, **asdict(self)}).decode("ascii") + "\n"

    @classmethod
    def from_json(cls, data: str | bytes) -> JoinFile:
        """Reads a join file's contents.

        Raises:
            EnrollmentError: JOIN_FILE_INVALID, naming the field.
        """
        raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        try:
            values = parse_json_object(raw, max_bytes=MAX_JOIN_FILE_BYTES, canonical=False)
            check_keys(values, frozenset(field.name for field in fields(cls)) | {"format"})
        except ValueError as error:
            raise _invalid(str(error)) from error
        if values.pop("format") != _FORMAT:
            raise _invalid(f"format is not {_FORMAT!r}")
        return cls(**values)

    def save(self, path: Path) -> None:
        """Writes the file, 0600. Raises FileExistsError rather than replace one."""
        write_private(path, self.to_json().encode("ascii"))

    @classmethod
    def load(cls, path: Path) -> JoinFile:
        """Reads the file.

        Raises:
            EnrollmentError: JOIN_FILE_INVALID.
            IdentityError: KEY_FILE_EXPOSED when group or others have access.
            OSError: it cannot be opened.
        """
        return cls.from_json(read_private(path))


def new_token() -> str:
    """A token of 256 random bits."""
    return secrets.token_urlsafe(32)


def token_sha256(token: str) -> bytes:
    """What the controller keeps of a token, 32 bytes: a leaked database gives no token away."""
    return hashlib.sha256(b"jarvis-token-v1\0" + token.encode("utf-8", "surrogatepass")).digest()


def check_address(address: str) -> None:
    """host:port, with a numeric port.

    Raises:
        EnrollmentError: ADDRESS_INVALID.
    """
    match = _ADDRESS.fullmatch(address) if len(address) <= 300 else None
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise EnrollmentError("ADDRESS_INVALID", f"address {address[:80]!r}: host:port is accepted, IPv6 as [::1]:7441")


def _invalid(message: str) -> EnrollmentError:
    return EnrollmentError("JOIN_FILE_INVALID", f"join file: {message}")
