# SPDX-License-Identifier: Apache-2.0
"""What one collector is fed from: one capture's finished flows (sampled frames: sample_source.py).

    CaptureRun ── FlowReader ── FlowExporter of its own ──read()──► blocks of messages

A source is opened before the first frame of its capture, on the event loop. The exporter is made for the capture: with its
statistics, its sampling, and messages as long as the collector's path takes. Its feed reads, its sender asks for options: a lock
lets in one of them at a time.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, TypeVar

from jarvis_native import Firmware, FlowBatch, FlowReader
from jarvis_native.errors import CaptureStateError
from jarvis_native.export import (
    ExportBlock,
    ExportInterface,
    ExportStatistics,
    ExportTotals,
    FlowExporter,
)
from jarvis_native.routes import Routes

from jarvis_agent.captures import CaptureRun
from jarvis_agent.export.plan import ExportPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTerms:
    """What every exporter of one collector is made with."""

    plan: ExportPlan
    firmware: Firmware
    system_init_ns: int
    """Unix time that sysUptime counts from: the process's start."""
    share: int
    """Which of the plan's collectors this is, where they share the flows."""
    routes: Routes | None
    """For profile full."""
    message_max: Callable[[], int]
    """Bytes that a message may have on the way to the collector now."""

    @property
    def share_count(self) -> int:
        """1: it gets every flow."""
        return len(self.plan.collectors) if self.plan.distribution == "balance" else 1


class SourceOpener(Protocol):
    """Opens a source on a capture."""

    def __call__(self, run: CaptureRun, *, is_new: bool) -> ExportSource:
        """is_new: the capture has not started; else it began before the export."""


class ExportSource(Protocol):
    """One capture as a collector's feed reads it."""

    @property
    def run(self) -> CaptureRun:
        """The capture."""

    def read(self, *, flush: bool) -> FlowBatch[ExportBlock]:
        """Next messages; raises LeaseOver while the capture's lease is over."""

    def counters(self) -> ExportBlock | None:
        """sFlow: its interfaces' counters, else None."""

    def options(self, statistics: ExportStatistics) -> ExportBlock:
        """Options records."""

    def totals(self) -> ExportTotals:
        """Of its exporter; also when it is closed."""

    def metering(self) -> ExportStatistics:
        """Of its capture; the rest is 0."""

    def close(self) -> None:
        """Gives up its place; may be called again."""


class _Place(Protocol):
    """A reader's or a sampler's place in a capture."""

    def close(self) -> None:
        """Gives it up."""


_PlaceT = TypeVar("_PlaceT", bound=_Place)


class CaptureSource(ABC, Generic[_PlaceT]):
    """A capture of this process, read through a place in it by an exporter of its own. Implements ExportSource."""

    def __init__(self, terms: ExportTerms, run: CaptureRun, place: _PlaceT) -> None:
        """Makes the exporter.

        Args:
            terms: of the collector.
            run: the capture.
            place: in it; the source's from now on, closed also when this fails.

        Raises:
            CaptureError: the core refuses the exporter.
        """
        self.run = run
        self._terms = terms
        self._place = place
        self._lock = threading.Lock()
        self._message_max = terms.message_max()
        self._past = NO_TOTALS
        self._is_closed = False
        try:
            self._exporter = self._make_exporter()
        except BaseException:
            place.close()
            raise

    def read(self, *, flush: bool) -> FlowBatch[ExportBlock]:
        """See ExportSource. The exporter is made anew when the path takes only shorter messages than before."""
        with self._lock:
            if self._terms.message_max() < self._message_max:
                batch = self._read(flush=True)
                if not batch.more:
                    self._renew()
                return batch
            return self._read(flush=flush)

    def counters(self) -> ExportBlock | None:
        """See ExportSource."""
        return None

    def options(self, statistics: ExportStatistics) -> ExportBlock:
        """See ExportSource."""
        named = [
            ExportInterface(index=interface.interface_index, name=interface.name)
            for interface in self.run.engine.get_interfaces()
        ]
        with self._lock:
            return self._exporter.options(statistics, named)

    def totals(self) -> ExportTotals:
        """See ExportSource."""
        with self._lock:
            return self._past if self._is_closed else add_totals(self._past, self._exporter.totals())

    def metering(self) -> ExportStatistics:
        """See ExportSource."""
        return metering_of(self.run)

    def close(self) -> None:
        """See ExportSource."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._past = add_totals(self._past, self._exporter.totals())
                self._place.close()
                self._exporter.close()

    @abstractmethod
    def _read(self, *, flush: bool) -> FlowBatch[ExportBlock]:
        """Next messages from the place; the lock is held."""

    @abstractmethod
    def _make_exporter(self) -> FlowExporter:
        """For messages of at most _message_max bytes."""

    def _renew(self) -> None:
        self._past = add_totals(self._past, self._exporter.totals())
        self._exporter.close()
        self._message_max = self._terms.message_max()
        self._exporter = self._make_exporter()


class FlowSource(CaptureSource[FlowReader]):
    """The finished flows of a capture."""

    def __init__(self, terms: ExportTerms, run: CaptureRun, *, is_new: bool) -> None:
        """Opens reader and exporter.

        Args:
            terms: of the collector.
            run: the capture.
            is_new: read from its first record on; else only what ends from now on.

        Raises:
            CaptureError: the capture is gone, or the core refuses the filter.
        """
        super().__init__(terms, run, _open_reader(terms.plan, run, is_new=is_new))

    def _read(self, *, flush: bool) -> FlowBatch[ExportBlock]:
        return self._exporter.read(self._place, flush=flush)

    def _make_exporter(self) -> FlowExporter:
        terms, plan, capture = self._terms, self._terms.plan, self.run.plan
        return FlowExporter(
            firmware=terms.firmware,
            protocol=plan.protocol,
            profile=plan.profile,
            time_unit=plan.time_unit,
            biflow=plan.biflow,
            observation_domain_id=plan.observation_domain_id,
            message_max=self._message_max,
            statistics=capture.statistics,
            sampling=capture.sampling,
            sampling_interval=capture.sampling_interval,
            merge_interfaces=capture.merge_interfaces,
            system_init_ns=terms.system_init_ns,
            share=terms.share if terms.share_count > 1 else 0,
            share_count=terms.share_count,
            routes=terms.routes,
        )


NO_TOTALS = ExportTotals(**{field.name: 0 for field in fields(ExportTotals)})


def _open_reader(plan: ExportPlan, run: CaptureRun, *, is_new: bool) -> FlowReader:
    if not is_new:
        return run.engine.open_flow_reader(filter=plan.filter, start="newest")
    if not run.plan.is_live:
        with contextlib.suppress(CaptureStateError):  # the core waits for a few readers only; the next are told what they miss
            return run.engine.open_flow_reader(filter=plan.filter, lossless=True)
    return run.engine.open_flow_reader(filter=plan.filter)


def add_totals(one: ExportTotals, other: ExportTotals) -> ExportTotals:
    """Both together."""
    return ExportTotals(**{field.name: getattr(one, field.name) + getattr(other, field.name) for field in fields(ExportTotals)})


def add_metering(one: ExportStatistics, other: ExportStatistics) -> ExportStatistics:
    """Both together, of what the captures metered."""
    return replace(
        one,
        observed_packets=one.observed_packets + other.observed_packets,
        dropped_packets=one.dropped_packets + other.dropped_packets,
        ignored_packets=one.ignored_packets + other.ignored_packets,
    )


def metering_of(run: CaptureRun) -> ExportStatistics:
    """What options records say of a capture's metering; octets of what was not metered are not counted by captures."""
    try:
        metrics = run.engine.get_metrics()
    except CaptureStateError:  # it did not come about
        return ExportStatistics()
    return ExportStatistics(
        observed_packets=metrics.received,
        dropped_packets=metrics.dropped_nic + metrics.dropped_kernel + metrics.dropped_user,
        ignored_packets=metrics.non_ip + metrics.malformed,
    )
