# SPDX-License-Identifier: Apache-2.0
"""Errors on the wire: google.rpc.Status with the details that programs read (AIP-193), and back.

Only messages are built here; the services abort their calls with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from jarvis_trust.errors import TrustError

DOMAIN: Final = "jarvis.capture"
INVALID_ARGUMENT: Final = "INVALID_ARGUMENT"


def error_status(
    code: int, reason: str, message: str, *, metadata: Mapping[str, str] | None = None, retry_after_ns: int | None = None
) -> Status:
    """A Status with ErrorInfo, and RetryInfo where trying again makes sense.

    Args:
        code: google.rpc.Code number; the same as grpc.StatusCode.X.value[0].
        reason: UPPER_SNAKE, stable.
        message: one sentence for people.
        metadata: facts for programs, e.g. {"reason": "FIRMWARE_ALTERED"}.
        retry_after_ns: how long a client should wait, in ns.

    Raises:
        ValueError: code is OK (0) or none of google.rpc.Code.
    """
    _check_code(code)
    status = Status(code=code, message=message)
    status.details.add().Pack(ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    if retry_after_ns is not None:
        seconds, nanos = divmod(retry_after_ns, 10**9)
        status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
    return status


def trust_error_status(code: int, error: TrustError, *, metadata: Mapping[str, str] | None = None) -> Status:
    """The Status of a trust error, its reason and message unchanged."""
    return error_status(code, error.reason, error.message, metadata=metadata)


def bad_request_status(violations: Iterable[tuple[str, str]], *, reason: str = INVALID_ARGUMENT) -> Status:
    """INVALID_ARGUMENT with every bad field.

    Args:
        violations: (field path as in the proto, e.g. "spec.snaplen"; the value found and what would be accepted), at least one.
        reason: for ErrorInfo.

    Raises:
        ValueError: no violation was given.
    """
    found = list(violations)
    if not found:
        raise ValueError("a bad request needs at least one field violation")
    message = "; ".join(f"{field}: {description}" for field, description in found)
    status = error_status(Code.INVALID_ARGUMENT, reason, message, metadata={"field": found[0][0]})
    details = BadRequest()
    for field, description in found:
        details.field_violations.add(field=field, description=description)
    status.details.add().Pack(details)
    return status


def error_info(status: Status) -> ErrorInfo | None:
    """The ErrorInfo of this domain in a received Status, if there is one that can be read."""
    for detail in status.details:
        info = ErrorInfo()
        try:
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
        except DecodeError:
            continue
    return None


def reason_of(status: Status) -> str:
    """The reason in a received Status, or "" when it gives none."""
    info = error_info(status)
    return info.reason if info is not None else ""


def field_violations(status: Status) -> list[tuple[str, str]]:
    """The (field, description) pairs of a received Status."""
    for detail in status.details:
        request = BadRequest()
        try:
            if detail.Unpack(request):
                return [(violation.field, violation.description) for violation in request.field_violations]
        except DecodeError:
            continue
    return []


def _check_code(code: int) -> None:
    if code == Code.OK or code not in Code.values():
        raise ValueError(f"code {code} is no error of google.rpc.Code")
