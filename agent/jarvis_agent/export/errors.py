# SPDX-License-Identifier: Apache-2.0
"""What an export cannot do, with a reason of docs/reasons.md and the word on whether trying again may help."""

from __future__ import annotations


class ExportError(Exception):
    """An export, or one of its collectors, cannot be served.

    Reasons: EXPORT_UNRESOLVED, EXPORT_UNREACHABLE, EXPORT_TLS_NAME_MISMATCH, EXPORT_TLS_CERTIFICATE, EXPORT_CERTIFICATE_EXPIRED,
    EXPORT_SPOOL, EXPORT_FILE, EXPORT_TRANSPORT_UNSUPPORTED.

    Attributes:
        reason: UPPER_SNAKE, as ErrorInfo gives it.
        message: one sentence: what, its value, what would help.
        is_permanent: somebody has to change something (a certificate, a name, a directory); else the collector may simply come
            back, and nothing is refused for it.
    """

    def __init__(self, reason: str, message: str, *, is_permanent: bool) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
        self.is_permanent = is_permanent

    def __str__(self) -> str:
        return self.message


def unreachable(address: str, error: OSError | str) -> ExportError:
    """A collector that is not there, refuses or went away: it is tried again."""
    words = error if isinstance(error, str) else (error.strerror or str(error) or type(error).__name__)
    return ExportError("EXPORT_UNREACHABLE", f"{address}: {words}", is_permanent=False)
