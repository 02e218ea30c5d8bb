# SPDX-License-Identifier: Apache-2.0
"""A fleet policy as one document: the text of policy.toml and every file that it names; so it can travel and be kept and hashed.

    policy.toml on a disk -> read_document -> PolicyDocument -> (wire) -> PolicyDocument -> the controller judges what it says

What the fields mean, and whether they may be so, is the controller's alone to say. Here only the names of files are looked for.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jarvis.capture.v1 import policy_pb2

from jarvis_trust.encoding import canonical_json
from jarvis_trust.errors import PolicyError

MAX_DOCUMENT_BYTES: Final = 960 * 1024
"""Text and files together; a request to the controller holds at most 1 MiB."""
MAX_FILES: Final = 256
_DOMAIN: Final = b"jarvis-policy-v1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocument:
    """The text and the files. Bounded on construction (POLICY_TOO_LARGE)."""

    text: str
    files: Mapping[str, bytes]
    """As the text names them; signatures with ".sig" behind the name."""

    def __post_init__(self) -> None:
        size = len(self.text.encode()) + sum(map(len, self.files.values()))
        if size > MAX_DOCUMENT_BYTES:
            raise PolicyError(
                "POLICY_TOO_LARGE", f"the policy has {size} bytes with its files; {MAX_DOCUMENT_BYTES} are accepted"
            )
        if len(self.files) > MAX_FILES:
            raise PolicyError("POLICY_TOO_LARGE", f"the policy names {len(self.files)} files; {MAX_FILES} are accepted")

    @property
    def sha256(self) -> bytes:
        """Of the text and of every file under its name: what names this policy."""
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        text = hashlib.sha256(self.text.encode()).hexdigest()
        return hashlib.sha256(_DOMAIN + canonical_json({"files": digests, "text": text})).digest()

    def to_message(self) -> policy_pb2.PolicyDocument:
        """As it travels."""
        files = [policy_pb2.PolicyFile(name=name, data=data) for name, data in sorted(self.files.items())]
        return policy_pb2.PolicyDocument(text=self.text, files=files)

    @classmethod
    def from_message(cls, message: policy_pb2.PolicyDocument) -> PolicyDocument:
        """The document as it came.

        Raises:
            PolicyError: POLICY_TOO_LARGE, POLICY_INVALID (a name comes twice).
        """
        files = {file.name: file.data for file in message.files}
        if len(files) != len(message.files):
            raise PolicyError("POLICY_INVALID", "document.files: a name comes twice; different names are accepted")
        return cls(text=message.text, files=files)


def parse_text(text: str) -> dict[str, Any]:
    """The text as TOML.

    Raises:
        PolicyError: POLICY_INVALID.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for a number of thousands of digits, and for arrays that deep
        raise PolicyError("POLICY_INVALID", f"not TOML: {error}") from error


def read_document(path: Path) -> PolicyDocument:
    """Reads policy.toml and what it names; paths are relative to it.

    Raises:
        PolicyError: POLICY_UNREADABLE naming the file and, if another file names it, where; POLICY_INVALID, POLICY_TOO_LARGE.
    """
    try:
        text = _read(path, str(path)).decode()
    except UnicodeDecodeError as error:
        raise PolicyError("POLICY_INVALID", f"{path}: not UTF-8: {error}") from error
    try:
        files = {name: _read(path.parent / name, field) for field, name in file_names(parse_text(text))}
        return PolicyDocument(text=text, files=files)
    except PolicyError as error:
        raise PolicyError(error.reason, f"{path}: {error.message}") from error


def file_names(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and name of every file that the text names; fields that are not as they should be are passed over."""
    vendors = table.get("vendors")
    if isinstance(vendors, dict):
        yield from (("vendors.roots", name) for name in _texts(vendors.get("roots")))
    ima = table.get("ima")
    if isinstance(ima, dict):
        yield from (("ima.allowed", name) for name in _texts(ima.get("allowed")))
    rules = table.get("rule")
    for number, rule in enumerate(rules if isinstance(rules, list) else ()):
        for name in _texts(rule.get("references")) if isinstance(rule, dict) else ():
            yield f"rule[{number}].references", name
            yield f"rule[{number}].references", f"{name}.sig"


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str) and item] if isinstance(value, list) else []


def _read(path: Path, field: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise PolicyError("POLICY_UNREADABLE", f"{field}: {path}: {said}") from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise PolicyError("POLICY_TOO_LARGE", f"{field}: {path} has more than {MAX_DOCUMENT_BYTES} bytes")
    return data
