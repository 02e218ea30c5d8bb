# SPDX-License-Identifier: Apache-2.0
"""The errors of trust. Each carries a `reason` in UPPER_SNAKE, which goes unchanged into google.rpc.ErrorInfo.reason."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Where evidence is not as it should be, as far as it can be told."""

    pcr: int | None = None
    event: int | None = None
    """Number in its log of the first event that diverges."""
    component: str = ""
    """What that event measured."""
    expected: str = ""
    """What the nearest known reference has in its place; empty: nothing."""
    reference: str = ""
    """The nearest known reference, "NAME version N"."""


class AttestationError(TrustError):
    """TPM structures, event logs or EK certificates that prove nothing.

    Attributes:
        finding: where; None when there is no place to name.
    """

    def __init__(self, reason: str, message: str, *, finding: Finding | None = None) -> None:
        super().__init__(reason, message)
        self.finding = finding


class PolicyError(TrustError):
    """A fleet policy that cannot be used."""


class EnrollmentError(TrustError):
    """A join file or an enrolment proof that is not acceptable."""


class StoreKeyError(TrustError):
    """An approval that opens no store, or a store key that cannot be used."""


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
