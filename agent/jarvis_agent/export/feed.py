# SPDX-License-Identifier: Apache-2.0
"""One collector's feed: a thread that moves records of every capture, as messages, into the collector's spool.

    attach(run), before its first frame ─► source ─read─► blocks ─► put (spool: never waits for the network)
                                             │ flush_s over: flush the message that is not full
                                             │ LeaseOver: wait until a lease is in force again
                                             │ end of the capture: flush, close, next source

While no lease is in force the core gives out nothing, so nothing is read; what ended until then is read under the next lease.
Records that were overwritten in a capture's log before they were read are counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from jarvis_native import CaptureError
from jarvis_native.errors import LeaseOver
from jarvis_native.export import ExportBlock, ExportStatistics, ExportTotals

from jarvis_agent.captures import CaptureRun
from jarvis_agent.export.sources import NO_TOTALS, ExportSource, SourceOpener, add_metering, add_totals

_LOG = logging.getLogger(__name__)

MAX_SOURCES = 4
"""Captures that a feed may be behind: each holds its tables in memory for as long as somebody reads its log."""
READ_S = 0.05
"""Between two looks at a record log that had nothing; and how soon an ended lease's successor is noticed."""
IDLE_S = 1.0
"""Between two turns while there is no capture."""
STOP_S = 2.0
"""How long an ended capture's records are waited for when the feed is to stop."""
_STOP_WAIT_S = 0.001

Put = Callable[[ExportBlock], object]


class CollectorFeed:
    """The feed. `attach` on the event loop; counters and `stop` from any thread; the rest on its own."""

    def __init__(
        self,
        name: str,
        *,
        flush_s: float,
        open_source: SourceOpener,
        put: Put,
        counters_s: float = 0.0,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Not started yet.

        Args:
            name: of the thread.
            flush_s: how long a finished record may wait for its message to fill.
            open_source: opens a capture for reading.
            put: takes messages over; may wait for the disk, not for the network.
            counters_s: between interfaces' counters, which only sFlow has.
            on_turn: called now and then on the feed's thread.
        """
        self._flush_s = flush_s
        self._counters_s = counters_s
        self._open_source = open_source
        self._put = put
        self._on_turn = on_turn
        self._lock = threading.Lock()
        self._sources: deque[ExportSource] = deque()
        self._changed = threading.Event()
        self._is_stopping = threading.Event()
        self._past = NO_TOTALS
        self._past_metering = ExportStatistics()
        self._overwritten = 0
        self._stop_by = 0.0
        self.message = ""
        """Why a capture is not exported; empty: nothing failed."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def attach(self, run: CaptureRun, *, is_new: bool = True) -> None:
        """Adds a capture, before its first frame; `is_new` false: one that runs already, from now on."""
        try:
            source = self._open_source(run, is_new=is_new)
        except CaptureError as error:
            self.message = f"capture {run.capture_id} is not exported: {error.message}"
            _LOG.warning("%s: %s", self._thread.name, self.message)
            return
        self.message = ""
        with self._lock:
            self._sources.append(source)
            late = self._sources[0] if len(self._sources) > MAX_SOURCES else None
        if late is not None:
            self.message = f"more than {MAX_SOURCES} captures behind: what capture {late.run.capture_id} still had is lost"
            _LOG.warning("%s: %s", self._thread.name, self.message)
            self._retire(late)
        self._changed.set()

    def stop(self) -> None:
        """Reads to the end what ended captures still have, as far as a lease allows, and ends. Blocks until it has."""
        self._stop_by = time.monotonic() + STOP_S
        self._is_stopping.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()
        while (source := self.current) is not None:
            self._retire(source)

    @property
    def current(self) -> ExportSource | None:
        """The capture that is being read: its exporter knows the templates and options."""
        with self._lock:
            return self._sources[0] if self._sources else None

    @property
    def overwritten(self) -> int:
        """Records (sFlow: samples) lost in the captures' logs, because this feed came too late."""
        return self._overwritten

    def totals(self) -> ExportTotals:
        """Of all its exporters."""
        with self._lock:
            known, total = list(self._sources), self._past
        for source in known:
            total = add_totals(total, source.totals())
        return total

    def metering(self) -> ExportStatistics:
        """What the captures metered that it was attached to; the rest of the statistics is 0."""
        with self._lock:
            known, total = list(self._sources), self._past_metering
        for source in known:
            total = add_metering(total, source.metering())
        return total

    # ---- the thread

    def _run(self) -> None:
        while True:
            source = self.current
            if source is None:
                if self._is_stopping.is_set():
                    return
                self._changed.wait(IDLE_S)
                self._changed.clear()
                self._on_turn()
                continue
            try:
                if not self._read_to_end(source):
                    return
            except CaptureError as error:
                self.message = f"capture {source.run.capture_id} cannot be read any more: {error.message}"
                _LOG.warning("%s: %s", self._thread.name, self.message)
            except Exception:  # noqa: BLE001 - a fault of the program: this capture must not wait for its reader for ever
                self.message = f"capture {source.run.capture_id} is not read any more by a fault of the program: see the log"
                _LOG.exception("%s: %s", self._thread.name, self.message)
            self._retire(source)

    def _read_to_end(self, source: ExportSource) -> bool:
        """False: it has to stop although there may be more."""
        flush_due = counters_due = time.monotonic()
        has_ended = False
        while not source.run.is_abandoned:
            self._on_turn()
            now, is_stopping = time.monotonic(), self._is_stopping.is_set()
            is_due = now >= flush_due or has_ended or is_stopping
            try:
                batch = source.read(flush=is_due)
            except LeaseOver:
                if is_stopping:
                    return False
                self._is_stopping.wait(READ_S)
                continue
            self._overwritten += batch.lost
            if batch.data.messages:
                self._put(batch.data)
            elif batch.end and is_due:
                return True
            has_ended = batch.end
            if batch.more or has_ended:
                continue
            flush_due = now + self._flush_s if is_due else flush_due
            if now >= counters_due:
                counters_due = now + self._counters_s
                self._tell_counters(source)
            if not is_stopping:
                self._is_stopping.wait(READ_S)
            elif not batch.data.messages and self._is_at_end(source):
                return False
        return True

    def _is_at_end(self, source: ExportSource) -> bool:
        """The feed has to stop: an ended capture's last records may still be on their way from its workers."""
        time.sleep(_STOP_WAIT_S)
        return source.run.is_active or time.monotonic() >= self._stop_by

    def _tell_counters(self, source: ExportSource) -> None:
        counters = source.counters() if self._counters_s else None
        if counters is not None and counters.messages:
            self._put(counters)

    def _retire(self, source: ExportSource) -> None:
        """Takes it out of the row, its counters kept."""
        source.close()
        with self._lock:
            if source in self._sources:
                self._sources.remove(source)
                self._past = add_totals(self._past, source.totals())
                self._past_metering = add_metering(self._past_metering, source.metering())
