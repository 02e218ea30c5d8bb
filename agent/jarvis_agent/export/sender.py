# SPDX-License-Identifier: Apache-2.0
"""The thread that empties one collector's spool: when the gate is open, through a session, trying again as long as it takes.

    spool ──take──► session ──► collector         gate closed: nothing leaves, the connection is ended in order
              ◄──done── settled                   collector away: 1 s, 2 s, 4 s … 60 s between tries, with jitter

The first tries come sooner than the minute that RFC 7011 (10.4.4) has as default: most collectors that are away are being
restarted.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from jarvis_agent.export.blocks import NOTHING, Amount, amount_of
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.session import CollectorSession, SessionCounters
from jarvis_agent.export.spool import Spool, SpoolStatus, Taken
from jarvis_agent.export.transport import StopTime

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
_JITTER = 0.2
"""Of a wait, more or less: agents that lost one collector together do not come back together."""

_GOOD_S = 10.0
"""A connection that held so long was one: the next wait is the first again."""

_TICK_S = 0.2
"""Between two looks at the gate, the connection and what became settled, while there is nothing to send."""

_TELL_INTERVAL_S = 1.0
_JUDGE_S = 0.1
"""A lease is in the core a moment before it was held against the export: no connection is ended for that."""

_PAUSE_S = 1.0
"""How long what left is waited for when the gate closes."""

CollectorState = Literal["connecting", "connected", "idle"]


class SenderEvents(Protocol):
    """Who is told; called on the sender's thread, at most once a second."""

    def collector_lost(self, message: str) -> None:
        """It refuses, does not answer or went away."""

    def collector_returned(self, address: str) -> None:
        """After collector_lost."""

    def records_lost(self, lost: Amount) -> None:
        """The spool dropped so much since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderStatus:
    """One collector now."""

    state: CollectorState = "connecting"
    address: str = ""
    """Of the connection; empty: none."""
    message: str = ""
    """Why it is not connected, or what happened last."""
    reason: str = ""
    """Of docs/reasons.md, with the message."""
    state_time_ns: int = 0
    exported: SessionCounters = field(default_factory=SessionCounters)
    spool: SpoolStatus = field(default_factory=SpoolStatus)
    message_max: int = 0
    """Bytes that a message should have at most on the way."""
    pending: Amount = NOTHING
    """Taken from the spool when the gate closed."""
    noted: Amount = NOTHING
    """Of what was taken from the spool, what `exported` and `pending` know of."""

    @property
    def waiting(self) -> Amount:
        """In the spool, on the way from there, and broken off on the way to the collector."""
        return self.exported.waiting + self.spool.waiting + self.pending + (self.spool.taken - self.noted)


class CollectorSender:
    """One collector's thread.

    Args:
        name: of the thread.
        session: its own; not used by anyone else from now on.
        spool: taken from by nobody else.
        gate: whether anything may leave now; asked before each block, and often.
        events: is told.
        stop_time: the transport's and the session's interrupt: set when the thread is to end.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        name: str,
        session: CollectorSession,
        spool: Spool,
        gate: Callable[[], bool],
        events: SenderEvents,
        stop_time: StopTime,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session, self._spool, self._gate, self._events = session, spool, gate, events
        self._stop_time, self._clock = stop_time, clock
        self._ending = threading.Event()
        self._has_started = self._has_ended = False
        self._keep = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()
        self._status = SenderStatus(state="idle", state_time_ns=time.time_ns())
        self._pending: Taken | None = None
        """Taken from the spool when the gate closed."""
        self._retry_s = FIRST_RETRY_S
        self._is_lost = self._is_loss_told = False
        self._lost_at = self._losses_at = float("-inf")
        self._told_losses = NOTHING

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()
        self._has_started = True

    def status(self) -> SenderStatus:
        """Now; any thread."""
        with self._lock:
            status = replace(self._status, spool=self._spool.status())
        if self._has_started and not self._has_ended and not self._thread.is_alive():
            return replace(status, state="idle", message="its thread ended by a fault of the program: see the log")
        return status

    def stop(self, *, drain_s: float, keep: bool) -> SenderStatus:
        """Sends what is left for at most `drain_s`, then ends thread, session and spool. Blocks; any thread but its own.

        Args:
            drain_s: 0: nothing more is sent.
            keep: what is left then stays on disk, if there is one; else it is dropped and counted.
        """
        self._keep = keep
        self._stop_time.set(drain_s)
        self._ending.set()
        self._spool.wake()
        if self._has_started:
            self._thread.join()
        if not self._has_ended:
            self._finish()
        return self.status()

    def _run(self) -> None:
        while not self._is_over():
            if not self._gate():
                self._pause()
            elif self._session.is_open or self._try_open():
                self._send_next()
            self._note()
        self._finish()

    def _is_over(self) -> bool:
        """The end has come, and there is nothing left that could be sent before it."""
        if not self._ending.is_set():
            return False
        is_left = self._pending or self._spool.status().waiting or self._session.counters().waiting
        return self._stop_time() or not is_left or not self._gate()

    def _try_open(self) -> bool:
        if self._status.state == "idle":
            self._change("connecting")
        try:
            self._session.open()
        except ExportError as error:
            self._retry_later(error)
            return False
        if not self._session.is_open:  # the gate has closed meanwhile
            return False
        self._change("connected")
        if self._is_lost and self._is_loss_told:
            self._events.collector_returned(self._session.transport.address)
        self._is_lost = False
        return True

    def _send_next(self) -> None:
        taken, self._pending = self._pending or self._spool.take(_TICK_S), None
        try:
            if taken is None:
                self._session.tick()
            elif self._gate():
                self._session.send(taken.block, templates=taken.templates, gap=taken.gap, is_replay=taken.is_replay)
            else:
                self._pending = taken
        except ExportError as error:
            if self._clock() - self._session.opened_at >= _GOOD_S:
                self._retry_s = FIRST_RETRY_S
            self._retry_later(error)

    def _retry_later(self, error: ExportError) -> None:
        """The collector is away: says so, and waits for the time of the next try."""
        if not self._gate():  # it has closed meanwhile, and that ended the wait for the collector
            return
        self._change("connecting", error)
        if not self._is_lost:
            self._is_lost = True
            now = self._clock()
            self._is_loss_told = now - self._lost_at >= _TELL_INTERVAL_S
            if self._is_loss_told:
                self._lost_at = now
                self._events.collector_lost(error.message)
        end = self._clock() + self._retry_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
        self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
        while (left := end - self._clock()) > 0 and not self._stop_time() and self._gate():
            self._note()
            if self._ending.is_set():
                time.sleep(min(left, _TICK_S))
            elif self._ending.wait(min(left, _TELL_INTERVAL_S)):
                return  # one more try, at once

    def _pause(self) -> None:
        """The gate is closed: what left may arrive, then there is no connection until it opens."""
        if self._session.is_open and not self._ending.wait(_JUDGE_S) and self._gate():
            return
        error = self._end_session(_PAUSE_S)
        if self._status.state != "idle" or error is not None:
            self._change("idle", error)
        self._ending.wait(_TICK_S)

    def _end_session(self, timeout_s: float) -> ExportError | None:
        """In order when there is time for it; what is not settled stays the session's."""
        if self._session.is_open:
            try:
                self._session.finish(timeout_s)
            except ExportError as error:
                return error
        return None

    def _finish(self) -> None:
        self._has_ended = True
        error = self._end_session(self._stop_time.left())
        self._spool.done(self._session.take_settled())
        self._spool.close(keep=self._keep, settled_messages=self._session.settled_messages())
        self._change("idle", error)
        with self._lock:
            # What was on its way is on disk now, or among what the spool lost.
            exported = replace(self._session.counters(), waiting=NOTHING, waiting_octets=0)
            noted = self._spool.status().taken
            self._status = replace(self._status, address="", exported=exported, pending=NOTHING, noted=noted)
        self._tell_losses()

    def _note(self) -> None:
        """Takes over what the session came to."""
        self._spool.done(self._session.take_settled())
        transport, taken = self._session.transport, self._spool.status().taken
        with self._lock:
            self._status = replace(
                self._status,
                noted=taken,
                address=transport.address if self._session.is_open else "",
                exported=self._session.counters(),
                message_max=transport.message_max,
                pending=NOTHING if self._pending is None else amount_of(self._pending.block),
            )
        if self._clock() - self._losses_at >= _TELL_INTERVAL_S:
            self._tell_losses()

    def _tell_losses(self) -> None:
        self._losses_at = self._clock()
        lost = self._spool.status().lost
        if lost != self._told_losses:
            self._events.records_lost(lost - self._told_losses)
            self._told_losses = lost

    def _change(self, state: CollectorState, error: ExportError | None = None) -> None:
        with self._lock:
            status = self._status
            self._status = replace(
                status,
                state=state,
                state_time_ns=status.state_time_ns if status.state == state else time.time_ns(),
                message="" if error is None else error.message,
                reason="" if error is None else error.reason,
            )
