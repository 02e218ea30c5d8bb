# SPDX-License-Identifier: Apache-2.0
"""The firmware's TCG event log as the kernel shows it: read whole, bounded, never interpreted here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jarvis_trust.boot_log import MAX_BOOT_LOG_BYTES

from jarvis_agent.errors import EventLogError


@dataclass(frozen=True, slots=True, kw_only=True)
class BootLogFile:
    """/sys/kernel/security/tpm0/binary_bios_measurements, or where it is configured."""

    path: Path

    def read(self) -> bytes:
        """Its bytes; empty where the host has none, which is for the controller to judge.

        Raises:
            EventLogError: it is there and cannot be read, or is larger than any verifier accepts.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_BOOT_LOG_BYTES + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise EventLogError("EVENT_LOG_IO", f"the boot log {self.path} cannot be read: {error.strerror}") from error
        if len(data) > MAX_BOOT_LOG_BYTES:
            raise EventLogError("EVENT_LOG_IO", f"the boot log {self.path} has more than {MAX_BOOT_LOG_BYTES} bytes")
        return data
