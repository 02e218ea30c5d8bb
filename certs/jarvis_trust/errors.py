# SPDX-License-Identifier: Apache-2.0
"""The errors of trust. Each carries a `reason` in UPPER_SNAKE, which goes unchanged into google.rpc.ErrorInfo.reason."""

from __future__ import annotations


class TrustError(Exception):
    """Something that had to be proved was not.

    Attributes:
        reason: stable, UPPER_SNAKE, for programs.
        message: one sentence for people: the field, the value found and what would be accepted.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class IdentityError(TrustError):
    """A name, a key or a certificate that does not say who it should."""


class FirmwareError(TrustError):
    """Firmware that must not run.

    Attributes:
        digest: SHA-256 of the object if it was measured before it was refused.
    """

    def __init__(self, reason: str, message: str, *, digest: bytes | None = None) -> None:
        super().__init__(reason, message)
        self.digest = digest


class AttestationError(TrustError):
    """TPM structures, event logs or EK certificates that prove nothing."""


class EnrollmentError(TrustError):
    """A join file or an enrolment proof that is not acceptable."""


class LeaseError(TrustError):
    """A lease that gives no right."""


class CommandError(TrustError):
    """A command that was not authorised as received."""


class AuditError(TrustError):
    """An audit chain that was edited or cut.

    Attributes:
        sequence: of the first bad entry.
    """

    def __init__(self, reason: str, message: str, *, sequence: int) -> None:
        super().__init__(reason, message)
        self.sequence = sequence
