# SPDX-License-Identifier: Apache-2.0
"""Captures metered once, and their records exported in process: as messages sent over UDP, or as the bytes of a stream or file.

The same records are read as JSON beside it: what collectors must have.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_native import PacketCaptureEngine
from jarvis_native.export import (
    ExportBlock,
    ExportInterface,
    ExportProtocol,
    ExportSession,
    ExportStatistics,
    ExportTotals,
    FlowExporter,
    send_block,
)
from jarvis_native.loader import Firmware

from testbed.collected import CollectedFlow, is_ipv4, metered_flows
from testbed.collectors import HOST

MESSAGES_A_SECOND = 2000
"""Of UDP: modest, so that a collector on a busy machine keeps up."""

INTERFACES = [ExportInterface(index=1, name="lan0", description="the first"), ExportInterface(index=2, name="lan1")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an exporter made of some captures."""

    protocol: ExportProtocol
    templates: list[ExportBlock]
    blocks: list[ExportBlock]
    options: list[ExportBlock]
    totals: ExportTotals
    metered: list[CollectedFlow]
    """All flows of the meter, by direction."""
    forward: list[CollectedFlow]
    """The forward direction of each: what collectors without reverse elements (RFC 5103) have of biflows."""
    packets: int
    """That the capture metered; the flows add up to it."""
    octets: int
    system_init_ns: int

    @property
    def expected(self) -> list[CollectedFlow]:
        """Those that the protocol can say."""
        return [flow for flow in self.metered if self.protocol != "netflow5" or is_ipv4(flow)]

    def stamped(self, firmware: Firmware) -> Iterator[ExportBlock]:
        """A whole session's messages: templates, records, templates again, options."""
        session = ExportSession(
            firmware=firmware,
            protocol=self.protocol,
            system_init_ns=self.system_init_ns,
            trace_time=self.protocol == "netflow5",
        )
        for block in [*self.templates, *self.options, *self.blocks, *self.templates, *self.options]:
            session.stamp(block, time.time_ns())
            yield block


def export_files(firmware: Firmware, files: Sequence[Path], protocol: ExportProtocol, **settings: Any) -> Exported:
    """Meters the files as one trace, no flow split by time, and exports every record."""
    system_init_ns = time.time_ns()
    records: list[dict[str, Any]] = []
    blocks: list[ExportBlock] = []
    with (
        PacketCaptureEngine(files=files, firmware=firmware) as capture,
        FlowExporter(firmware=firmware, protocol=protocol, system_init_ns=system_init_ns, **settings) as exporter,
    ):
        capture.enable_flow_metering(max_flows=65_536, idle_timeout_s=0, active_timeout_s=0)
        with capture.open_flow_reader(lossless=True) as told, capture.open_flow_reader(lossless=True) as reader:
            capture.start()
            more = True
            while more:
                more = capture.poll()
                while (text := told.read_text("json")).records:
                    assert text.lost == 0
                    records += map(json.loads, text.data.splitlines())
                while (batch := exporter.read(reader, flush=not more)).records or batch.data.messages:
                    assert batch.lost == 0
                    blocks.append(batch.data)
        metrics = capture.get_metrics()
        statistics = ExportStatistics(observed_packets=metrics.received, exported_flows=exporter.totals().records)
        return Exported(
            protocol=protocol,
            templates=[block for block in [exporter.templates()] if block.messages],
            blocks=[block for block in blocks if block.messages],
            options=[
                block for block in [exporter.options(statistics, [ExportInterface(index=1, name="lan0")])] if block.messages
            ],
            totals=exporter.totals(),
            metered=list(metered_flows(records)),
            forward=list(metered_flows(record | {"rev_packets": 0} for record in records)),
            packets=metrics.metered,
            octets=metrics.metered_octets,
            system_init_ns=system_init_ns,
        )


def send_datagrams(firmware: Firmware, exported: Exported, *ports: int) -> None:
    """Sends all messages to each of the ports on loopback, at a modest rate."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in ports]
    try:
        for port, sender in zip(ports, sockets, strict=True):
            sender.connect((HOST, port))
        for block in exported.stamped(firmware):
            for sender in sockets:
                sent = 0
                while sent < block.messages:
                    sent += send_block(firmware, sender.fileno(), block, sent)
            time.sleep(block.messages / MESSAGES_A_SECOND)
    finally:
        for sender in sockets:
            sender.close()


def stream(firmware: Firmware, exported: Exported) -> bytes:
    """All messages, one behind the other: a file (RFC 5655), or what a TCP connection carries."""
    return b"".join(bytes(block.data) for block in exported.stamped(firmware))
