# SPDX-License-Identifier: Apache-2.0
"""An agent without a TPM (`tcti = "none"`, level L0): its identity key in a file, and an event log that no PCR vouches for.

Chosen by name only: an agent whose TPM is away never becomes one of these. The rest of the agent queues its measurements as for a
TPM; here they are written to the log, and that is all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.trust_pb2 import StoreApproval
from jarvis_trust.ca import generate_key
from jarvis_trust.errors import AttestationError, StoreKeyError
from jarvis_trust.eventlog import parse_log
from jarvis_trust.keyfiles import load_private_key, write_private
from jarvis_trust.software_identity import SoftwareSigner

from jarvis_agent.errors import EventLogError, TpmError
from jarvis_agent.event_log import EventLog
from jarvis_agent.tpm import TpmPriority

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

NO_TPM = "none"
"""The TCTI of an agent that has none."""
KEY_FILE = "identity.key"


def load_identity(state_directory: Path) -> SoftwareSigner:
    """The identity key of this state directory, made (0600) when there is none.

    Raises:
        IdentityError: KEY_FILE_EXPOSED (others can read it), KEY_FILE_INVALID, SOFTWARE_IDENTITY_INVALID.
        OSError: it cannot be read or written.
    """
    state_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state_directory / KEY_FILE
    if not path.exists():
        write_private(path, generate_key())
        _LOG.warning("a new identity key was made: %s; whoever can read it is this agent", path)
    return SoftwareSigner(load_private_key(path))


class NoTpm:
    """What measurements are given in the place of a TPM."""

    def extend_pcr(self, pcr: int, digest: bytes) -> None:
        """There is no PCR: the log alone has it."""


class AbsentTpm:
    """Takes a TpmWatch's place: there is none, and there will be none."""

    def status(self) -> tuple[pb.TpmState.ValueType, str]:
        """State, and why it is not READY."""
        return pb.TPM_STATE_ABSENT, "this agent runs without a TPM (level L0)"

    async def watch(self) -> None:
        """Nothing ever changes; cancel it to end."""
        await asyncio.Event().wait()

    async def run(self, _priority: TpmPriority, _operation: Callable[[Any], T]) -> T:
        """No operation is possible.

        Raises:
            TpmError: TPM_UNAVAILABLE.
        """
        raise TpmError("TPM_UNAVAILABLE", "this agent runs without a TPM")

    def check_reset_count(self, _reset_count: int) -> None:
        """There is no count."""


class AbsentStoreKey:
    """Takes a StoreKey's place: no TPM, nothing to seal a key in."""

    def status(self) -> tuple[pb.StoreKeyState.ValueType, str]:
        """State, and why it is not READY."""
        return pb.STORE_KEY_STATE_ABSENT, "this agent has no TPM to seal a store's key in"

    def master(self) -> bytes:
        """There is none.

        Raises:
            StoreKeyError: STORE_KEY_ABSENT.
        """
        raise StoreKeyError("STORE_KEY_ABSENT", self.status()[1])

    async def open(self) -> None:
        """There is nothing to open."""

    def offer(self, _approval: StoreApproval) -> None:
        """No approval helps."""

    def close(self) -> None:
        """There is nothing to wipe."""


class ConfiguredFloor:
    """Takes a FloorKeeper's place: without a TPM nothing keeps a floor that root could not lower."""

    def __init__(self, configured: int) -> None:
        """Args: configured: firmware_floor."""
        self._configured = configured

    def in_force(self) -> tuple[int, str]:
        """The floor and who says so."""
        return self._configured, "of firmware_floor"

    def attested(self, _minimum: int) -> None:
        """There is nowhere to raise it."""


class SoftwareWorker:
    """Takes a TpmWorker's place for measurements: one after the other, on one thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="measure")

    def submit(self, _priority: TpmPriority, operation: Callable[[Any], T]) -> Future[T]:
        """Queues an operation, which is given a NoTpm."""
        return self._thread.submit(operation, NoTpm())

    async def run(self, priority: TpmPriority, operation: Callable[[Any], T]) -> T:
        """`submit` for coroutines."""
        return await asyncio.wrap_future(self.submit(priority, operation))

    def close(self) -> None:
        """Lets queued operations finish and ends the thread."""
        self._thread.shutdown()


class SoftwareEventLog(EventLog):
    """The firmware event log of a boot of the kernel; a torn last line is cut off."""

    def __init__(self, directory: Path, pcr: int, *, boot_id: bytes) -> None:
        """Nothing is read yet.

        Args:
            directory: the agent's state directory.
            pcr: what records name, as a TPM's would.
            boot_id: the kernel's: another boot starts another log.
        """
        super().__init__(directory, pcr)
        self._boot_id = boot_id

    def open(self, _device: object = None) -> None:
        """Finds or makes the log of this boot.

        Raises:
            EventLogError: EVENT_LOG_IO.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path = self._directory / f"firmware-events-{self._boot_id.hex()}.jsonl"
            if self._path.exists():
                self._take_over(self._path)
            else:
                self._create()
            self._prune()
        except OSError as error:
            raise EventLogError("EVENT_LOG_IO", f"the firmware event log {self._path or self._directory}: {error}") from error

    def _take_over(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            _LOG.warning("the last line of the firmware event log was torn and is cut: %s", path)
            with path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            events = parse_log(whole)
        except AttestationError as error:
            self._records = whole.count(b"\n")
            _LOG.error("the firmware event log cannot be read as one and is served as it is: %s: %s", path, error.message)
            return
        self._records = len(events)
        self._known = {(event.content.get("path", ""), event.content["sha256"]) for event in events}
