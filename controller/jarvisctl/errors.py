# SPDX-License-Identifier: Apache-2.0
"""The one error type of the CLI and the exit codes that scripts may rely on."""

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees; documented in `jarvisctl --help`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    UNVERIFIED = 4
    INTERRUPTED = 130


class CtlError(Exception):
    """A sentence for the operator and the exit code that goes with it.

    `code` is the gRPC status name in lower case ("" when nothing was asked of the controller), `reason` and `metadata` are
    those of its ErrorInfo.
    """

    def __init__(
        self, message: str, exit_code: ExitCode, *, code: str = "", reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})


def usage_error(message: str) -> CtlError:
    """An argument that cannot be accepted; the message names the option, the value and what is accepted."""
    return CtlError(message, ExitCode.USAGE)
