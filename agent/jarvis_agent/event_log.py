# SPDX-License-Identifier: Apache-2.0
"""The firmware event log on disk and its PCR, kept in step: write, fsync, and only then extend.

One file per boot of the TPM, `firmware-events-<resetCount>.jsonl` below the state directory: a reset sets PCRs to zero, so
the log starts anew and the old file is set aside by its name. After a crash the file may hold what the PCR does not:

    torn last line             never extended (the extend follows the fsync): cut off
    last record not extended   extended now
    PCR zero, log longer       the TPM restarted without a reset (hibernation): the file is set aside as `.restart-<n>`
    anything else              kept as it is and served as it is: the controller judges, not this file

All methods run inside TpmWorker operations, one after the other; nothing else writes these files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from jarvis_trust.errors import AttestationError
from jarvis_trust.eventlog import FirmwareEvent, encode_event, event_digest, parse_log, replay
from jarvis_trust.keyfiles import sync_directory

from jarvis_agent.errors import EventLogError
from jarvis_agent.tpm_device import TpmDevice

_LOG = logging.getLogger(__name__)
_KEPT_OLD_LOGS = 16
_ZERO_PCR = bytes(32)


class Extender(Protocol):
    """What takes an event after it was logged: a TPM."""

    def extend_pcr(self, pcr: int, digest: bytes) -> None:
        """Extends a PCR of the SHA-256 bank."""


class EventLog:
    """The log of the current boot. Not thread-safe: used on the TPM's thread only."""

    def __init__(self, directory: Path, pcr: int) -> None:
        """Nothing is read yet; `open` does that.

        Args:
            directory: the agent's state directory.
            pcr: index of the PCR, SHA-256 bank.
        """
        self._directory = directory
        self._pcr = pcr
        self._path: Path | None = None
        self._records = 0
        self._known: set[tuple[str, str]] = set()

    @property
    def pcr(self) -> int:
        """The PCR that firmware is measured into."""
        return self._pcr

    @property
    def path(self) -> Path:
        """File of the current boot; there once `open` was called."""
        if self._path is None:
            raise EventLogError("EVENT_LOG_IO", "the firmware event log was not opened yet")
        return self._path

    def open(self, device: TpmDevice) -> None:
        """Finds the log of this boot and brings log and PCR in step where that is safe.

        Raises:
            EventLogError: EVENT_LOG_IO when the directory cannot be read or written.
            TSS2_Exception: from the TPM.
        """
        reset_count = device.clock().reset_count
        value = device.read_pcrs([self._pcr])[self._pcr]
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path = self._directory / f"firmware-events-{reset_count}.jsonl"
            self._recover(device, value)
            self._prune()
        except OSError as error:
            raise EventLogError("EVENT_LOG_IO", f"the firmware event log {self._path or self._directory}: {error}") from error

    def record(self, device: Extender, content: Mapping[str, str]) -> None:
        """Appends one event, waits until it is on disk, then extends the PCR with its digest.

        Raises:
            AttestationError: EVENT_LOG_INVALID when the log is full or the content is not acceptable.
            EventLogError: EVENT_LOG_IO; nothing was extended.
            TSS2_Exception: from the TPM; the record is extended at the next start.
        """
        line = encode_event(self._records, self._pcr, content)
        try:
            _append(self.path, line)
        except OSError as error:
            raise EventLogError("EVENT_LOG_IO", f"the firmware event log {self.path}: {error}; nothing was measured") from error
        self._records += 1
        device.extend_pcr(self._pcr, event_digest(content))
        self._known.add(_identity(content))

    def holds_mapping(self, path: str, sha256: bytes) -> bool:
        """Whether this boot's log has this very file as a `mapping` already: repeating it would only fill the log."""
        return (path, sha256.hex()) in self._known

    def read(self) -> bytes:
        """The log as it goes into the evidence.

        Raises:
            EventLogError: EVENT_LOG_IO.
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise EventLogError("EVENT_LOG_IO", f"the firmware event log {self.path}: {error}") from error

    def replays_to(self, value: bytes) -> bool:
        """Whether what was logged gives this value of the PCR; False too when the log cannot be read as one."""
        try:
            return replay(parse_log(self.path.read_bytes())) == value
        except (OSError, AttestationError):
            return False

    def _recover(self, device: TpmDevice, value: bytes) -> None:
        if not self.path.exists():
            self._create()
            return
        events = self._events(value)
        if events is None:
            self._records = self.path.read_bytes().count(b"\n")
            _LOG.error("the firmware event log cannot be read as one and is served as it is: %s", self.path)
            return
        self._records = len(events)
        self._known = {_identity(event.content) for event in events}
        if replay(events) == value:
            return
        if events and replay(events[:-1]) == value:
            _LOG.warning("the last event of the firmware log was not in PCR %d yet and is extended now", self._pcr)
            device.extend_pcr(self._pcr, events[-1].digest)
        elif value == _ZERO_PCR:
            self._set_aside()
        else:
            _LOG.error("the firmware event log does not replay to PCR %d and is served as it is: %s", self._pcr, self.path)

    def _events(self, value: bytes) -> list[FirmwareEvent] | None:
        """The log's events, a torn last line cut off the file; None when it is not a log."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            events = parse_log(whole)
            replayed = replay(events)
        except AttestationError as error:
            _LOG.error("firmware event log: %s", error.message)
            return None
        if len(whole) == len(data):
            return events
        if replayed != value:
            return None
        _LOG.warning("the last line of the firmware event log was torn, never extended, and is cut: %s", self.path)
        with self.path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
        return events

    def _create(self) -> None:
        self.path.touch(mode=0o600, exist_ok=False)
        sync_directory(self._directory)

    def _set_aside(self) -> None:
        number = len(list(self._directory.glob(f"{self.path.name}.restart-*"))) + 1
        _LOG.warning(
            "PCR %d is zero though events were logged: the TPM restarted; the log is set aside: %s", self._pcr, self.path
        )
        self.path.rename(self.path.with_name(f"{self.path.name}.restart-{number}"))
        self._records = 0
        self._known = set()
        self._create()

    def _prune(self) -> None:
        """Keeps the newest old logs for people; nothing reads them."""
        old = [path for path in self._directory.glob("firmware-events-*.jsonl*") if path != self.path]
        for path in sorted(old, key=lambda entry: entry.stat().st_mtime)[:-_KEPT_OLD_LOGS]:
            path.unlink()


def _identity(content: Mapping[str, str]) -> tuple[str, str]:
    return content.get("path", ""), content["sha256"]


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
