# SPDX-License-Identifier: Apache-2.0
"""What the files that IMA measured must be: directories and files that are judged, and the digests that are accepted of them.

The list of accepted digests is what `sha256sum` prints, one "HEX  /path" a line: it is made on a host that is as it should be.

    find /usr/local/lib/jarvis-capture -type f -print0 | xargs -0 sha256sum > agent.sha256
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from jarvis_trust.encoding import framed
from jarvis_trust.errors import AttestationError

MAX_ALLOWED: Final = 65_536
"""Digests of a policy."""
_LINE = re.compile(rb"([0-9a-f]{64}) [ *](/[^\0]{0,4095})")
_FIRMWARE_NAME = re.compile(rb"libjarvis_capture\w*\.so")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaPolicy:
    """What the measurement list is judged by."""

    paths: tuple[str, ...] = ()
    """Absolute; one that ends with / stands for everything below it. Firmware objects are judged wherever they lie."""
    allowed: frozenset[tuple[bytes, bytes]] = frozenset()
    """(path, SHA-256): beside what signed manifests name, the accepted contents of these paths."""
    required: tuple[str, ...] = ()
    """Absolute paths that the list must have, such as the interpreter's."""
    accept_violations: bool = False
    """Violations of other paths are accepted. What a violation says of itself no PCR covers: its path may be a lie."""

    def __post_init__(self) -> None:
        for field in ("paths", "required"):
            for path in getattr(self, field):
                if not path.startswith("/") or "\0" in path or path == "/" or len(path) > 4096:
                    message = f"{field}: {path[:80]!r}: an absolute path other than / is accepted"
                    message = f"{field}: {path[:80]!r}: an absolute path other than / is accepted"
                    raise AttestationError("IMA_POLICY_INVALID", message)
        if len(self.allowed) > MAX_ALLOWED:
            message = f"allowed: {len(self.allowed)} digests; at most {MAX_ALLOWED} are accepted"
            raise AttestationError("IMA_POLICY_INVALID", message)

    @property
    def scope_sha256(self) -> bytes:
        """Names which entries are judged: what was kept of a list for another scope is of no use."""
        paths = (path.encode("utf-8", "surrogateescape") for path in (*self.paths, *self.required))
        return hashlib.sha256(framed("jarvis-ima-scope-v1", *sorted(set(paths)))).digest()

    def covers(self, path: bytes) -> bool:
        """Whether an entry of this path is judged."""
        if is_firmware(path):
            return True
        for wanted in (*self.paths, *self.required):
            encoded = wanted.encode("utf-8", "surrogateescape")
            if path == encoded or (encoded.endswith(b"/") and path.startswith(encoded)):
                return True
        return False


def is_firmware(path: bytes) -> bool:
    """Whether a path's last part is the name of the capture firmware or of one of its modules."""
    return _FIRMWARE_NAME.fullmatch(path.rpartition(b"/")[2]) is not None


def parse_allow_list(data: bytes) -> frozenset[tuple[bytes, bytes]]:
    """What `sha256sum` printed: (path, SHA-256) of each line.

    Raises:
        AttestationError: IMA_POLICY_INVALID naming the line. Names that sha256sum escapes (a leading backslash) are not accepted.
    """
    allowed = set()
    for number, line in enumerate(data.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            message = (
                f"line {number}: 64 hexadecimal digits, two spaces and an absolute path are accepted, as sha256sum prints them"
            )
            raise AttestationError("IMA_POLICY_INVALID", message)
        allowed.add((match[2], bytes.fromhex(match[1].decode("ascii"))))
        if len(allowed) > MAX_ALLOWED:
            raise AttestationError("IMA_POLICY_INVALID", f"line {number}: at most {MAX_ALLOWED} digests are accepted")
    return frozenset(allowed)


def format_allow_list(allowed: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The same list as a file, sorted by path."""
    return b"".join(digest.hex().encode("ascii") + b"  " + path + b"\n" for path, digest in sorted(allowed))
