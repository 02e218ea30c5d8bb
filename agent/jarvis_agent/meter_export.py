# SPDX-License-Identifier: Apache-2.0
"""The offline meter's exports: finished records to collectors while the files are metered, a thread each.

    lossless reader, or sampler for sFlow ──FlowExporter──► blocks ──CollectorSession──► collector

Nothing is spooled: a collector that takes its time holds the metering up, and none of its records is lost on this side. One that
goes away is tried again for a while; after that its records are counted as not sent, and the meter ends with an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from jarvis_native.engine import PacketCaptureEngine
from jarvis_native.errors import InvalidArgument
from jarvis_native.export import ExportBlock, FlowExporter
from jarvis_native.loader import Firmware
from jarvis_native.reader import FlowBatch, FlowReader
from jarvis_native.sampler import FrameSampler

from jarvis_agent.export.errors import ExportError, unreachable
from jarvis_agent.export.plan import ExportPlan
from jarvis_agent.export.session import CollectorSession, SessionCounters
from jarvis_agent.export.transport import Transport
from jarvis_agent.export.ways import ExportWays
from jarvis_agent.meter_export_options import ExportOptions, plans_of
from jarvis_agent.meter_exporters import Exported, Metered, new_exporter, new_stamp, statistics_of

if TYPE_CHECKING:
    from jarvis_agent.export.tls import TlsFiles

_IDLE_S = 0.002
_RETRY_S = 10.0
"""A collector that went away is tried again for so long."""
_RETRY_PAUSE_S = 0.2
_FINISH_S = 30.0
"""For what has left to be acknowledged."""


class _Source:
    """Templates and options of one session. The exporter is made once its way is known, for messages that fit it."""

    def __init__(self, engine: PacketCaptureEngine, make: Callable[[], FlowExporter]) -> None:
        self._engine = engine
        self._make = make
        self._exporter: FlowExporter | None = None

    @property
    def exporter(self) -> FlowExporter:
        if self._exporter is None:
            self._exporter = self._make()
        return self._exporter

    def templates(self) -> ExportBlock:
        return self.exporter.templates()

    def options(self, exported: SessionCounters) -> ExportBlock:
        return self.exporter.options(statistics_of(self._engine, exported), [])


class _CollectorExport(threading.Thread):
    """One collector: reads and sends until the capture has ended and everything left.

    What a collector that went away for good does not get is still read and counted: the other outputs go on.
    """

    def __init__(
        self,
        target: str,
        session: CollectorSession,
        source: _Source,
        reader: FlowReader | FrameSampler,
        *,
        progress: threading.Event,
        giving_up: threading.Event,
    ) -> None:
        super().__init__(name=f"export {target}", daemon=True)
        self.target = target
        self.error: Exception | None = None
        self._session, self._source, self._reader = session, source, reader
        self._progress = progress
        self._giving_up = giving_up
        self.ending = threading.Event()
        """The capture has stopped: what the reader still has is the rest."""

    def open(self) -> None:
        """Connects; before `start`.

        Raises:
            ExportError: the collector is not there, or not the right one.
            InvalidArgument: the protocol cannot say what is metered.
        """
        self._session.open()

    def run(self) -> None:
        try:
            self._pump()
            if self.error is None and not self._session.finish(_FINISH_S):
                self.error = unreachable(self._session.transport.address, f"did not acknowledge all within {_FINISH_S:.0f} s")
        except OSError as error:
            self.error = self.error or unreachable(self._session.transport.address, error)
        except Exception as error:  # noqa: BLE001 - whatever it is: told at the end, by the thread that meters
            self.error = self.error or error
        finally:
            if self.error is not None:
                self.error.add_note(self.target)
            self._session.close()
            self._reader.close()
            self._progress.set()

    def result(self) -> Exported:
        """After the thread's end."""
        totals, left = self._source.exporter.totals(), self._session.counters().amount
        return Exported(
            to=self.target,
            flows=totals.flows_read - totals.unexportable_flows,
            records=left.flows,
            packets=left.packets,
            octets=left.octets,
            not_sent=totals.records - left.flows,
            unexportable_flows=totals.unexportable_flows,
            unexportable_packets=totals.unexportable_packets,
            unexportable_octets=totals.unexportable_octets,
        )

    def _pump(self) -> None:
        while not self._giving_up.is_set():
            ending = self.ending.is_set()
            batch = self._read(flush=ending)
            if batch.records:
                self._progress.set()
            if batch.data.messages:
                self._send(batch.data)
            elif ending and batch.end:
                self._send(self._source.options(self._session.counters()))
                return
            elif not batch.records:
                self._giving_up.wait(_IDLE_S)

    def _read(self, *, flush: bool) -> FlowBatch[ExportBlock]:
        if isinstance(self._reader, FrameSampler):
            return self._source.exporter.read_samples(self._reader, flush=flush)
        return self._source.exporter.read(self._reader, flush=flush)

    def _send(self, block: ExportBlock) -> None:
        """Sends a block, over a new connection when the one there was has broken; nothing once there is no hope of one."""
        if self.error is not None or not block.messages:
            return
        end = time.monotonic() + _RETRY_S
        failure = _error_of(partial(self._session.send, block))
        while failure is not None:
            if failure.is_permanent or time.monotonic() > end or self._giving_up.wait(_RETRY_PAUSE_S):
                self.error = failure
                return
            failure = _error_of(self._session.open)  # which sends what was given before


def _error_of(act: Callable[[], None]) -> ExportError | None:
    try:
        act()
    except ExportError as error:
        return error
    return None


class CollectorExports:
    """All collectors of one run of the meter; also a context manager, which ends them where they are."""

    def __init__(self, exports: Sequence[_CollectorExport], progress: threading.Event, giving_up: threading.Event) -> None:
        self._exports = exports
        self._progress = progress
        self._giving_up = giving_up

    def open(self) -> None:
        """Connects to all of them, in turn; before the capture starts.

        Raises:
            ExportError, InvalidArgument: as `_CollectorExport.open`; the option is in the error's notes.
        """
        for export in self._exports:
            try:
                export.open()
            except (ExportError, InvalidArgument) as error:
                error.add_note(export.target)
                raise

    def start(self) -> None:
        """Begins to read and send."""
        for export in self._exports:
            export.start()

    def wait_progress(self, timeout_s: float) -> None:
        """Waits until one of them has read something, at most so long."""
        self._progress.wait(timeout_s)
        self._progress.clear()

    def finish(self) -> list[Exported]:
        """After the capture has stopped: waits until everything left, and says what came of it."""
        for export in self._exports:
            export.ending.set()
        for export in self._exports:
            while export.is_alive():
                export.join(0.1)  # in pieces, so that an interrupt is heard
        return [export.result() for export in self._exports]

    def errors(self) -> list[Exception]:
        """What was in the way of those that did not get all; the option is in their notes."""
        return [export.error for export in self._exports if export.error is not None]

    def __enter__(self) -> CollectorExports:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._giving_up.set()
        for export in self._exports:
            if export.ident is not None:
                export.join(1.0)


def prepare_exports(engine: PacketCaptureEngine, metered: Metered, options: ExportOptions) -> CollectorExports:
    """The exports that the options ask for, with their readers, before the capture starts; nothing is connected yet.

    Raises:
        ExportOptionError: the options contradict each other, or a value is out of range.
    """
    progress, giving_up = threading.Event(), threading.Event()
    plans = plans_of(options)
    exports = []
    for number, (plan, target) in enumerate(zip(plans, options.targets, strict=True)):
        transport = _transport(plan, options, metered.firmware, giving_up.is_set)
        share = (number, len(plans)) if plan.distribution == "balance" else (0, 1)
        source = _Source(engine, partial(_exporter_for, metered, plan, transport, share))
        session = CollectorSession(
            transport=transport,
            source=source,
            new_stamp=partial(new_stamp, metered, plan),
            refresh_s=plan.template_refresh_s,
            refresh_messages=plan.template_refresh_messages,
            records_per_second=plan.max_records_per_second,
            interrupt=giving_up.is_set,
        )
        reader = _reader(engine, plan)
        exports.append(_CollectorExport(target, session, source, reader, progress=progress, giving_up=giving_up))
    return CollectorExports(exports, progress, giving_up)


def _reader(engine: PacketCaptureEngine, plan: ExportPlan) -> FlowReader | FrameSampler:
    if plan.protocol == "sflow":
        return engine.open_frame_sampler(plan.sampling_rate, lossless=True)
    return engine.open_flow_reader(lossless=True)


def _exporter_for(metered: Metered, plan: ExportPlan, transport: Transport, share: tuple[int, int]) -> FlowExporter:
    return new_exporter(metered, plan, message_max=transport.message_max, share=share)


def _transport(plan: ExportPlan, options: ExportOptions, firmware: Firmware, interrupt: Callable[[], bool]) -> Transport:
    """The way to a plan's collector."""
    return ExportWays(firmware=firmware, tls=_tls_files(plan, options), directory=None).open(plan, plan.collectors[0], interrupt)


def _tls_files(plan: ExportPlan, options: ExportOptions) -> TlsFiles | None:
    ca, certificate, key = options.tls_ca, options.tls_certificate, options.tls_key
    if plan.transport != "tls" or ca is None or certificate is None or key is None:
        return None
    from jarvis_agent.export.tls import TlsFiles  # noqa: PLC0415 - the meter starts without it

    return TlsFiles(ca=ca, certificate=certificate, key=key)
