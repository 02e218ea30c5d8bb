# SPDX-License-Identifier: Apache-2.0
"""All that serves one collector, put together: feed, spool, session, sender; and how it does.

    captures ─► CollectorFeed ─put─► Spool ─take─► CollectorSender ─► CollectorSession ─► transport ─► collector
                                                          ▲ gate: lease, allow-list

Two threads, the feed's and the sender's. What happens to the collector and to records becomes events here.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jarvis.capture.v1 import event_pb2
from jarvis.capture.v1 import export_pb2 as pb
from jarvis_native import CaptureError, Firmware
from jarvis_native.export import ExportSession
from jarvis_native.routes import Routes

from jarvis_agent.captures import CaptureRun
from jarvis_agent.events import EventJournal
from jarvis_agent.export.addresses import endpoint_text
from jarvis_agent.export.agent_address import agent_address
from jarvis_agent.export.blocks import Amount
from jarvis_agent.export.errors import ExportError
from jarvis_agent.export.feed import CollectorFeed
from jarvis_agent.export.gate import ExportGate
from jarvis_agent.export.plan import Collector, ExportPlan
from jarvis_agent.export.sample_source import SampleSource
from jarvis_agent.export.sender import CollectorSender, CollectorState, SenderStatus
from jarvis_agent.export.session import CollectorSession
from jarvis_agent.export.sources import ExportSource, ExportTerms, FlowSource
from jarvis_agent.export.spool import Spool
from jarvis_agent.export.spool_disk import remove_spool
from jarvis_agent.export.supply import CollectorSupply, all_templates
from jarvis_agent.export.transport import StopTime, Transport
from jarvis_agent.export.ways import ExportWays
from jarvis_agent.wire import timestamp

_LOG = logging.getLogger(__name__)

REPLAY_RECORDS_PER_SECOND: Final = 100_000
"""Over UDP, of records that have waited: more at once would be lost in the collector's socket."""
_SFLOW_FLUSH_S: Final = 1.0
"""sFlow version 5, 4: samples must not wait longer."""
_TELL_INTERVAL_S: Final = 1.0
_NAME_CHARACTERS: Final = 200
_WARNING, _INFO = event_pb2.EVENT_SEVERITY_WARNING, event_pb2.EVENT_SEVERITY_INFO

_STATES: dict[CollectorState, pb.CollectorState.ValueType] = {
    "connecting": pb.COLLECTOR_STATE_CONNECTING,
    "connected": pb.COLLECTOR_STATE_CONNECTED,
    "idle": pb.COLLECTOR_STATE_IDLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LineParts:
    """What the lines of all exports are made with."""

    firmware: Firmware
    ways: ExportWays
    journal: EventJournal
    system_init_ns: int
    """Unix time of the process's start."""
    spool_directory: Path
    spool_memory_bytes: int
    """Of each collector."""
    spool_disk_bytes: int
    """Of each collector; 0 = nothing on disk."""


class ExportLine:
    """One collector of one export, or its files. Implements running.CollectorLine and sender.SenderEvents."""

    def __init__(
        self, parts: LineParts, plan: ExportPlan, collector: Collector | None, gate: ExportGate, routes: Routes | None
    ) -> None:
        """Makes everything and starts nothing; blocks.

        Args:
            parts: of this agent.
            plan: of the export.
            collector: one of the plan's; None: files.
            gate: of the export.
            routes: for profile full.

        Raises:
            ExportError: EXPORT_SPOOL, or this host is not set up for the transport.
        """
        self._plan, self._collector, self._journal = plan, collector, parts.journal
        name = "file" if collector is None else f"{collector.host}_{collector.port}"
        self._shown = "its files" if collector is None else endpoint_text(collector.host, collector.port)
        stop_time = StopTime()
        # A collector that is waited for is waited for no longer than something may leave.
        transport = parts.ways.open(plan, collector, lambda: stop_time() or not gate.is_open())
        self._terms = ExportTerms(
            plan=plan,
            firmware=parts.firmware,
            system_init_ns=parts.system_init_ns,
            share=0 if collector is None else plan.collectors.index(collector),
            routes=routes,
            message_max=lambda: transport.message_max,
        )
        self._agent_address = agent_address(collector.host) if collector is not None and plan.protocol == "sflow" else ""
        self._tell_lock = threading.Lock()
        self._told_lost, self._loss_told_at, self._turned_at = 0, 0.0, 0.0
        self._spool = self._make_spool(parts, name)
        self._feed = self._make_feed(name)
        self._sender = self._make_sender(name, gate, transport, stop_time)

    def _make_spool(self, parts: LineParts, name: str) -> Spool:
        """Pieces of packets are never on disk, and files need not wait there."""
        plan = self._plan
        waits_on_disk = self._collector is not None and plan.protocol != "sflow" and parts.spool_disk_bytes > 0
        return Spool(
            protocol=plan.protocol,
            memory_bytes=parts.spool_memory_bytes,
            templates=all_templates(self._terms),
            directory=_spool_below(parts.spool_directory, plan.export_id, name) if waits_on_disk else None,
            disk_bytes=parts.spool_disk_bytes,
        )

    def _make_feed(self, name: str) -> CollectorFeed:
        plan, is_sflow = self._plan, self._plan.protocol == "sflow"
        return CollectorFeed(
            f"export-feed {plan.export_id} {name}",
            flush_s=_SFLOW_FLUSH_S if is_sflow else plan.interval_s,
            counters_s=plan.interval_s if is_sflow else 0.0,
            open_source=self._open_source,
            put=self._spool.put,
            on_turn=self._turn,
        )

    def _make_sender(self, name: str, gate: ExportGate, transport: Transport, stop_time: StopTime) -> CollectorSender:
        plan = self._plan
        session = CollectorSession(
            transport=transport,
            source=CollectorSupply(self._terms, self._feed, self._spool.status),
            new_stamp=self._new_stamp,
            refresh_s=plan.template_refresh_s,
            refresh_messages=plan.template_refresh_messages,
            records_per_second=plan.max_records_per_second,
            replay_records_per_second=REPLAY_RECORDS_PER_SECOND if plan.transport == "udp" else 0,
            interrupt=stop_time,
            may_send=gate.is_open,
        )
        return CollectorSender(
            name=f"export-send {plan.export_id} {name}",
            session=session,
            spool=self._spool,
            gate=gate.is_open,
            events=self,
            stop_time=stop_time,
        )

    # ---- for the export

    def start(self) -> None:
        """See CollectorLine."""
        self._sender.start()
        self._feed.start()

    def attach(self, run: CaptureRun, *, is_new: bool) -> None:
        """See CollectorLine."""
        self._feed.attach(run, is_new=is_new)

    def stop(self, *, drain_s: float, discard: bool, keep: bool) -> None:
        """See CollectorLine."""
        self._feed.stop()
        self._sender.stop(drain_s=0.0 if discard else drain_s, keep=keep)
        self._tell_losses(is_last=True)

    def status(self) -> pb.CollectorStatus:
        """See CollectorLine."""
        now, made = self._sender.status(), self._feed.totals()
        exported, waiting, lost = now.exported.amount, now.waiting, now.spool.lost
        return pb.CollectorStatus(
            collector=self._as_asked(now),
            state=_STATES[now.state],
            address=now.address,
            message="; ".join(filter(None, (now.message, self._feed.message, now.spool.disk_error))),
            state_time=timestamp(now.state_time_ns),
            messages=exported.messages,
            octets=now.exported.octets,
            flows=exported.flows,
            flow_packets=exported.packets,
            flow_octets=exported.octets,
            spooled_flows=waiting.flows,
            spooled_memory_bytes=now.spool.memory_bytes,
            spooled_disk_bytes=now.spool.disk_bytes,
            dropped_flows=lost.flows + self._feed.overwritten,
            dropped_packets=lost.packets,
            dropped_octets=lost.octets,
            unexportable_flows=made.unexportable_flows,
            unexportable_packets=made.unexportable_packets,
            unexportable_octets=made.unexportable_octets,
            connects=now.exported.connects,
            path_mtu=now.message_max if self._plan.transport == "udp" else 0,
        )

    # ---- for the sender

    def collector_lost(self, message: str) -> None:
        """See SenderEvents."""
        self._tell(event_pb2.EVENT_TYPE_COLLECTOR_LOST, _WARNING, f"{self._shown} is away, records wait: {message}")

    def collector_returned(self, address: str) -> None:
        """See SenderEvents."""
        self._tell(event_pb2.EVENT_TYPE_COLLECTOR_RETURNED, _INFO, f"{address or self._shown} is back")

    def records_lost(self, lost: Amount) -> None:  # noqa: ARG002 - told together with what was overwritten
        """See SenderEvents."""
        self._tell_losses()

    # ---- the inside

    def _open_source(self, run: CaptureRun, *, is_new: bool) -> ExportSource:
        if self._plan.protocol == "sflow":
            return SampleSource(self._terms, run, is_new=is_new, agent_ipv6=":" in self._agent_address)
        return FlowSource(self._terms, run, is_new=is_new)

    def _new_stamp(self) -> ExportSession:
        terms = self._terms
        return ExportSession(
            firmware=terms.firmware,
            protocol=terms.plan.protocol,
            system_init_ns=terms.system_init_ns,
            agent_address=self._agent_address,
        )

    def _turn(self) -> None:
        """On the feed's thread, often."""
        if time.monotonic() - self._turned_at >= _TELL_INTERVAL_S:
            self._turned_at = time.monotonic()
            if self._terms.routes is not None:
                self._refresh_routes(self._terms.routes)
            self._tell_losses()

    def _refresh_routes(self, routes: Routes) -> None:
        try:
            routes.refresh()
        except CaptureError as error:  # what was known stays in use
            _LOG.warning("export %s: routes: %s", self._plan.export_id, error.message)

    def _tell_losses(self, *, is_last: bool = False) -> None:
        with self._tell_lock:
            lost = self._spool.status().lost.flows + self._feed.overwritten
            fresh = lost - self._told_lost
            now = time.monotonic()
            if fresh <= 0 or (now - self._loss_told_at < _TELL_INTERVAL_S and not is_last):
                return
            self._told_lost, self._loss_told_at = lost, now
        what = f"{fresh} records for {self._shown} were lost: they found no room, or were overwritten before they were read"
        self._tell(event_pb2.EVENT_TYPE_EXPORT_LOSS, _WARNING, what, value=fresh)

    def _tell(
        self, kind: event_pb2.EventType.ValueType, severity: event_pb2.EventSeverity.ValueType, what: str, *, value: int = 0
    ) -> None:
        detail = {"export_id": self._plan.export_id, "collector": self._shown}
        self._journal.tell(kind, severity, f"export {self._plan.export_id}: {what}", value=value, detail=detail)

    def _as_asked(self, now: SenderStatus) -> pb.ExportCollector:
        if self._collector is None:
            return pb.ExportCollector(host=now.address)
        return pb.ExportCollector(host=self._collector.host, port=self._collector.port, tls_name=self._collector.tls_name)


def _spool_below(directory: Path, export_id: str, name: str) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError("EXPORT_SPOOL", f"{directory} cannot be made: {error.strerror}", is_permanent=True) from error
    # A DNS name may be longer than a file's.
    short = name if len(name) <= _NAME_CHARACTERS else hashlib.sha256(name.encode()).hexdigest()
    return directory / f"{export_id}_{short}"


def drop_spools(directory: Path, kept: Collection[str]) -> None:
    """Removes the spools below a directory of exports that are none of those kept; what is no spool stays."""
    try:
        found = [path for path in directory.iterdir() if "_" in path.name and path.name.partition("_")[0] not in kept]
    except FileNotFoundError:
        return
    except OSError as error:
        _LOG.warning("spools of ended exports stay: %s", error)
        return
    for path in found:
        try:
            remove_spool(path)
        except OSError as error:
            _LOG.warning("the spool of an ended export stays: %s", error)
