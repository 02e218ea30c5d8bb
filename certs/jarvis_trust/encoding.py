# SPDX-License-Identifier: Apache-2.0
"""Bytes that are signed or hashed: framing under a domain tag, canonical JSON, and its strict reader.

Standard library only: `firmware` imports this at the meter's start-up.
"""

from __future__ import annotations

import json
import re
import struct
from datetime import UTC, datetime
from typing import Any

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_RFC3339_UTC = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?Z", re.ASCII)


def framed(tag: str, *fields: bytes) -> bytes:
    """The bytes to sign or hash: tag, a zero byte, then each field behind its length (u32, big-endian).

    The lengths make the encoding injective: no two different lists of fields give the same bytes.
    """
    parts = [tag.encode("ascii"), b"\0"]
    for field in fields:
        parts += (struct.pack(">I", len(field)), field)
    return b"".join(parts)


def u64(value: int) -> bytes:
    """A 64-bit unsigned field, big-endian."""
    return struct.pack(">Q", value)


def canonical_json(value: object) -> bytes:
    """The one encoding of a JSON value: sorted keys, no spaces, ASCII only."""
    return _ENCODER.encode(value).encode("ascii")


def parse_json_object(data: bytes, *, max_bytes: int, canonical: bool) -> dict[str, Any]:
    """Reads a JSON object from outside.

    Args:
        data: the bytes as received.
        max_bytes: refused when longer, before anything is parsed.
        canonical: also refuse bytes that are not the canonical encoding of what they say.

    Raises:
        ValueError: with a sentence that does not repeat the data.
    """
    if len(data) > max_bytes:
        raise ValueError(f"{len(data)} bytes; at most {max_bytes} are accepted")
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}; an object is accepted")  # noqa: TRY004 - callers turn ValueError into a reason
    if canonical and canonical_json(value) != data:
        raise ValueError("not canonical JSON (sorted keys, no spaces, ASCII only)")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} appears twice")
        found[key] = value
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


# Made once: the controller reads thousands of small objects a second.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def check_keys(value: dict[str, Any], accepted: frozenset[str]) -> None:
    """Exactly the accepted keys, or ValueError naming the first that is missing or unknown."""
    if value.keys() == accepted:
        return
    for key in sorted(accepted - value.keys()):
        raise ValueError(f"field {key!r} is missing")
    for key in sorted(value.keys() - accepted):
        raise ValueError(f"field {key!r} is unknown; accepted are {', '.join(sorted(accepted))}")


def is_sha256_hex(value: object) -> bool:
    """64 lower-case hexadecimal digits."""
    return isinstance(value, str) and _SHA256_HEX.fullmatch(value) is not None


def is_rfc3339_utc(value: object) -> bool:
    """A real instant such as 2026-11-22T10:00:00Z or 2026-11-22T10:00:00.25Z."""
    if not isinstance(value, str) or _RFC3339_UTC.fullmatch(value) is None:
        return False
    try:
        datetime.fromisoformat(value[:19])
    except ValueError:
        return False
    return True


def instant_ns(value: str) -> int:
    """Ns since the Unix epoch of a text that is_rfc3339_utc accepts.

    Raises:
        ValueError: it does not.
    """
    if not is_rfc3339_utc(value):
        raise ValueError(f"{value[:40]!r} is not RFC 3339 in UTC such as 2026-11-22T10:00:00Z")
    whole = datetime.strptime(value[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    fraction = value[20:-1].ljust(9, "0")
    return int(whole.timestamp()) * 10**9 + int(fraction)


def check_version(version: object) -> None:
    """A version that rises with every issue, 1..2**32-1.

    Raises:
        ValueError: it is none; the sentence names the field.
    """
    if type(version) is not int or not 1 <= version < 2**32:
        raise ValueError(f"version is {str(version)[:40]}; an integer from 1 to 4294967295 is accepted")


def check_span(created: object, expires: object) -> None:
    """The fields `created` and `expires` of something signed: instants, in this order.

    Raises:
        ValueError: they are not; the sentence names the field.
    """
    for field, value in (("created", created), ("expires", expires)):
        if not is_rfc3339_utc(value):
            raise ValueError(f"{field} is {str(value)[:40]!r}; RFC 3339 in UTC such as 2026-11-22T10:00:00Z is accepted")
    if instant_ns(str(expires)) <= instant_ns(str(created)):
        raise ValueError(f"expires is {expires}; later than created ({created}) is accepted")


def rfc3339_utc(instant: datetime) -> str:
    """An aware datetime as RFC 3339 in UTC, to the microsecond where it has one."""
    if instant.tzinfo is None:
        raise ValueError("a datetime without a time zone names no instant; give one with tzinfo")
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
