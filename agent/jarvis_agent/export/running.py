# SPDX-License-Identifier: Apache-2.0
"""One enabled export: what was asked for and by whom, its gate, and a line for each of its collectors."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from jarvis.capture.v1 import event_pb2
from jarvis.capture.v1 import export_pb2 as pb

from jarvis_agent.captures import CaptureRun
from jarvis_agent.events import EventJournal
from jarvis_agent.export.gate import ExportGate, refusal
from jarvis_agent.export.plan import ExportPlan
from jarvis_agent.export.store import StoredExport
from jarvis_agent.lease import ActiveLease
from jarvis_agent.wire import timestamp

_LOG = logging.getLogger(__name__)
_INFO, _WARNING = event_pb2.EVENT_SEVERITY_INFO, event_pb2.EVENT_SEVERITY_WARNING


class CollectorLine(Protocol):
    """All that serves one collector (or the files): feed, spool, sender."""

    def start(self) -> None:
        """Starts its threads."""

    def attach(self, run: CaptureRun, *, is_new: bool) -> None:
        """A capture to read; on the event loop, before its first frame when it is new."""

    def stop(self, *, drain_s: float, discard: bool, keep: bool) -> None:
        """Ends it; blocks. Delivers what waits for at most drain_s (discard: drops it); keeps the rest on disk, or drops it."""

    def status(self) -> pb.CollectorStatus:
        """How it does; any thread."""


class LineFactory(Protocol):
    """Makes the lines of a plan."""

    def __call__(self, plan: ExportPlan, gate: ExportGate, *, is_new: bool) -> list[CollectorLine]:
        """Not started; blocks. Raises ExportError. is_new: an operator waits, and hears what would keep it from ever working."""


@dataclass(slots=True, kw_only=True)
class RunningExport:
    """One export. Used on the event loop; its lines have threads of their own."""

    plan: ExportPlan
    spec: pb.ExportSpec
    stored: StoredExport
    gate: ExportGate
    lines: list[CollectorLine] = field(default_factory=list)
    failure: str = ""
    """Why it cannot work."""
    denial: str = ""
    """Why the newest lease does not allow it."""
    is_ending: bool = False
    was_permitted: bool | None = None
    """Under the newest lease that was judged; None: none was."""

    def start(self, current: CaptureRun | None) -> None:
        """Starts every line; a capture that runs is exported from now on."""
        for line in self.lines:
            line.start()
            if current is not None and current.is_active and not current.is_abandoned:
                line.attach(current, is_new=False)

    def attach(self, run: CaptureRun) -> None:
        """A capture is about to start."""
        if not self.is_ending:
            for line in self.lines:
                line.attach(run, is_new=True)

    def judge(self, lease: ActiveLease | None, journal: EventJournal) -> None:
        """Opens or closes its gate for the lease that has just come; None: there is none in force."""
        if lease is None:
            self.gate.permit(0)
            return
        self.denial = refusal(self.plan, lease)
        self.gate.permit(0 if self.denial else lease.sequence)
        permitted = not self.denial
        if permitted != self.was_permitted and not self.failure:
            if permitted:
                self.tell(journal, event_pb2.EVENT_TYPE_EXPORT_ENABLED, _INFO, f"goes on under lease {lease.sequence}")
            else:
                self.tell(journal, event_pb2.EVENT_TYPE_EXPORT_NOT_ALLOWED, _WARNING, f"sends nothing: {self.denial}")
        self.was_permitted = permitted

    def tell(
        self, journal: EventJournal, kind: event_pb2.EventType.ValueType, severity: event_pb2.EventSeverity.ValueType, what: str
    ) -> None:
        """An event about it."""
        detail = {"export_id": self.plan.export_id, "principal": self.stored.principal}
        journal.tell(kind, severity, f"export {self.plan.export_id} {what}", detail=detail)

    async def stop(self, *, drain_s: float, discard: bool, keep: bool) -> None:
        """Ends every line, all at the same time."""
        self.is_ending = True
        if not self.lines:
            return
        loop = asyncio.get_running_loop()
        stop = [partial(line.stop, drain_s=drain_s, discard=discard, keep=keep) for line in self.lines]
        # Threads of their own: they wait for collectors, and the loop's few are for work.
        with ThreadPoolExecutor(len(stop), thread_name_prefix="export-end") as threads:
            ends = [loop.run_in_executor(threads, end) for end in stop]
            for result in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(result, BaseException):
                    _LOG.error("export %s did not end in order", self.plan.export_id, exc_info=result)

    def status(self, *, lease_in_force: bool) -> pb.ExportStatus:
        """As ListExports tells it."""
        state, message = self._state(lease_in_force)
        return pb.ExportStatus(
            spec=self.spec,
            state=state,
            message=message,
            enable_time=timestamp(self.stored.enable_time_ns),
            principal=self.stored.principal,
            collectors=[line.status() for line in self.lines],
        )

    def _state(self, lease_in_force: bool) -> tuple[pb.ExportState.ValueType, str]:
        if self.is_ending:
            return pb.EXPORT_STATE_ENDING, "it was disabled, or the agent stops"
        if self.failure:
            return pb.EXPORT_STATE_FAILED, self.failure
        if not lease_in_force:
            return pb.EXPORT_STATE_PAUSED, "no lease is in force: it goes on under the next one that allows its collectors"
        if self.denial:
            return pb.EXPORT_STATE_NOT_ALLOWED, self.denial
        return pb.EXPORT_STATE_ACTIVE, ""
