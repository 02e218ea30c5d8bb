# SPDX-License-Identifier: Apache-2.0
"""The offline meter's IPFIX output: a file as RFC 5655 has it, or the same bytes on standard output."""

from __future__ import annotations

import time
from typing import Final

from jarvis_native.engine import PacketCaptureEngine
from jarvis_native.export import ExportBlock
from jarvis_native.reader import FlowBatch, FlowReader

from jarvis_agent.export.blocks import amount_of
from jarvis_agent.export.session import SessionCounters
from jarvis_agent.meter_export_options import ExportOptions, file_plan
from jarvis_agent.meter_exporters import Exported, Metered, new_exporter, new_stamp, statistics_of
from jarvis_agent.meter_output import write_all

MESSAGE_BYTES: Final = 65_535
"""Messages are as large as the protocol takes them."""

_BLOCK_BYTES = 1 << 20


class IpfixSink:
    """Templates, options, records, and the options once more with the last figures."""

    def __init__(self, descriptor: int, engine: PacketCaptureEngine, metered: Metered, options: ExportOptions) -> None:
        self._descriptor = descriptor
        self._engine = engine
        plan = file_plan(options)
        self._exporter = new_exporter(metered, plan, message_max=MESSAGE_BYTES)
        self._session = new_stamp(metered, plan)
        self._counters = SessionCounters()
        self._began = self._ended = False

    def take(self, reader: FlowReader) -> FlowBatch[ExportBlock]:
        """Writes the next messages."""
        if not self._began:
            self._began = True
            self._write(self._exporter.templates())
            self._write_options()
        batch = self._exporter.read(reader, flush=True, max_bytes=_BLOCK_BYTES)
        self._write(batch.data)
        if batch.end and not self._ended:
            self._ended = True
            self._write_options()
        return batch

    def result(self) -> Exported:
        """What was written so far."""
        totals = self._exporter.totals()
        return Exported(
            to="ipfix file",
            flows=totals.flows_read,
            records=totals.records,
            packets=totals.packets,
            octets=totals.octets,
            not_sent=0,
            unexportable_flows=0,
            unexportable_packets=0,
            unexportable_octets=0,
        )

    def _write_options(self) -> None:
        self._write(self._exporter.options(statistics_of(self._engine, self._counters), []))

    def _write(self, block: ExportBlock) -> None:
        if block.messages:
            self._session.stamp(block, time.time_ns())
            write_all(self._descriptor, block.data)
            self._counters = SessionCounters(
                amount=self._counters.amount + amount_of(block), octets=self._counters.octets + len(block.data)
            )
