# SPDX-License-Identifier: Apache-2.0
"""Audit entries as syslog messages (RFC 5424): one function for the controller's sender and for `jarvisctl audit export`.

    <109>1 2026-11-22T10:00:00.123456Z controller.FLEET jarvis-controller - capture.start [jarvis@32473 sequence="7" ...] {detail}

The structured data holds every field that the entry's hash covers, times to the nanosecond, and MSG is the detail as hashed: an
archive of these messages can be verified by itself.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from jarvis.capture.v1.fleet_pb2 import AuditEvent

DEFAULT_SD_ID = "jarvis@32473"
"""32473 is the enterprise number for examples (RFC 5612): a site with one of its own configures it."""

_FACILITY = 13  # log audit
_NOTICE, _WARNING = 5, 4
_SD_ID = re.compile(r"[!#-<>-Z\[^-~]{1,32}")
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]")


def valid_sd_id(text: str) -> bool:
    """1 to 32 printable ASCII characters without '=', space, ']' and '"', and with one '@' (RFC 5424 section 6.3.2)."""
    name, at, number = text.partition("@")
    return _SD_ID.fullmatch(text) is not None and bool(name and at) and re.fullmatch(r"[0-9]+(\.[0-9]+)*", number) is not None


def syslog_message(event: AuditEvent, *, hostname: str, sd_id: str = DEFAULT_SD_ID) -> bytes:
    """One entry as one message, without framing and without a line end inside.

    Args:
        event: as the chain holds it.
        hostname: DNS name of the controller.
        sd_id: of the structured data; see valid_sd_id.
    """
    time_ns = event.time.seconds * 10**9 + event.time.nanos
    stamp = datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fields = {
        "sequence": str(event.sequence),
        "timeUnixNs": str(time_ns),
        "principal": event.principal,
        "action": event.action,
        "agentId": event.agent_id,
        "requestId": event.request_id,
        "previousHash": event.previous_hash.hex(),
        "hash": event.hash.hex(),
    }
    data = "".join(f' {name}="{_escaped(value)}"' for name, value in fields.items())
    header = f"<{_FACILITY * 8 + _severity(event)}>1 {stamp}.{time_ns % 10**9 // 1000:06}Z {_name(hostname, 255)}"
    # The detail is canonical JSON, ASCII: no byte order mark is due.
    text = f"{header} jarvis-controller - {_name(event.action, 32)} [{sd_id}{data}] {event.detail}"
    return text.replace("\n", " ").encode()


def framed_message(message: bytes) -> bytes:
    """Octet-counted, as a TLS stream carries it (RFC 5425 section 4.3)."""
    return b"%d %s" % (len(message), message)


def _severity(event: AuditEvent) -> int:
    alarming = event.action.endswith(".refused") or (event.action == "agent.state" and '"to":"QUARANTINED"' in event.detail)
    return _WARNING if alarming else _NOTICE


def _escaped(value: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", value)


def _name(text: str, most: int) -> str:
    return _NOT_PRINTABLE.sub("_", text)[:most] or "-"
