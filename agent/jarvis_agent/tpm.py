# SPDX-License-Identifier: Apache-2.0
"""The one thread that talks to the TPM; everything else queues for it by priority.

An ESYS context may be used by one thread at a time and every command blocks for milliseconds (swtpm) to seconds (hardware),
so the event loop never calls the TPM itself: it submits an operation, a function of the connected device, and awaits the
future. A TPM that is lost (connection broken, device gone) fails the operation in hand with TPM_UNAVAILABLE; the next one
reconnects.
Operations are never repeated behind the caller's back: an extend that was sent may have happened.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from typing import Generic, TypeVar

from tpm2_pytss.TSS2_Exception import TSS2_Exception

from jarvis_agent.errors import TpmError
from jarvis_agent.tpm_device import TRANSIENT, TpmDevice
from jarvis_agent.tpm_handles import KeyHandles

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

_LAYER_SHIFT = 16
_LAYER_MASK = 0xFF
_LAYERS_OF_THE_TPM = frozenset({0, 11, 12})
"""TSS2 layers whose codes are an answer of the TPM or its resource manager; any other code costs the connection."""
_CLOSE_TIMEOUT_S = 5.0
_LAST = 99
"""Of the order to end: behind every operation."""


class TpmPriority(IntEnum):
    """Who goes first when several wait."""

    TLS_SIGN = 0
    """A handshake waits for it."""
    MEASUREMENT = 1
    QUOTE = 2
    CREDENTIAL = 3
    SEAL = 4


class TpmWorker:
    """Owns the TPM connection. `submit`, `call`, `run` and `close` may be called from any thread."""

    def __init__(self, connect: Callable[[], TpmDevice]) -> None:
        """Starts the thread; nothing is connected before the first operation.

        Args:
            connect: makes a connected device, on the worker's thread; called again after the TPM was lost.
        """
        self._connect = connect
        self._device: TpmDevice | None = None
        self._jobs: queue.PriorityQueue[tuple[int, int, _Job[object] | None]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="tpm", daemon=True)
        self._thread.start()

    @classmethod
    def for_tcti(cls, tcti: str, handles: KeyHandles = TRANSIENT) -> TpmWorker:
        """A worker for the TPM that a TCTI configuration string names; the loader's default search is never used."""
        return cls(lambda: TpmDevice(tcti, handles))

    def submit(self, priority: TpmPriority, operation: Callable[[TpmDevice], T]) -> Future[T]:
        """Queues an operation. Its future fails with TpmError when the TPM is lost or refuses."""
        future: Future[T] = Future()
        if not self._queue(priority, operation, future):
            future.set_exception(_stopping())
        return future

    def call(self, priority: TpmPriority, operation: Callable[[TpmDevice], T], on_done: Callable[[Future[T]], None]) -> Future[T]:
        """`submit` for callers that are called back: on the TPM's thread or where the future is cancelled, never in here.

        Raises:
            TpmError: TPM_UNAVAILABLE, the worker is closed.
        """
        future: Future[T] = Future()
        future.add_done_callback(on_done)
        if not self._queue(priority, operation, future):
            raise _stopping()
        return future

    async def run(self, priority: TpmPriority, operation: Callable[[TpmDevice], T]) -> T:
        """`submit` for coroutines."""
        return await asyncio.wrap_future(self.submit(priority, operation))

    def close(self) -> None:
        """Lets queued operations finish, disconnects and ends the thread (waits at most 5 s for a TPM that hangs)."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put((_LAST, next(self._order), None))
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _queue(self, priority: TpmPriority, operation: Callable[[TpmDevice], T], future: Future[T]) -> bool:
        """False when the worker is closed: behind the order to end nothing may be queued."""
        with self._closing:
            if self._closed:
                return False
            self._jobs.put((int(priority), next(self._order), _Job(operation, future)))  # type: ignore[arg-type]
        return True

    def _work(self) -> None:
        while True:
            _, _, job = self._jobs.get()
            if job is None:
                self._disconnect()
                return
            if job.future.set_running_or_notify_cancel():
                self._execute(job)

    def _execute(self, job: _Job[object]) -> None:
        try:
            if self._device is None:
                self._device = self._connect()
            result = job.operation(self._device)
        except TSS2_Exception as error:
            job.future.set_exception(self._as_tpm_error(error))
        except BaseException as error:  # noqa: BLE001 - the caller gets it through the future; this thread must live on
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    def _as_tpm_error(self, error: TSS2_Exception) -> TpmError:
        layer = (int(error.rc) >> _LAYER_SHIFT) & _LAYER_MASK
        if self._device is not None and layer in _LAYERS_OF_THE_TPM:
            return TpmError("TPM_COMMAND_FAILED", f"the TPM refused: {error}")
        self._disconnect()
        return TpmError("TPM_UNAVAILABLE", f"the TPM does not answer: {error}")

    def _disconnect(self) -> None:
        if self._device is None:
            return
        device, self._device = self._device, None
        try:
            device.close()
        except TSS2_Exception as error:
            _LOG.warning("the TPM connection was not closed cleanly: %s", error)


def _stopping() -> TpmError:
    return TpmError("TPM_UNAVAILABLE", "the agent is stopping and has let go of the TPM")


class _Job(Generic[T]):
    """One operation and where its result goes."""

    __slots__ = ("future", "operation")

    def __init__(self, operation: Callable[[TpmDevice], T], future: Future[T]) -> None:
        self.operation = operation
        self.future = future
