# SPDX-License-Identifier: Apache-2.0
"""What a collector of sFlow is fed from: one capture's sampled frames, and the counters of its interfaces.

    CaptureRun ── FrameSampler ── FlowExporter of its own ──read()──► blocks of flow samples
       its interfaces ── interface_counters.read_counters ──counters()──► blocks of counters samples

In all else as sources.CaptureSource has it.
"""

from __future__ import annotations

from jarvis_native import FlowBatch
from jarvis_native.export import ExportBlock, FlowExporter
from jarvis_native.sampler import FrameSampler

from jarvis_agent.captures import CaptureRun
from jarvis_agent.export.interface_counters import read_counters
from jarvis_agent.export.sources import CaptureSource, ExportTerms


class SampleSource(CaptureSource[FrameSampler]):
    """The sampled frames of a capture; options it has none."""

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
        self._agent_ipv6 = agent_ipv6
        sampler = run.engine.open_frame_sampler(terms.plan.sampling_rate, lossless=is_new and not run.plan.is_live)
        super().__init__(terms, run, sampler)

    def counters(self) -> ExportBlock | None:
        """See ExportSource."""
        counters = read_counters([interface.name for interface in self.run.engine.get_interfaces()])
        with self._lock:
            return self._exporter.counters(counters)

    def _read(self, *, flush: bool) -> FlowBatch[ExportBlock]:
        return self._exporter.read_samples(self._place, flush=flush)

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
