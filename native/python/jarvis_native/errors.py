# SPDX-License-Identifier: Apache-2.0
"""What the native core refuses, as exceptions: one class a `enum capture_error` code, made in one place.

`check` is the only gate between a C return code and Python; nothing else in the package looks at negative codes. The names are
the ones callers catch (`FilterError`, `InterfaceNotFound`), so they do not all end in Error.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CaptureError(Exception):
    """The native core refused something.

    Attributes:
        code: the `enum capture_error` value of jarvis_capture.h, negative.
        field: the configuration field at fault, e.g. "snaplen"; empty when there is none.
        message: one sentence: the value, why it is refused, what would be accepted.
    """

    CODE: ClassVar[int] = 0

    def __init__(self, message: str, *, field: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.code = self.CODE if code is None else code
        self.field = field
        self.message = message


class InvalidArgument(CaptureError, ValueError):  # noqa: N818
    """An argument is out of range."""

    CODE = -1


class OutOfMemory(CaptureError, MemoryError):  # noqa: N818
    """Memory for a ring or table could not be mapped."""

    CODE = -2


class InterfaceNotFound(CaptureError):  # noqa: N818
    """No such network interface."""

    CODE = -3


class PermissionDenied(CaptureError):  # noqa: N818
    """CAP_NET_RAW, or read permission on a file, is missing."""

    CODE = -4


class FilterError(CaptureError):
    """A BPF expression does not compile; the message is libpcap's."""

    CODE = -5


class BackendUnavailable(CaptureError):  # noqa: N818
    """The backend is unknown, not built in, or not usable here."""

    CODE = -6


class CaptureFileError(CaptureError):
    """Not a capture file, or a damaged one."""

    CODE = -7


class CaptureStateError(CaptureError):
    """Not allowed in this state, e.g. started twice or used after close."""

    CODE = -8


class CaptureIOError(CaptureError):
    """The operating system refused; the message carries errno's text."""

    CODE = -9


class CaptureTimeoutError(CaptureError):
    """A worker did not answer in time."""

    CODE = -10


class BufferTooSmall(CaptureError):  # noqa: N818
    """The buffer cannot hold one record."""

    CODE = -11


class ResumeTokenError(CaptureError):
    """A resume token is malformed, or of another capture."""

    CODE = -12


class FlowNotFound(CaptureError):  # noqa: N818
    """No flow with this id is in the table."""

    CODE = -13


class LeaseOver(CaptureError):  # noqa: N818
    """No lease is in force: nothing is started or given out. `reason` is LEASE_EXPIRED or AGENT_UNATTESTED."""

    CODE = -14

    @property
    def reason(self) -> str:
        """UPPER_SNAKE, see docs/reasons.md."""
        return self.field or "LEASE_EXPIRED"


class AuthorityRefused(CaptureError):  # noqa: N818
    """The core refuses a lease or a command, or to do what none of them entitles to."""

    CODE = -15

    @property
    def reason(self) -> str:
        """UPPER_SNAKE, see docs/reasons.md."""
        return self.field


_BY_CODE: dict[int, type[CaptureError]] = {
    leaf.CODE: leaf
    for leaf in (
        InvalidArgument,
        OutOfMemory,
        InterfaceNotFound,
        PermissionDenied,
        FilterError,
        BackendUnavailable,
        CaptureFileError,
        CaptureStateError,
        CaptureIOError,
        CaptureTimeoutError,
        BufferTooSmall,
        ResumeTokenError,
        FlowNotFound,
        LeaseOver,
        AuthorityRefused,
    )
}


def error_from_info(ffi: Any, lib: Any, code: int, info: Any = None) -> CaptureError:
    """The exception for a negative code; `info` is the `struct capture_error_info *` that the call filled, or None."""
    field = message = ""
    if info is not None:
        field = ffi.string(info.field).decode("utf-8", "replace")
        message = ffi.string(info.message).decode("utf-8", "replace")
    if not message:
        message = ffi.string(lib.capture_strerror(code)).decode("utf-8", "replace")
    return _BY_CODE.get(code, CaptureError)(message, field=field, code=code)


def check(ffi: Any, lib: Any, code: int, info: Any = None) -> int:
    """`code` when it is a success (0 or a count), else raises its exception."""
    if code >= 0:
        return code
    raise error_from_info(ffi, lib, code, info)
