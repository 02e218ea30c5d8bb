# SPDX-License-Identifier: Apache-2.0
"""Every exception that a handler may raise, as google.rpc.Status. One table; what is not in it is INTERNAL and logged."""

from __future__ import annotations

from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from jarvis_native import CaptureError
from jarvis_native.errors import (
    AuthorityRefused,
    BackendUnavailable,
    CaptureFileError,
    CaptureStateError,
    FilterError,
    InterfaceNotFound,
    InvalidArgument,
    LeaseOver,
    OutOfMemory,
    PermissionDenied,
    ResumeTokenError,
)
from jarvis_trust.errors import TrustError
from jarvis_trust.status import bad_request_status, error_status, trust_error_status

from jarvis_agent.errors import AgentStoppingError, CaptureRefusedError, RequestError
from jarvis_agent.export.errors import ExportError
from jarvis_agent.firmware import FirmwareState

_TRUST_CODES: dict[str, int] = {
    "COMMAND_UNSIGNED": Code.UNAUTHENTICATED,
    "COMMAND_SIGNATURE_INVALID": Code.PERMISSION_DENIED,
    "COMMAND_INVALID": Code.INVALID_ARGUMENT,
    "COMMAND_REPLAYED": Code.ALREADY_EXISTS,
    "COMMAND_LIMIT": Code.RESOURCE_EXHAUSTED,
    "CAPTURE_NOT_COMMANDED": Code.PERMISSION_DENIED,
    "REQUEST_ID_REUSED": Code.INVALID_ARGUMENT,
    "ROLE_DENIED": Code.PERMISSION_DENIED,
    "PEER_DENIED": Code.PERMISSION_DENIED,
    "TLS_VERSION": Code.UNAUTHENTICATED,
    "LEASE_SIGNATURE_INVALID": Code.PERMISSION_DENIED,
    "LEASE_INVALID": Code.INVALID_ARGUMENT,
    "LEASE_METHOD_DENIED": Code.PERMISSION_DENIED,
    "LEASE_STATE_IO": Code.UNAVAILABLE,
    "NONCE_REUSED": Code.ALREADY_EXISTS,
    "STREAM_LIMIT": Code.RESOURCE_EXHAUSTED,
    "TPM_UNAVAILABLE": Code.UNAVAILABLE,
    "TPM_COMMAND_FAILED": Code.UNAVAILABLE,
    "TPM_RESET": Code.UNAVAILABLE,
    "TPM_CHANGED": Code.UNAVAILABLE,
    "TPM_HANDLE_TAKEN": Code.UNAVAILABLE,
    "TPM_HANDLE_REFUSED": Code.UNAVAILABLE,
    "EVENT_LOG_IO": Code.UNAVAILABLE,
    "RELEASE_DISK_FULL": Code.RESOURCE_EXHAUSTED,
    "RELEASE_LIMIT": Code.RESOURCE_EXHAUSTED,
    "RELEASE_IO": Code.UNAVAILABLE,
}
"""By reason; any other reason (AGENT_UNATTESTED, LEASE_EXPIRED, LEASE_STALE, ...) is FAILED_PRECONDITION."""

_REFUSAL_CODES: dict[str, int] = {
    "SUBSCRIBER_TOO_SLOW": Code.RESOURCE_EXHAUSTED,
    "EXPORT_EXISTS": Code.ALREADY_EXISTS,
    "EXPORT_NOT_FOUND": Code.NOT_FOUND,
    "EXPORT_LIMIT": Code.RESOURCE_EXHAUSTED,
    "EXPORT_NOT_ALLOWED": Code.PERMISSION_DENIED,
    "EXPORT_SPOOL": Code.UNAVAILABLE,
}
"""Of captures and exports, by reason; any other reason is FAILED_PRECONDITION."""

_CAPTURE_ERRORS: tuple[tuple[type[CaptureError], int, str], ...] = (
    (InterfaceNotFound, Code.NOT_FOUND, "INTERFACE_NOT_FOUND"),
    (FilterError, Code.INVALID_ARGUMENT, "FILTER_INVALID"),
    (InvalidArgument, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    (CaptureFileError, Code.INVALID_ARGUMENT, "CAPTURE_FILE_INVALID"),
    (ResumeTokenError, Code.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID"),
    (BackendUnavailable, Code.FAILED_PRECONDITION, "BACKEND_UNAVAILABLE"),
    (PermissionDenied, Code.FAILED_PRECONDITION, "CAPTURE_PERMISSION"),
    (CaptureStateError, Code.FAILED_PRECONDITION, "CAPTURE_STATE"),
    (OutOfMemory, Code.RESOURCE_EXHAUSTED, "CAPTURE_MEMORY"),
)

_FIELDS = {"interface": "interfaces", "idle_timeout_s": "idle_timeout", "idle_timeout_ns": "idle_timeout",
           "active_timeout_s": "active_timeout", "active_timeout_ns": "active_timeout", "token": "resume_token",
           "since_ns": "since"}  # fmt: skip
"""The native core's field names where the wire's differ."""


def status_of(error: Exception, *, scope: str = "") -> Status | None:
    """The Status for an exception that handlers are expected to raise; None for any other.

    Args:
        error: what was raised.
        scope: path of the message that the native core's fields belong to, e.g. "spec".
    """
    if isinstance(error, RequestError):
        return bad_request_status(error.violations)
    if isinstance(error, TrustError):
        return trust_error_status(_TRUST_CODES.get(error.reason, Code.FAILED_PRECONDITION), error)
    if isinstance(error, (CaptureRefusedError, ExportError)):
        return error_status(_REFUSAL_CODES.get(error.reason, Code.FAILED_PRECONDITION), error.reason, error.message)
    if isinstance(error, AgentStoppingError):
        return error_status(Code.UNAVAILABLE, "AGENT_STOPPING", "the agent is stopping; try again later", retry_after_ns=10**9)
    if isinstance(error, CaptureError):
        return _capture_status(error, scope)
    return None


def firmware_untrusted(state: FirmwareState) -> Status:
    """The answer to every capture verb while firmware was refused."""
    return error_status(
        Code.FAILED_PRECONDITION,
        "FIRMWARE_UNTRUSTED",
        f"the capture firmware was refused ({state.reason}): {state.message}",
        metadata={"firmware_reason": state.reason, "message": state.message},
    )


def _capture_status(error: CaptureError, scope: str) -> Status:
    if isinstance(error, (LeaseOver, AuthorityRefused)):
        return error_status(_TRUST_CODES.get(error.reason, Code.FAILED_PRECONDITION), error.reason, error.message)
    for kind, code, reason in _CAPTURE_ERRORS:
        if isinstance(error, kind):
            field = _FIELDS.get(error.field, error.field)
            path = ".".join(part for part in (scope, field) if part)
            if code == Code.INVALID_ARGUMENT and path:
                return bad_request_status([(path, error.message)], reason=reason)
            return error_status(code, reason, error.message, metadata={"field": path} if field else None)
    return error_status(Code.UNAVAILABLE, "CAPTURE_IO", error.message)
