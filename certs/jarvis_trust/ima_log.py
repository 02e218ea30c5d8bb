# SPDX-License-Identifier: Apache-2.0
"""IMA's measurement list: what the kernel measured of the files that this host opened and ran since it came up, in PCR 10.

    bytes (securityfs ima/binary_runtime_measurements, templates ima-ng and ima-sig) -> entries -> replay -> PCR 10

    pcr u32 | SHA-1 of the template data (20) | size u32 | template's name | size u32 | template data
    template data: {size u32 | field}...   ima-ng: d-ng ("sha256:" NUL digest), n-ng (path NUL);  ima-sig: sig besides

Integers are little-endian (x86, and everywhere under ima_canonical_fmt). The SHA-256 bank is extended by the SHA-256 of the
template data; kernels before 5.8 extend the SHA-1 padded with zeros, which is told apart and not accepted. An entry with an
all-zero digest is a violation (the file was open for writing, too): it extends ones, so NOTHING of what it says is covered by the
PCR. The template's name and the PCR's number are not covered either: only templates that begin alike, and PCR 10, are accepted.

The bytes come from agents and are hostile: every size is bounded before it is used, and all of the input is read or refused.
Linux security/integrity/ima/ima_fs.c, ima_template_lib.c, ima_crypto.c, ima_queue.c.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jarvis_trust.errors import AttestationError

IMA_PCR: Final = 10
MAX_IMA_LOG_BYTES: Final = 6 * 1024 * 1024
"""Of new entries in one attestation."""
MAX_IMA_ENTRY_BYTES: Final = 64 * 1024
"""Of one entry's template data."""
BOOT_AGGREGATE: Final = b"boot_aggregate"
"""Name of the list's first entry."""

_HEADER = struct.Struct("<I20sI")
_U32 = struct.Struct("<I")
_FIELDS: Final = {b"ima-ng": 2, b"ima-sig": 3}
_ALGORITHM = re.compile(rb"[a-z][a-z0-9-]{0,31}")
_NAME_MAX: Final = 16
_PATH_MAX: Final = 4096
_VIOLATION: Final = bytes(20)
_ONES: Final = b"\xff" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaEntry:
    """One entry of the list."""

    number: int
    """Position in the list, from 0."""
    is_violation: bool
    """Then path and digest are not covered by the PCR."""
    algorithm: str
    """Of the file's digest, as the kernel names it: "sha256"."""
    digest: bytes
    """Of the file's contents."""
    path: bytes
    """As the kernel saw it when it was measured; any bytes but NUL."""
    extended: bytes
    """What the SHA-256 bank was extended by, 32 bytes."""
    sha1: bytes
    """Of the template data, 20 bytes: what the list itself names."""


def parse_ima_log(data: bytes, *, first: int = 0) -> tuple[ImaEntry, ...]:
    """Every entry of a list, or of its part from entry `first` on.

    Raises:
        AttestationError: IMA_LOG_INVALID naming the entry and what is wrong with it.
    """
    if len(data) > MAX_IMA_LOG_BYTES:
        raise _invalid(f"{len(data)} bytes; at most {MAX_IMA_LOG_BYTES} are accepted")
    entries: list[ImaEntry] = []
    offset = 0
    while offset < len(data):
        entry, offset = _parse_entry(data, offset, first + len(entries))
        entries.append(entry)
    return tuple(entries)


def split_ima_log(data: bytes, skip: int) -> tuple[int, int]:
    """(entries, offset of entry `skip`) of a list, by its sizes alone: for its owner, who need not judge it.

    Bytes after the last whole entry are not counted. The offset is that of the end when there are not more entries than `skip`.

    Raises:
        AttestationError: IMA_LOG_INVALID when the sizes make no sense.
    """
    count = offset = 0
    at = 0
    while (end := _end_of_entry(data, offset)) is not None:
        offset, count = end, count + 1
        if count <= skip:
            at = offset
    return count, at


def replay_until(entries: Sequence[ImaEntry], start: bytes, quoted: bytes) -> int | None:
    """How many of the entries give the quoted value of PCR 10 after `start`; None when no number of them does.

    The kernel adds to the list before it extends, and the list is read after the quote: it may be ahead.
    """
    value = start
    if value == quoted:
        return 0
    for count, entry in enumerate(entries, 1):
        value = hashlib.sha256(value + entry.extended).digest()
        if value == quoted:
            return count
    return None


def extends_padded_sha1(entries: Sequence[ImaEntry], quoted: bytes) -> bool:
    """Whether a whole list gives the quoted value as kernels before 5.8 extend it."""
    value = bytes(32)
    for entry in entries:
        value = hashlib.sha256(value + (_ONES if entry.is_violation else entry.sha1 + bytes(12))).digest()
        if value == quoted:
            return True
    return False


def _parse_entry(data: bytes, offset: int, number: int) -> tuple[ImaEntry, int]:
    what = f"entry {number}"
    if len(data) - offset < _HEADER.size:
        raise _invalid(f"ends inside {what}")
    pcr, sha1, name_size = _HEADER.unpack_from(data, offset)
    if pcr != IMA_PCR:
        raise _invalid(f"{what} is of PCR {pcr}; {IMA_PCR} is accepted")
    if not 1 <= name_size <= _NAME_MAX:
        raise _invalid(f"{what}: the template's name has {name_size} bytes; 1 to {_NAME_MAX} are accepted")
    offset += _HEADER.size
    name = data[offset : offset + name_size]
    if name not in _FIELDS:
        raise _invalid(f"{what} is of template {name!r}; ima-ng and ima-sig are accepted")
    offset += name_size
    size = _size(data, offset, what, MAX_IMA_ENTRY_BYTES)
    offset += 4
    template = data[offset : offset + size]
    algorithm, digest, path = _parse_template(template, _FIELDS[name], what)
    is_violation = sha1 == _VIOLATION
    if not is_violation and hashlib.sha1(template, usedforsecurity=False).digest() != sha1:
        raise _invalid(f"{what} ({path!a}) does not have the SHA-1 that it names")
    entry = ImaEntry(
        number=number,
        is_violation=is_violation,
        algorithm=algorithm,
        digest=digest,
        path=path,
        extended=_ONES if is_violation else hashlib.sha256(template).digest(),
        sha1=sha1,
    )
    return entry, offset + size


def _parse_template(template: bytes, count: int, what: str) -> tuple[str, bytes, bytes]:
    """Algorithm and digest of the file, and its path."""
    fields: list[bytes] = []
    offset = 0
    for _ in range(count):
        size = _size(template, offset, f"{what}'s template data", MAX_IMA_ENTRY_BYTES)
        fields.append(template[offset + 4 : offset + 4 + size])
        offset += 4 + size
    if offset != len(template):
        raise _invalid(f"{what}: {len(template) - offset} bytes follow its {count} fields")
    algorithm, separator, digest = fields[0].partition(b":\0")
    if not separator or _ALGORITHM.fullmatch(algorithm) is None or not 16 <= len(digest) <= 64:
        raise _invalid(f"{what}: its digest is not of the form ALGORITHM: NUL DIGEST")
    path, terminator, rest = fields[1].partition(b"\0")
    if not terminator or rest or not 1 <= len(path) <= _PATH_MAX:
        raise _invalid(f"{what}: its path is not one of 1 to {_PATH_MAX} bytes that ends with a NUL")
    return algorithm.decode("ascii"), digest, path


def _size(data: bytes, offset: int, what: str, most: int) -> int:
    """A u32 size at `offset`, of bytes that are there."""
    if len(data) - offset < 4:
        raise _invalid(f"ends inside {what}")
    size = int(_U32.unpack_from(data, offset)[0])
    if size > most:
        raise _invalid(f"{what} has a size of {size}; at most {most} is accepted")
    if size > len(data) - offset - 4:
        raise _invalid(f"ends inside {what}")
    return size


def _end_of_entry(data: bytes, offset: int) -> int | None:
    """Where the entry at `offset` ends; None when it is not there as a whole."""
    if len(data) - offset < _HEADER.size:
        return None
    name_size = _HEADER.unpack_from(data, offset)[2]
    offset += _HEADER.size + name_size
    if name_size > _NAME_MAX:
        raise _invalid(f"a template's name has {name_size} bytes; at most {_NAME_MAX} are accepted")
    if len(data) - offset < 4:
        return None
    size = _U32.unpack_from(data, offset)[0]
    if size > MAX_IMA_ENTRY_BYTES:
        raise _invalid(f"an entry has {size} bytes; at most {MAX_IMA_ENTRY_BYTES} are accepted")
    end = int(offset + 4 + size)
    return None if end > len(data) else end


def _invalid(message: str) -> AttestationError:
    return AttestationError("IMA_LOG_INVALID", f"IMA list: {message}")
