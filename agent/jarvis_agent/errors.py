# SPDX-License-Identifier: Apache-2.0
"""The agent's own errors. Like the trust package's they carry a `reason` in UPPER_SNAKE that reaches ErrorInfo unchanged."""

from __future__ import annotations

from jarvis_trust.errors import TrustError


class ConfigError(Exception):
    """The configuration is not acceptable; the message names the field, its value and what would be accepted."""


class TpmError(TrustError):
    """The TPM did not do what was asked.

    Reasons: TPM_UNAVAILABLE (lost or not there), TPM_COMMAND_FAILED (it refused), TPM_RESET (under the running agent),
    TPM_CHANGED (another TPM in its place).
    """


class EventLogError(TrustError):
    """A log of measurements could not be written (then nothing is extended or loaded) or read.

    Reasons: EVENT_LOG_IO, IMA_LOG_TOO_LONG.
    """


class RequestError(Exception):
    """A request that is not acceptable as it stands.

    Attributes:
        violations: (field path, sentence) pairs for google.rpc.BadRequest.
    """

    def __init__(self, *violations: tuple[str, str]) -> None:
        super().__init__(*violations)
        self.violations = violations

    def __str__(self) -> str:
        return "; ".join(f"{field}: {description}" for field, description in self.violations)


class CaptureRefusedError(Exception):
    """A capture verb that cannot be carried out now.

    Attributes:
        reason: UPPER_SNAKE, e.g. CAPTURE_RUNNING.
        message: one sentence.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class AgentStoppingError(Exception):
    """The agent is stopping: streams end, new calls are refused; the caller comes back later."""
