# SPDX-License-Identifier: Apache-2.0
"""What becomes an event: a capture's life and what its core noticed, and the lease's.

CaptureWatch   on the capture's own thread: start, core events, pause, end
LeaseWatch     on the event loop: granted after a time without one, revoked, run out
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from jarvis.capture.v1 import event_pb2 as pb
from jarvis_native import CaptureError, CaptureEvent
from jarvis_native.types import CaptureEventType

from jarvis_agent.events import EventJournal

_INFO, _WARNING, _ERROR = pb.EVENT_SEVERITY_INFO, pb.EVENT_SEVERITY_WARNING, pb.EVENT_SEVERITY_ERROR
_TICK_S = 1.0
"""A lease's end is noticed so late at most (timers stand still while the host sleeps, leases do not)."""

_INTERFACE_STATES: dict[int, tuple[pb.EventType.ValueType, pb.EventSeverity.ValueType]] = {
    1: (pb.EVENT_TYPE_INTERFACE_UP, _INFO),
    2: (pb.EVENT_TYPE_INTERFACE_DOWN, _WARNING),
    3: (pb.EVENT_TYPE_INTERFACE_GONE, _ERROR),
}
"""By the event's value: enum capture_interface_state."""
_CORE_EVENTS: dict[CaptureEventType, tuple[pb.EventType.ValueType, pb.EventSeverity.ValueType]] = {
    CaptureEventType.LOSS: (pb.EVENT_TYPE_CAPTURE_LOSS, _WARNING),
    CaptureEventType.CLOCK_STEP: (pb.EVENT_TYPE_CLOCK_STEP, _WARNING),
    CaptureEventType.INTERFACE_ADDED: (pb.EVENT_TYPE_INTERFACE_ADDED, _INFO),
    CaptureEventType.INTERFACE_REMOVED: (pb.EVENT_TYPE_INTERFACE_REMOVED, _INFO),
}


def classify(event: CaptureEvent) -> tuple[pb.EventType.ValueType, pb.EventSeverity.ValueType]:
    """Type and severity of what the core noticed."""
    if event.type is CaptureEventType.INTERFACE:
        return _INTERFACE_STATES[event.value]
    if event.type is CaptureEventType.CLOCK_SYNC:
        return pb.EVENT_TYPE_CLOCK_SYNC, _INFO if event.value else _WARNING
    return _CORE_EVENTS[event.type]


class EventSource(Protocol):
    """What is asked of an engine."""

    def next_events(self, after_sequence: int = 0) -> list[CaptureEvent]:
        """Events after that one, oldest first."""


class CaptureWatch:
    """One capture's events. One thread at a time, the capture's own once it runs."""

    def __init__(self, journal: EventJournal, capture_id: str, engine: EventSource, *, is_paused: Callable[[], bool]) -> None:
        """Args: is_paused: whether the lease that the capture runs under is over; called on the capture's thread."""
        self._journal = journal
        self._capture_id = capture_id
        self._engine = engine
        self._is_paused = is_paused
        self._was_paused = False
        self._sequence = 0

    def started(self, how: str) -> None:
        """The backend is open."""
        self._tell(pb.EVENT_TYPE_CAPTURE_STARTED, _INFO, f"the capture started with backend {how}")

    def look(self) -> None:
        """Tells what is new; cheap enough for every turn of the capture's thread.

        Raises:
            CaptureError: the native core failed.
        """
        self._tell_all(self._engine.next_events(self._sequence))
        paused = self._is_paused()
        if paused and not self._was_paused:
            message = "the lease is over: frames are counted as paused until the next one"
            self._tell(pb.EVENT_TYPE_CAPTURE_PAUSED, _WARNING, message)
        elif self._was_paused and not paused:
            self._tell(pb.EVENT_TYPE_CAPTURE_RESUMED, _INFO, "the capture goes on under a new lease")
        self._was_paused = paused

    def ended(self, *, failed: bool, message: str) -> None:
        """The capture is over; what the core noticed until then is told first."""
        try:
            self._tell_all(self._engine.next_events(self._sequence))
        except CaptureError as error:
            message = f"{message}; its last events are lost: {error.message}" if message else error.message
            failed = True
        if failed:
            self._tell(pb.EVENT_TYPE_CAPTURE_FAILED, _ERROR, message)
        else:
            self._tell(pb.EVENT_TYPE_CAPTURE_STOPPED, _INFO, message or "the capture was stopped")

    def _tell_all(self, events: Iterable[CaptureEvent]) -> None:
        for event in events:
            lost = event.sequence - self._sequence - 1
            if lost:
                self._tell(
                    pb.EVENT_TYPE_EVENTS_LOST, _WARNING, f"{lost} events of the capture were overwritten unread", value=lost
                )
            self._sequence = event.sequence
            kind, severity = classify(event)
            self._journal.tell(
                kind,
                severity,
                event.message,
                time_ns=event.time_unix_ns,
                capture_id=self._capture_id,
                interface=event.interface,
                value=event.value,
                delta=event.delta,
            )

    def _tell(self, kind: pb.EventType.ValueType, severity: pb.EventSeverity.ValueType, message: str, *, value: int = 0) -> None:
        self._journal.tell(kind, severity, message, capture_id=self._capture_id, value=value)


class LeaseWatch:
    """The lease's events. Renewals are none: there is one a minute."""

    def __init__(self, journal: EventJournal, *, clock: Callable[[], int]) -> None:
        """Args: clock: CLOCK_BOOTTIME, ns."""
        self._journal = journal
        self._clock = clock
        self._end_ns = 0
        self._sequence = 0
        """Of the lease that was in force when last looked; 0: there was none."""
        self._timer: asyncio.TimerHandle | None = None

    def changed(self, sequence: int, end_ns: int) -> None:
        """A lease was accepted that ends at this CLOCK_BOOTTIME (ns); sequence 0: it only ended the one before."""
        self._tell_expiry()
        had, self._end_ns = self._sequence, end_ns
        self._sequence = sequence
        if self._sequence and not had:
            self._journal.tell(
                pb.EVENT_TYPE_LEASE_GRANTED, _INFO, f"lease {sequence} is in force: the agent may be commanded", value=sequence
            )
        elif had and not self._sequence:
            message = f"the controller ended lease {had}: nothing is captured until it gives another"
            self._journal.tell(pb.EVENT_TYPE_LEASE_REVOKED, _WARNING, message, value=had)
        self._wait()

    def look(self) -> None:
        """Tells of a lease that has run out, and looks again later while there is one."""
        self._tell_expiry()
        self._wait()

    def close(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell_expiry(self) -> None:
        if self._sequence and self._clock() >= self._end_ns:
            message = f"lease {self._sequence} ran out without a renewal: nothing is captured until the next one"
            self._journal.tell(pb.EVENT_TYPE_LEASE_EXPIRED, _WARNING, message, value=self._sequence)
            self._sequence = 0

    def _wait(self) -> None:
        self.close()
        if self._sequence:
            left_s = max(self._end_ns - self._clock(), 0) / 1e9
            self._timer = asyncio.get_running_loop().call_later(min(left_s, _TICK_S), self.look)
