# SPDX-License-Identifier: Apache-2.0
"""google.rpc.Status, and what gRPC says when there is no connection, as one sentence with its exit code.

A failed call carries its Status in the trailing metadata; an agent's failure comes as a Status inside a stream. Both become a
Failure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio

from jarvisctl.config import CtlConfig
from jarvisctl.errors import CtlError, ExitCode
from jarvisctl.format.units import printable

_DETAILS_KEY = "grpc-status-details-bin"

_EXIT_CODES: Mapping[str, ExitCode] = {
    "invalid_argument": ExitCode.USAGE,
    "not_found": ExitCode.USAGE,
    "out_of_range": ExitCode.USAGE,
    "unavailable": ExitCode.UNREACHABLE,
    "deadline_exceeded": ExitCode.UNREACHABLE,
    "unauthenticated": ExitCode.UNREACHABLE,
    "permission_denied": ExitCode.UNREACHABLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A Status that is not OK, taken apart."""

    #: Canonical code, lower case.
    code: str
    message: str
    #: ErrorInfo.reason, UPPER_SNAKE, or empty.
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: (field, description) of BadRequest.
    violations: Sequence[tuple[str, str]] = ()

    @property
    def sentence(self) -> str:
        """All of it in one line for people."""
        parts = [self.message] if self.message else []
        for name, description in self.violations:
            if description not in self.message:
                parts.append(description if name in description else f"{name}: {description}")
        text = "; ".join(parts) or self.code.replace("_", " ")
        if not self.reason:
            return printable(text)
        cause = self.metadata.get("reason", "")
        marks = self.reason if not cause or cause == self.reason else f"{self.reason}: {cause}"
        return printable(text if marks in text else f"{text} [{marks}]")

    def to_object(self) -> dict[str, object]:
        """For programs."""
        return {
            "code": self.code,
            "message": self.message,
            "reason": self.reason,
            "metadata": dict(self.metadata),
            "violations": [{"field": name, "description": description} for name, description in self.violations],
        }


def failure_of(status: status_pb2.Status) -> Failure | None:
    """None when the status is OK."""
    if status.code == code_pb2.OK:
        return None
    names = code_pb2.Code.DESCRIPTOR.values_by_number
    code = names[status.code].name.lower() if status.code in names else f"code_{status.code}"
    reason, metadata = "", dict[str, str]()
    violations: list[tuple[str, str]] = []
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [(violation.field, violation.description) for violation in bad.field_violations]
    return Failure(code=code, message=status.message, reason=reason, metadata=metadata, violations=violations)


def failure_of_call(error: aio.AioRpcError) -> Failure:
    """The failure behind a failed call: its Status when the controller sent one, else code and text."""
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            failure = failure_of(status_pb2.Status.FromString(value))
            if failure is not None:
                return failure
    return Failure(code=error.code().name.lower(), message=error.details() or "")


def translate(error: aio.AioRpcError, config: CtlConfig, timeout_s: float) -> CtlError:
    """A failed call as the error that ends the command."""
    failure = failure_of_call(error)
    message = failure.sentence
    if not failure.reason:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            message = _connection_sentence(error.details() or "", config)
        elif error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            message = (
                f"the controller at {config.endpoint} did not answer within {timeout_s:g} s:"
                " see that it runs, or give it longer with --timeout"
            )
    if failure.code in {"permission_denied", "unauthenticated"}:
        message = f"the controller does not allow this to the certificate {config.certificate}: {message}"
    exit_code = _EXIT_CODES.get(failure.code, ExitCode.FAILED)
    return CtlError(message, exit_code, code=failure.code, reason=failure.reason, metadata=failure.metadata)


def _connection_sentence(details: str, config: CtlConfig) -> str:
    """What to do about a connection that did not come about, by what gRPC's text says of the cause."""
    text = details.lower()
    where = f"the controller at {config.endpoint}"
    for words, sentence in (
        (
            ("connection refused",),
            f"nothing listens at {config.endpoint}: see that jarvis-controller runs there and that `endpoint` is right",
        ),
        (
            ("errors resolving", "dns resolution failed", "name resolution"),
            f"the name in endpoint {config.endpoint!r} does not resolve: see that `endpoint` is right",
        ),
        (
            ("hostname verification", "peer name"),
            f"{where} is not controller.{config.fleet}: see that `endpoint` and `fleet` belong together",
        ),
        (
            ("certificate has expired",),
            f"the certificate of {where} has expired: restart the controller, it issues itself a new one",
        ),
        (
            ("certificate_verify_failed", "certificate verify failed"),
            f"the certificate of {where} was not issued by the fleet CA in {config.ca}: see that they belong together",
        ),
        (
            ("handshake", "ssl", "socket closed", "connection reset", "broken pipe"),
            (
                f"{where} ended the connection before answering: it does not accept the certificate {config.certificate},"
                f" or it is not a controller's operator port ({printable(details)})"
            ),
        ),
    ):
        if any(word in text for word in words):
            return sentence
    return f"{where} cannot be reached: {printable(details)}"
