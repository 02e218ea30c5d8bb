# SPDX-License-Identifier: Apache-2.0
"""Whether the TPM is there, and still the boot of it that this process was measured in.

    READY ⇄ LOST     it does not answer; looked for with backoff. Work goes on until the lease ends, attestation does not
    any  → RESET     its PCRs started anew: what this process measured is gone, only a new process can measure again

A quote of a TPM that was reset would show a PCR that the event log does not give, which looks like an attack. So every quote is
made only after a look at the TPM's counters, in the same operation, and a reset is told by its name instead.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol, TypeVar

from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.event_pb2 import (
    EVENT_SEVERITY_CRITICAL,
    EVENT_SEVERITY_ERROR,
    EVENT_SEVERITY_INFO,
    EVENT_TYPE_TPM_LOST,
    EVENT_TYPE_TPM_RESET,
    EVENT_TYPE_TPM_RETURNED,
)

from jarvis_agent.errors import TpmError
from jarvis_agent.events import EventJournal
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_S = 5.0
"""How often a TPM that answers is looked at."""
FIRST_RETRY_S, MAX_RETRY_S = 0.2, 10.0
"""Ceilings of the wait for one that does not, with full jitter."""
ANSWER_S = 20.0
"""A TPM that takes longer is lost: on hardware the slowest command, making an RSA key, takes some seconds."""


class MeasuredLog(Protocol):
    """The firmware's event log."""

    @property
    def pcr(self) -> int:
        """Where it is measured into."""

    def replays_to(self, value: bytes) -> bool:
        """Whether the log gives this value of the PCR."""


class TpmWatch:
    """The TPM's state. Used on the event loop; what it hands to the worker runs on the TPM's thread."""

    def __init__(
        self,
        worker: TpmWorker,
        event_log: MeasuredLog,
        *,
        counts: tuple[int, int],
        journal: EventJournal,
        on_reset: Callable[[], None],
        look_s: float = LOOK_S,
    ) -> None:
        """Nothing is looked at yet.

        Args:
            worker: the TPM's thread.
            event_log: what this process has measured.
            counts: resetCount and restartCount when it was measured.
            journal: told of what changes.
            on_reset: called once, on the event loop: a new process is due.
            look_s: seconds between looks.
        """
        self._worker = worker
        self._event_log = event_log
        self._counts = counts
        self._journal = journal
        self._on_reset = on_reset
        self._look_s = look_s
        self._state: pb.TpmState.ValueType = pb.TPM_STATE_READY
        self._message = ""

    def status(self) -> tuple[pb.TpmState.ValueType, str]:
        """State, and why it is not READY."""
        return self._state, self._message

    async def run(self, priority: TpmPriority, operation: Callable[[TpmDevice], T]) -> T:
        """An operation that is worth nothing on another boot of the TPM, such as a quote.

        Raises:
            TpmError: TPM_RESET, TPM_UNAVAILABLE, TPM_COMMAND_FAILED.
        """

        def guarded(device: TpmDevice) -> T:
            self._expect_our_boot(device)
            return operation(device)

        try:
            result = await asyncio.wait_for(self._worker.run(priority, guarded), ANSWER_S)
        except TimeoutError as error:
            late = TpmError("TPM_UNAVAILABLE", f"the TPM did not answer within {ANSWER_S:.0f} s")
            self._failed(late)
            raise late from error
        except TpmError as error:
            self._failed(error)
            raise
        self._answered()
        return result

    def check_reset_count(self, reset_count: int) -> None:
        """That a quote is of the boot that was looked at just before it.

        Raises:
            TpmError: TPM_RESET.
        """
        if reset_count != self._counts[0]:
            error = TpmError(
                "TPM_RESET", f"the TPM's resetCount is {reset_count}; this process was measured at {self._counts[0]}"
            )
            self._failed(error)
            raise error

    async def watch(self) -> None:
        """Looks for ever; cancel it to end. Returns after a reset: there is nothing more to see."""
        lost = 0
        while self._state != pb.TPM_STATE_RESET:
            # Full jitter: the hosts of a rack that lost power do not come back in step.
            ceiling = min(MAX_RETRY_S, FIRST_RETRY_S * 2 ** min(lost, 16))
            await asyncio.sleep(random.uniform(0.0, ceiling) if lost else self._look_s)  # noqa: S311 - spreads load
            try:
                await self.run(TpmPriority.SEAL, lambda _device: None)
            except TpmError:
                lost += 1
            else:
                lost = 0

    def _expect_our_boot(self, device: TpmDevice) -> None:
        """On the TPM's thread."""
        clock = device.clock()
        found = clock.reset_count, clock.restart_count
        if found == self._counts:
            return
        if found[0] != self._counts[0]:
            message = f"the TPM's resetCount went from {self._counts[0]} to {found[0]}"
            raise TpmError("TPM_RESET", f"{message}: what was measured is gone, the agent starts anew")
        # A resume keeps the PCRs, a restart after hibernation does not; both raise restartCount.
        pcr = self._event_log.pcr
        if not self._event_log.replays_to(device.read_pcrs([pcr])[pcr]):
            message = f"the TPM restarted (restartCount {found[1]}) and PCR {pcr} is not what was measured"
            raise TpmError("TPM_RESET", f"{message}: the agent starts anew")
        self._counts = found

    def _answered(self) -> None:
        if self._state == pb.TPM_STATE_LOST:
            self._state, self._message = pb.TPM_STATE_READY, ""
            _LOG.warning("the TPM answers again")
            self._journal.tell(EVENT_TYPE_TPM_RETURNED, EVENT_SEVERITY_INFO, "the TPM answers again")

    def _failed(self, error: TpmError) -> None:
        if self._state == pb.TPM_STATE_RESET:
            return
        if error.reason == "TPM_RESET":
            self._state, self._message = pb.TPM_STATE_RESET, error.message
            _LOG.error("%s", error.message)
            self._journal.tell(EVENT_TYPE_TPM_RESET, EVENT_SEVERITY_CRITICAL, error.message)
            self._on_reset()
        elif error.reason == "TPM_UNAVAILABLE" and self._state == pb.TPM_STATE_READY:
            self._state, self._message = pb.TPM_STATE_LOST, error.message
            _LOG.error("the TPM is lost: %s", error.message)
            message = f"{error.message}; work goes on until the lease ends"
            self._journal.tell(EVENT_TYPE_TPM_LOST, EVENT_SEVERITY_ERROR, message)
