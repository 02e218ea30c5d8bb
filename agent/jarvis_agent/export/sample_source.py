# SPDX-License-Identifier: Apache-2.0
"""What a collector of sFlow is fed from: one capture's sampled frames, and the counters of its interfaces.

    CaptureRun ── FrameSampler ── FlowExporter of its own ──read()──► blocks of flow samples
       its interfaces ── interface_counters.read_counters ──counters()──► blocks of counters samples

As sources.FlowSource in all else: opened on the event loop, read by one feed, a lock lets in one thread at a time.
"""

from __future__ import annotations

import threading

from jarvis_native import FlowBatch
from jarvis_native.export import ExportBlock, ExportStatistics, ExportTotals, FlowExporter

from jarvis_agent.captures import CaptureRun
from jarvis_agent.export.interface_counters import read_counters
from jarvis_agent.export.sources import NO_TOTALS, ExportTerms, add_totals, metering_of


class SampleSource:
    """The sampled frames of a capture of this process. Implements sources.ExportSource."""

    def __init__(self, terms: ExportTerms, run: CaptureRun, *, is_new: bool, agent_ipv6: bool) -> None:
        """Opens sampler and exporter.

        Args:
            terms: of the collector.
            run: the capture.
            is_new: it has not started: of files every sample is waited for.
            agent_ipv6: the agent address is an IPv6 one.

        Raises:
            CaptureError: the capture is gone, or has as many samplers as it can have.
        """
        self.run = run
        self._terms = terms
        self._agent_ipv6 = agent_ipv6
        self._lock = threading.Lock()
        self._message_max = terms.message_max()
        self._past = NO_TOTALS
        self._is_closed = False
        self._sampler = run.engine.open_frame_sampler(terms.plan.sampling_rate, lossless=is_new and not run.plan.is_live)
        try:
            self._exporter = self._make_exporter()
        except BaseException:
            self._sampler.close()
            raise

    def read(self, *, flush: bool) -> FlowBatch[ExportBlock]:
        """See ExportSource. The exporter is made anew when the path takes only shorter messages than before."""
        with self._lock:
            if self._terms.message_max() < self._message_max:
                batch = self._exporter.read_samples(self._sampler, flush=True)
                if not batch.more:
                    self._renew()
                return batch
            return self._exporter.read_samples(self._sampler, flush=flush)

    def counters(self) -> ExportBlock | None:
        """See ExportSource."""
        names = [interface.name for interface in self.run.engine.get_interfaces()]
        counters = read_counters(names)
        with self._lock:
            return self._exporter.counters(counters)

    def options(self, statistics: ExportStatistics) -> ExportBlock:
        """See ExportSource; sFlow has none."""
        with self._lock:
            return self._exporter.options(statistics, [])

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
                self._sampler.close()
                self._exporter.close()

    def _renew(self) -> None:
        self._past = add_totals(self._past, self._exporter.totals())
        self._exporter.close()
        self._message_max = self._terms.message_max()
        self._exporter = self._make_exporter()

    def _make_exporter(self) -> FlowExporter:
        terms = self._terms
        return FlowExporter(
            firmware=terms.firmware,
            protocol="sflow",
            observation_domain_id=terms.plan.observation_domain_id,
            message_max=self._message_max,
            sampling_interval=terms.plan.sampling_rate,
            system_init_ns=terms.system_init_ns,
            agent_ipv6=self._agent_ipv6,
        )
