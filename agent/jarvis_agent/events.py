# SPDX-License-Identifier: Apache-2.0
"""The agent's journal of events: told from any thread, on disk, kept for whoever asks, the newest 1,024.

    captures, lease, firmware → tell() → numbered → file (fsync) → StreamEvents

An event is handed out only once it is on disk, so that a number that somebody has seen never comes to mean another event, not
after a crash of the process and not after one of the host. The journal is therefore one source for as long as its file lasts,
over all processes of the agent; where the file was lost or damaged, what follows is another source's. Without a disk that can be
written, events are handed out all the same, as a new source's: what would be reused are numbers that nobody saw.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import islice

from jarvis.capture.v1.event_pb2 import Event, EventSeverity, EventType

from jarvis_agent.event_file import EventFile
from jarvis_agent.wire import timestamp

_LOG = logging.getLogger(__name__)

KEPT_EVENTS = 1_024
MAX_MESSAGE_CHARACTERS = 500
BATCH_EVENTS = 256
"""Events in one message of the stream."""


class EventJournal:
    """Numbers, keeps and hands out events. `tell` from any thread; everything else on the event loop that runs `keep`."""

    def __init__(self, file: EventFile, *, agent_id: str, wall_clock_ns: Callable[[], int] = time.time_ns) -> None:
        """Reads what the file holds; blocks.

        Raises:
            OSError: the file is there and cannot be read.
        """
        self._file = file
        self._agent_id = agent_id
        self._now_ns = wall_clock_ns
        self._lock = threading.Lock()
        events, whole = file.load()
        self._kept = deque(events, maxlen=KEPT_EVENTS)
        self._end = len(events)
        """Events ever put in, counted in this process: the place after the newest one."""
        self._durable = self._end
        """The place after the newest one that is handed out."""
        self._must_rewrite = not whole or not events
        if events and whole:
            self._source, self._sequence = events[-1].source_id, events[-1].sequence
        else:
            self._source, self._sequence = _new_source(), 0
        if not whole:
            _LOG.warning("the event journal %s is damaged: %d events of it can be read", file.path, len(events))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()
        self._changed = asyncio.Event()
        self._is_closed = False
        self._is_finished = asyncio.Event()

    def tell(
        self,
        kind: EventType.ValueType,
        severity: EventSeverity.ValueType,
        message: str,
        *,
        time_ns: int | None = None,
        capture_id: str = "",
        interface: str = "",
        value: int = 0,
        delta: int = 0,
        detail: Mapping[str, str] | None = None,
    ) -> None:
        """Puts an event in; any thread, never waits for the disk. After `finish` it is too late.

        Args:
            kind: what happened.
            severity: how much it matters.
            message: one sentence; what is too long is cut.
            time_ns: when it was noticed, ns since the Unix epoch; None: now.
            capture_id: of the capture that it happened to.
            interface: that it happened at.
            value: as the type says.
            delta: as the type says.
            detail: what type and value do not say.
        """
        event = Event(
            time=timestamp(self._now_ns() if time_ns is None else time_ns),
            type=kind,
            severity=severity,
            agent_id=self._agent_id,
            capture_id=capture_id,
            interface=interface,
            value=value,
            delta=delta,
            message=message[:MAX_MESSAGE_CHARACTERS],
            detail={key: text[:MAX_MESSAGE_CHARACTERS] for key, text in (detail or {}).items()},
        )
        with self._lock:
            if self._is_closed:
                return
            self._sequence += 1
            event.source_id, event.sequence = self._source, self._sequence
            self._kept.append(event)
            self._end += 1
            loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._told.set)

    async def keep(self) -> None:
        """Writes what is told, until `finish`. One task at a time; do not cancel it."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
        self._told.set()
        while not self._is_finished.is_set():
            await self._told.wait()
            self._told.clear()
            is_last = self._is_closed
            await self._write()
            if is_last:
                self._is_finished.set()
                self._changed.set()

    async def finish(self) -> None:
        """Nothing more is told: waits until `keep` has written what was. Then `follow` ends after it."""
        with self._lock:
            self._is_closed = True
        self._told.set()
        await self._is_finished.wait()

    async def follow(self, source_id: str, sequence: int) -> AsyncIterator[list[Event]]:
        """What comes after an event, oldest first, as it comes, until `finish`; do not change the events.

        Args:
            source_id: of the last event that the caller has; a source that is not known here: everything that is kept.
            sequence: likewise.
        """
        place = self._place_after(source_id, sequence)
        while True:
            changed = self._changed
            events, place = self._take(place)
            if events:
                yield events
            elif self._is_finished.is_set():
                return
            else:
                await changed.wait()

    async def _write(self) -> None:
        with self._lock:
            first = max(self._durable, self._end - len(self._kept))
            fresh = list(islice(self._kept, first - (self._end - len(self._kept)), None))
            whole = list(self._kept) if self._must_rewrite or self._file.size + len(fresh) > 2 * KEPT_EVENTS else []
            end = self._end
        if fresh:
            self._must_rewrite = False
            try:
                await asyncio.to_thread(self._to_disk, fresh, whole)
            except OSError as error:
                _LOG.error("the event journal %s cannot be written (%s): events do not survive a restart", self._file.path, error)
                self._renumber(first)
                self._must_rewrite = True
        self._durable = end
        self._changed.set()
        self._changed = asyncio.Event()

    def _to_disk(self, fresh: list[Event], whole: list[Event]) -> None:
        if whole:
            self._file.rewrite(whole)
        else:
            self._file.append(fresh)

    def _renumber(self, first: int) -> None:
        """Everything from place `first` on becomes a new source's."""
        with self._lock:
            self._source, self._sequence = _new_source(), 0
            oldest = self._end - len(self._kept)
            for event in islice(self._kept, max(0, first - oldest), None):
                self._sequence += 1
                event.source_id, event.sequence = self._source, self._sequence

    def _place_after(self, source_id: str, sequence: int) -> int:
        with self._lock:
            oldest = self._end - len(self._kept)
            is_ahead = source_id == self._source and sequence > self._sequence
            known = [n for n, event in enumerate(self._kept) if event.source_id == source_id and event.sequence <= sequence]
        if is_ahead:
            # This disk was set back (a snapshot): the numbers that come next were used already, and mean other events.
            _LOG.warning("the event journal is older than what the controller has of it: its events are numbered anew")
            self._renumber(oldest)
            self._must_rewrite = True
            self._durable = oldest
            self._told.set()
            return oldest
        return oldest + known[-1] + 1 if known else oldest

    def _take(self, place: int) -> tuple[list[Event], int]:
        with self._lock:
            oldest = self._end - len(self._kept)
            first = max(place, oldest)
            last = min(self._durable, first + BATCH_EVENTS)
            return list(islice(self._kept, first - oldest, max(last, first) - oldest)), max(last, place)


def _new_source() -> str:
    return secrets.token_hex(16)
