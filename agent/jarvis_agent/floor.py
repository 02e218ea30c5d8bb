# SPDX-License-Identifier: Apache-2.0
"""The rollback floor in force: the higher one of the configuration's and the TPM's, which rises once a release has proved itself.

    load:   firmware_floor, NvFloor.read -> in_force -> (floor, who says so) -> the loader's judgement
    lease:  the first lease for this process -> attested -> NvFloor.raise_to(the running manifest's minimum_security_version)

A lease means that the controller has verified this very firmware, so the floor never rises above what is known to work here.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future

from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice

_LOG = logging.getLogger(__name__)


class FloorKeeper:
    """Reads and raises the floor of one host. From any thread."""

    def __init__(self, worker: TpmWorker, *, index: int, configured: int) -> None:
        """Asks the TPM nothing yet.

        Args:
            worker: the TPM's.
            index: NV index of the counter.
            configured: firmware_floor.
        """
        self._worker = worker
        self._index = index
        self._configured = configured
        self._is_raised = False

    def in_force(self) -> tuple[int, str]:
        """The floor and who says so, for the message of a refusal. Blocks; makes the counter if the TPM has none.

        Raises:
            TpmError: the TPM does not answer, or the index is somebody else's: nothing may be loaded then.
        """
        held = self._worker.submit(TpmPriority.MEASUREMENT, self._read).result()
        if held > self._configured:
            return held, f"of the TPM's NV index {self._index:#010x}"
        return self._configured, "of firmware_floor"

    def attested(self, minimum: int) -> None:
        """A lease came for the firmware that runs: the TPM's floor rises to what its manifest sets. Does not wait for the TPM.

        What failed is tried again with the next lease.
        """
        if self._is_raised:
            return
        self._is_raised = True
        self._worker.call(TpmPriority.SEAL, lambda device: self._raise(device, minimum), self._raised)

    def _read(self, device: TpmDevice) -> int:
        with device.nv_floor(self._index) as floor:
            return floor.read()

    def _raise(self, device: TpmDevice, minimum: int) -> tuple[int, int]:
        with device.nv_floor(self._index) as floor:
            before = floor.read()
            return before, floor.raise_to(minimum)

    def _raised(self, done: Future[tuple[int, int]]) -> None:
        error = done.exception()
        if error is not None:
            self._is_raised = False
            _LOG.error("the TPM's rollback floor could not be raised, the next lease tries again: %s", error)
            return
        before, after = done.result()
        if after > before:
            _LOG.info("the TPM's rollback floor rose from %d to %d", before, after)
