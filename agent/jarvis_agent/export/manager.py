# SPDX-License-Identifier: Apache-2.0
"""The agent's exports: enabled, listed, disabled, held against each lease, and brought back after a restart.

    EnableExport ─► plan ─► allow-list of the lease ─► lines (spool, transport: what cannot work is refused) ─► store ─► start
    start of the agent ─► store, verified ─► lines ─► wait, gate closed, for a lease that allows the collectors
    lease ─► every export's gate                       StartCapture ─► every line, before the first frame

Without exports nothing of this runs. Everything here is used on the event loop; what blocks goes to threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from jarvis.capture.v1 import event_pb2
from jarvis.capture.v1 import export_pb2 as pb
from jarvis_native import Firmware, LeaseTerms
from jarvis_native.engine import check_filter
from jarvis_native.errors import FilterError

from jarvis_agent.captures import CaptureManager, CaptureRun
from jarvis_agent.errors import RequestError
from jarvis_agent.events import EventJournal
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.export_spec import check_export_id, plan_export
from jarvis_agent.export.gate import ExportGate, refusal
from jarvis_agent.export.plan import ExportPlan
from jarvis_agent.export.running import LineFactory, RunningExport
from jarvis_agent.export.store import MAX_PAYLOAD_BYTES, ExportStore, StoredExport
from jarvis_agent.lease import ActiveLease

_LOG = logging.getLogger(__name__)

MAX_EXPORTS: Final = 16
DRAIN_S: Final = 5.0
"""How long collectors may take for what is left when an export is disabled or the agent stops."""


class ExportManager:
    """At most 16 exports, by id."""

    def __init__(
        self,
        *,
        firmware: Firmware,
        captures: CaptureManager,
        store: ExportStore,
        journal: EventJournal,
        lease: Callable[[], LeaseTerms],
        current_lease: Callable[[], ActiveLease | None],
        make_lines: LineFactory,
        drop_spools: Callable[[Collection[str]], None] = lambda _: None,
    ) -> None:
        """None yet; `load` brings back those of before.

        Args:
            firmware: judges filters.
            captures: whose runs are exported.
            store: of what survives a restart.
            journal: told what happens to exports.
            lease: the newest one as the core has it; from any thread.
            current_lease: the one in force, with its allow-list.
            make_lines: see LineFactory.
            drop_spools: removes what waits on disk for any export but those with these ids; blocks.
        """
        self._firmware = firmware
        self._store = store
        self._journal = journal
        self._lease = lease
        self._current_lease = current_lease
        self._make_lines = make_lines
        self._drop_spools = drop_spools
        self._lock = asyncio.Lock()
        self._exports: dict[str, RunningExport] = {}
        self._newest: CaptureRun | None = None
        """The capture that was attached last; it may not have started yet."""
        captures.follow(self._attach)

    async def load(self) -> None:
        """Brings back what was enabled before this process; what cannot work is listed as FAILED, what was edited is refused."""
        async with self._lock:
            try:
                kept, refused = await asyncio.to_thread(self._store.load)
            except OSError as error:
                self._refuse("", f"the exports of before cannot be read: {error}")
                return
            for edited in refused:
                self._refuse(edited.export_id, edited.message)
            for stored in kept:
                await self._bring_back(stored)
            await asyncio.to_thread(self._drop_spools, {*self._exports, *(edited.export_id for edited in refused)})

    async def enable(self, command: StoredExport) -> pb.ExportStatus:
        """Enables what the command asks for; the same again changes nothing.

        Args:
            command: an EnableExport that was admitted.

        Raises:
            RequestError: fields that are not acceptable.
            FilterError: the filter does not compile.
            ExportError: EXPORT_NOT_ALLOWED, EXPORT_EXISTS, EXPORT_LIMIT, or why it could not work.
        """
        if len(command.payload) > MAX_PAYLOAD_BYTES:
            found = f"a request of {len(command.payload)} bytes; at most {MAX_PAYLOAD_BYTES} are accepted"
            raise RequestError(("spec", found))
        spec = command.request().spec
        plan = plan_export(spec)
        async with self._lock:
            self._check_allowed(plan)
            known = self._exports.get(plan.export_id)
            if known is not None and not self._is_again(known, plan):
                return self._status(known)
            if known is None and len(self._exports) >= MAX_EXPORTS:
                raise ExportError("EXPORT_LIMIT", f"{MAX_EXPORTS} exports are enabled, the most there can be", is_permanent=True)
            export = RunningExport(plan=plan, spec=spec, stored=command, gate=ExportGate(self._lease))
            await self._open(export, is_new=True)
            try:
                await asyncio.to_thread(self._store.keep, plan.export_id, command)
            except OSError as error:
                await export.stop(drain_s=0.0, discard=True, keep=False)
                raise ExportError("EXPORT_SPOOL", f"the export cannot be kept: {error}", is_permanent=False) from error
            export.was_permitted = True
            export.judge(self._current_lease(), self._journal)
            self._begin(export)
            what = f"was enabled on behalf of {command.principal}"
            export.tell(self._journal, event_pb2.EVENT_TYPE_EXPORT_ENABLED, event_pb2.EVENT_SEVERITY_INFO, what)
            return self._status(export)

    async def disable(self, export_id: str, *, discard: bool) -> pb.ExportStatus:
        """Ends an export; delivers what is left for at most 5 s first, unless it is to be discarded.

        Returns:
            How it ended.

        Raises:
            RequestError: no such id can be.
            ExportError: EXPORT_NOT_FOUND; EXPORT_SPOOL: it cannot be forgotten, and goes on.
        """
        check_export_id(export_id, "export_id")
        async with self._lock:
            export = self._exports.get(export_id)
            if export is None:
                raise ExportError("EXPORT_NOT_FOUND", f"no export {export_id} is enabled", is_permanent=True)
            try:
                await asyncio.to_thread(self._store.remove, export_id)
            except OSError as error:
                raise ExportError("EXPORT_SPOOL", f"the export cannot be forgotten: {error}", is_permanent=False) from error
            await export.stop(drain_s=DRAIN_S, discard=discard, keep=False)
            del self._exports[export_id]
            await asyncio.to_thread(self._drop_spools, tuple(self._exports))
            export.tell(self._journal, event_pb2.EVENT_TYPE_EXPORT_DISABLED, event_pb2.EVENT_SEVERITY_INFO, "was disabled")
            return self._status(export)

    def list(self) -> list[pb.ExportStatus]:
        """Every export, by id; any thread. May wait for the disk, as spools do."""
        return [self._status(export) for _, export in sorted(self._exports.items())]

    def lease_changed(self, lease: ActiveLease | None) -> None:
        """A lease was accepted (None: it only ended the one before): every export is held against it."""
        for export in self._exports.values():
            export.judge(lease, self._journal)

    async def shut_down(self, drain_s: float = DRAIN_S) -> None:
        """For the agent's end, after its capture's: delivers what is left for a bounded time; the rest waits on disk."""
        async with self._lock:
            ends = [export.stop(drain_s=drain_s, discard=False, keep=True) for export in self._exports.values()]
            await asyncio.gather(*ends)

    # ---- the inside

    def _check_allowed(self, plan: ExportPlan) -> None:
        lease = self._current_lease()
        denial = "no lease is in force" if lease is None else refusal(plan, lease)
        if denial:
            raise ExportError("EXPORT_NOT_ALLOWED", denial, is_permanent=True)

    def _is_again(self, known: RunningExport, plan: ExportPlan) -> bool:
        """Whether a known export is to be opened once more: the same one, which has failed."""
        if known.plan != plan:
            message = f"export {plan.export_id} is enabled with another specification; disable it first, or take another id"
            raise ExportError("EXPORT_EXISTS", message, is_permanent=True)
        return bool(known.failure)

    async def _bring_back(self, stored: StoredExport) -> None:
        spec = stored.request().spec
        if len(self._exports) >= MAX_EXPORTS:  # files that were put back
            self._refuse(spec.export_id, f"is one more than the {MAX_EXPORTS} that there can be")
            return
        try:
            plan = plan_export(spec)
        except RequestError as error:  # of a release with other rules
            self._refuse(spec.export_id, f"this release cannot carry it out: {error}")
            return
        export = RunningExport(plan=plan, spec=spec, stored=stored, gate=ExportGate(self._lease))
        try:
            await self._open(export, is_new=False)
        except (ExportError, FilterError) as error:
            export.failure = error.message
            severity = event_pb2.EVENT_SEVERITY_ERROR
            export.tell(self._journal, event_pb2.EVENT_TYPE_EXPORT_DISABLED, severity, f"cannot work: {error.message}")
            _LOG.error("export %s cannot work: %s", plan.export_id, error.message)
        export.judge(self._current_lease(), self._journal)
        self._begin(export)

    async def _open(self, export: RunningExport, *, is_new: bool) -> None:
        if export.plan.filter:
            await asyncio.to_thread(check_filter, export.plan.filter, firmware=self._firmware)
        export.lines = await asyncio.to_thread(self._make_lines, export.plan, export.gate, is_new=is_new)

    def _begin(self, export: RunningExport) -> None:
        self._exports[export.plan.export_id] = export
        export.start(self._newest)

    def _refuse(self, export_id: str, why: str) -> None:
        _LOG.error("export %s is not brought back: %s", export_id, why)
        self._journal.tell(
            event_pb2.EVENT_TYPE_EXPORT_DISABLED,
            event_pb2.EVENT_SEVERITY_ERROR,
            f"export {export_id} is not brought back: {why}",
            detail={"export_id": export_id},
        )

    def _attach(self, run: CaptureRun) -> None:
        self._newest = run
        for export in self._exports.values():
            export.attach(run)

    def _status(self, export: RunningExport) -> pb.ExportStatus:
        return export.status(lease_in_force=self._current_lease() is not None)
