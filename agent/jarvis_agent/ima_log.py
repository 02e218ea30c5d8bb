# SPDX-License-Identifier: Apache-2.0
"""IMA's measurement list as the kernel shows it: from an entry on, bounded, never judged here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jarvis_trust.errors import AttestationError
from jarvis_trust.ima_log import MAX_IMA_LOG_BYTES, split_ima_log

from jarvis_agent.errors import EventLogError

_MAX_LIST_BYTES = 256 * 1024 * 1024
"""Of the whole list; a host that measures far too much is told so instead of filling memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaPart:
    """The list from one entry on."""

    data: bytes
    first: int
    """Entries before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaLogFile:
    """/sys/kernel/security/ima/binary_runtime_measurements, or where it is configured."""

    path: Path

    def read(self, known: int) -> ImaPart:
        """What follows the first `known` entries; the whole list when it does not have as many. Empty where the host has none.

        Read it after the quote: the kernel writes an entry before it extends the PCR.

        Raises:
            EventLogError: EVENT_LOG_IO (it is there and cannot be read), IMA_LOG_TOO_LONG.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_LIST_BYTES + 1)
        except FileNotFoundError:
            return ImaPart(data=b"", first=0)
        except OSError as error:
            raise EventLogError("EVENT_LOG_IO", f"the IMA list {self.path} cannot be read: {error.strerror}") from error
        if len(data) > _MAX_LIST_BYTES:
            raise self._too_long(f"more than {_MAX_LIST_BYTES >> 20} MiB")
        offset = 0
        if known:
            try:
                entries, offset = split_ima_log(data, known)
            except AttestationError:
                entries = 0  # sent whole, as it is: what is wrong with it is the controller's to say
            if entries < known:
                known = offset = 0
        if len(data) - offset > MAX_IMA_LOG_BYTES:
            raise self._too_long(f"{len(data) - offset} bytes after entry {known}")
        return ImaPart(data=data[offset:], first=known)

    def _too_long(self, found: str) -> EventLogError:
        message = (
            f"the IMA list {self.path} has {found}; an attestation takes {MAX_IMA_LOG_BYTES} bytes of new entries: "
            "measure less (IMA's policy), and reboot"
        )
        return EventLogError("IMA_LOG_TOO_LONG", message)
