# SPDX-License-Identifier: Apache-2.0
"""The firmware event log: what was measured into the PCR, one JSON object a line.

    {"content":{...},"digest":"<hex>","pcr":14,"recnum":0}

    digest = SHA-256("jarvis-event-v1" || 0 || canonical JSON of content)     PCR = SHA-256(PCR || digest), from 32 zero bytes

The digest covers the whole content, its type included, so that an event cannot be relabelled. The agent appends and syncs a line
*before* it extends the PCR: after a crash the log may hold one event more than the PCR, never one less.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from jarvis_trust.encoding import canonical_json, check_keys, is_rfc3339_utc, is_sha256_hex, parse_json_object, rfc3339_utc
from jarvis_trust.errors import AttestationError

MAX_LOG_BYTES = 4 * 1024 * 1024
MAX_EVENTS = 16_384
MAX_LINE_BYTES = 32 * 1024
"""A path of 4096 bytes, each as a \\uXXXX escape, and the rest of the record."""

_TAG = b"jarvis-event-v1\0"
_RECORD_FIELDS = frozenset({"recnum", "pcr", "digest", "content"})
_COMMON_FIELDS = frozenset({"type", "sha256", "time", "boot_id", "session_id"})
_SUBJECT_FIELD = {"load-attempt": "object", "trial": "object", "mapping": "path"}
_OBJECT_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}")
_PATH_MAX = 4096
_ID_HEX = re.compile(r"[0-9a-f]{32}")
_USUAL_RECORD = re.compile(
    r'\{"content":\{"boot_id":"([0-9a-f]{32})","(object|path)":"([ !#-\[\]-~]*)","session_id":"([0-9a-f]{32})",'
    r'"sha256":"([0-9a-f]{64})","time":"([0-9TZ:.-]*)","type":"([a-z-]*)"\},'
    r'"digest":"([0-9a-f]{64})","pcr":(0|[1-9][0-9]{0,2}),"recnum":(0|[1-9][0-9]{0,7})\}'
)
"""A record that is canonical JSON by its form: printable ASCII without escapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareEvent:
    """One measured event, its digest recomputed from its content."""

    recnum: int
    """Position in the log, from 0."""
    pcr: int
    """Index of the extended PCR, SHA-256 bank."""
    digest: bytes
    """What the PCR was extended with, 32 bytes."""
    content: Mapping[str, str]
    """type, sha256, time, boot_id, session_id, and `object` (load-attempt, trial) or `path` (mapping). Read-only."""

    @property
    def type(self) -> str:
        """The event's type: "load-attempt", "trial" or "mapping"."""
        return self.content["type"]

    @property
    def subject(self) -> str:
        """The object's file name, or the mapping's path."""
        return self.content[_SUBJECT_FIELD[self.type]]

    @property
    def sha256(self) -> bytes:
        """Digest of the measured file, 32 bytes."""
        return bytes.fromhex(self.content["sha256"])


def load_attempt(*, object_name: str, sha256: bytes, time: datetime, boot_id: bytes, session_id: bytes) -> dict[str, str]:
    """Content of the event that precedes every judgement of a native object. Ids are 16 bytes, the time is aware."""
    return {"type": "load-attempt", "object": object_name, **_common(sha256, time, boot_id, session_id)}


def trial(*, object_name: str, sha256: bytes, time: datetime, boot_id: bytes, session_id: bytes) -> dict[str, str]:
    """Content of the event that precedes a native object's trial in a process of its own; the session is that of who tries it."""
    return {"type": "trial", "object": object_name, **_common(sha256, time, boot_id, session_id)}


def mapping(*, path: str, sha256: bytes, time: datetime, boot_id: bytes, session_id: bytes) -> dict[str, str]:
    """Content of an event for another executable mapping of the process. Ids are 16 bytes, the time is aware."""
    return {"type": "mapping", "path": path, **_common(sha256, time, boot_id, session_id)}


def _common(sha256: bytes, time: datetime, boot_id: bytes, session_id: bytes) -> dict[str, str]:
    return {"sha256": sha256.hex(), "time": rfc3339_utc(time), "boot_id": boot_id.hex(), "session_id": session_id.hex()}


def event_digest(content: Mapping[str, str]) -> bytes:
    """What the PCR is extended with for this content, 32 bytes."""
    return hashlib.sha256(_TAG + canonical_json(dict(content))).digest()


def check_pcr(pcr: int) -> None:
    """PCRs that start at zero and that user space cannot reset.

    Raises:
        AttestationError: PCR_INVALID.
    """
    if type(pcr) is not int or not 0 <= pcr <= 15:
        raise AttestationError("PCR_INVALID", f"pcr is {pcr!r}: 0 to 15 are accepted (16 and 23 can be reset from user space)")


def encode_event(recnum: int, pcr: int, content: Mapping[str, str]) -> bytes:
    """One line of the log, newline included. What parse_log would refuse is refused here already.

    Raises:
        AttestationError: PCR_INVALID, EVENT_LOG_INVALID.
    """
    check_pcr(pcr)
    if type(recnum) is not int or not 0 <= recnum < MAX_EVENTS:
        raise _invalid(f"recnum is {recnum!r}; 0 to {MAX_EVENTS - 1} are accepted")
    try:
        _check_content(dict(content))
    except ValueError as error:
        raise _invalid(f"record {recnum}: {error}") from error
    return canonical_json({"recnum": recnum, "pcr": pcr, "digest": event_digest(content).hex(), "content": dict(content)}) + b"\n"


def parse_log(data: bytes, *, max_bytes: int = MAX_LOG_BYTES) -> list[FirmwareEvent]:
    """Every event of a log, oldest first; an empty log has none.

    Args:
        data: the log's bytes.
        max_bytes: longest log that is accepted; more than the default only where the size was judged before.

    Raises:
        AttestationError: EVENT_LOG_INVALID naming the record, EVENT_DIGEST_WRONG when a content was edited.
    """
    if len(data) > max_bytes:
        raise _invalid(f"{len(data)} bytes; at most {max_bytes} are accepted")
    if not data:
        return []
    lines = data.split(b"\n")
    if lines.pop():
        raise _invalid("the last record does not end with a newline")
    if len(lines) > MAX_EVENTS:
        raise _invalid(f"{len(lines)} records; at most {MAX_EVENTS} are accepted")
    events: list[FirmwareEvent] = []
    for recnum, line in enumerate(lines):
        try:
            events.append(_parse_record(line, recnum))
        except ValueError as error:
            raise _invalid(f"record {recnum}: {error}") from error
    return events


def replay(events: Iterable[FirmwareEvent]) -> bytes:
    """The value that the PCR has after these events, 32 bytes.

    Raises:
        AttestationError: EVENT_LOG_INVALID when the events are not all of one PCR.
    """
    value, pcr = bytes(32), None
    for event in events:
        if pcr is None:
            pcr = event.pcr
        elif event.pcr != pcr:
            raise _invalid(f"record {event.recnum} is of PCR {event.pcr}; those before it are of PCR {pcr}")
        value = hashlib.sha256(value + event.digest).digest()
    return value


def _parse_record(line: bytes, recnum: int) -> FirmwareEvent:
    record = _usual_record(line) or parse_json_object(line, max_bytes=MAX_LINE_BYTES, canonical=True)
    check_keys(record, _RECORD_FIELDS)
    if type(record["recnum"]) is not int or record["recnum"] != recnum:
        raise ValueError(f"recnum is {str(record['recnum'])[:40]}; {recnum} comes next")
    try:
        check_pcr(record["pcr"])
    except AttestationError as error:
        raise ValueError(error.message) from error
    content = record["content"]
    _check_content(content)
    if not is_sha256_hex(record["digest"]):
        raise ValueError("digest is not 64 lower-case hex digits")
    digest = _digest_of_content(line)
    if digest.hex() != record["digest"]:
        raise AttestationError("EVENT_DIGEST_WRONG", f"event log: record {recnum}: its digest is not that of its content")
    return FirmwareEvent(recnum=recnum, pcr=record["pcr"], digest=digest, content=MappingProxyType(content))


def _usual_record(line: bytes) -> dict[str, Any] | None:
    """The same as the JSON reader gives, in a third of its time: logs have hundreds of records. None: it is for that reader."""
    match = _USUAL_RECORD.fullmatch(line.decode("latin-1")) if len(line) <= MAX_LINE_BYTES else None
    if match is None:
        return None
    boot_id, subject_field, subject, session_id, sha256, time, kind, digest, pcr, recnum = match.groups()
    content = {
        "boot_id": boot_id, subject_field: subject, "session_id": session_id, "sha256": sha256, "time": time, "type": kind,
    }  # fmt: skip
    return {"content": content, "digest": digest, "pcr": int(pcr), "recnum": int(recnum)}


def _digest_of_content(line: bytes) -> bytes:
    """event_digest of a record's content, without encoding it again: the line is canonical JSON and begins with it.

    No text inside the content can look like the member that follows it: its quotation marks would be escaped.
    """
    return hashlib.sha256(_TAG + line[len(b'{"content":') : line.rindex(b',"digest":"')]).digest()


def _check_content(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError("content is not an object")  # noqa: TRY004 - callers turn ValueError into a reason
    kind = content.get("type")
    subject_field = _SUBJECT_FIELD.get(kind) if isinstance(kind, str) else None
    if subject_field is None:
        raise ValueError(f"content type is {str(kind)[:40]!r}; {' and '.join(_SUBJECT_FIELD)} are accepted")
    check_keys(content, _COMMON_FIELDS | {subject_field})
    subject = content[subject_field]
    if subject_field == "object" and not (isinstance(subject, str) and _OBJECT_NAME.fullmatch(subject)):
        raise ValueError("content object is not a plain file name")
    if subject_field == "path" and not (isinstance(subject, str) and 1 <= len(subject) <= _PATH_MAX):
        raise ValueError(f"content path is not a text of 1 to {_PATH_MAX} characters")
    if not is_sha256_hex(content["sha256"]):
        raise ValueError("content sha256 is not 64 lower-case hex digits")
    if not is_rfc3339_utc(content["time"]):
        raise ValueError("content time is not RFC 3339 in UTC, such as 2026-11-22T10:00:00Z")
    for field in ("boot_id", "session_id"):
        if not isinstance(content[field], str) or _ID_HEX.fullmatch(content[field]) is None:
            raise ValueError(f"content {field} is not 32 lower-case hex digits")


def _invalid(message: str) -> AttestationError:
    return AttestationError("EVENT_LOG_INVALID", f"event log: {message}")
