# SPDX-License-Identifier: Apache-2.0
"""What the offline meter's exports have in common, over the network and into a file: exporters, and what is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jarvis_native.engine import PacketCaptureEngine
from jarvis_native.export import ExportSession, ExportStatistics, FlowExporter
from jarvis_native.loader import Firmware
from jarvis_native.routes import Routes

from jarvis_agent.export.plan import ExportPlan
from jarvis_agent.export.session import SessionCounters
from jarvis_agent.meter_export_options import ExportOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What exporters must know of the metering."""

    firmware: Firmware
    statistics: tuple[str, ...]
    sampling: str
    sampling_interval: int
    started_ns: int
    """Unix ns: the uptime of NetFlow counts from here."""
    routes: Routes | None = None
    """For profile full, and NetFlow v5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What came of one export."""

    to: str
    """As the option says it, or the file."""
    flows: int
    """Flows, a record or several each."""
    records: int
    """Flow records that left."""
    packets: int
    octets: int
    """That these count."""
    not_sent: int
    """Flow records that did not leave."""
    unexportable_flows: int
    unexportable_packets: int
    unexportable_octets: int


def summary_of(exported: Sequence[Exported]) -> dict[str, Any]:
    """Keys of the meter's summary: sums over all exports, and each by itself when there are several."""
    summary: dict[str, Any] = {
        "exported_flows": sum(one.flows for one in exported),
        "exported_records": sum(one.records for one in exported),
        "exported_packets": sum(one.packets for one in exported),
        "exported_octets": sum(one.octets for one in exported),
        "unexportable_flows": sum(one.unexportable_flows for one in exported),
        "unexportable_packets": sum(one.unexportable_packets for one in exported),
        "unexportable_octets": sum(one.unexportable_octets for one in exported),
        "not_sent": sum(one.not_sent for one in exported),
    }
    if len(exported) > 1:
        summary["exports"] = [
            {"to": one.to, "records": one.records, "packets": one.packets, "octets": one.octets, "not_sent": one.not_sent}
            for one in exported
        ]
    return summary


def statistics_of(engine: PacketCaptureEngine, exported: SessionCounters) -> ExportStatistics:
    """What options records say of the metering and of one export."""
    metrics = engine.get_metrics()
    return ExportStatistics(
        observed_packets=metrics.received,
        dropped_packets=metrics.dropped,
        ignored_packets=metrics.non_ip + metrics.malformed,
        exported_messages=exported.amount.messages,
        exported_flows=exported.amount.flows,
        exported_octets=exported.octets,
    )


def open_routes(options: ExportOptions, firmware: Firmware) -> Routes | None:
    """What the options ask for; None: nothing.

    Raises:
        CaptureError: the AS database, or the kernel's tables, cannot be read.
    """
    if not options.routes and options.asn_database is None:
        return None
    return Routes(firmware=firmware, kernel=options.routes, asn_database=options.asn_database)


def new_exporter(metered: Metered, plan: ExportPlan, *, message_max: int, share: tuple[int, int] = (0, 1)) -> FlowExporter:
    """The exporter of one plan.

    Args:
        metered: what the records are like.
        plan: of the export.
        message_max: bytes a message.
        share: number and count of those that share the flows.

    Raises:
        InvalidArgument: the protocol cannot say it.
    """
    return FlowExporter(
        firmware=metered.firmware,
        protocol=plan.protocol,
        profile=plan.profile,
        time_unit=plan.time_unit,
        biflow=plan.biflow,
        observation_domain_id=plan.observation_domain_id,
        message_max=message_max,
        statistics=metered.statistics,
        sampling=metered.sampling,
        sampling_interval=metered.sampling_interval,
        agent_ipv6=":" in _agent_address(plan),
        system_init_ns=metered.started_ns,
        share=share[0],
        share_count=share[1],
        routes=metered.routes,
    )


def new_stamp(metered: Metered, plan: ExportPlan) -> ExportSession:
    """What gives one session's messages their sequence numbers and times."""
    return ExportSession(
        firmware=metered.firmware,
        protocol=plan.protocol,
        system_init_ns=metered.started_ns,
        trace_time=plan.protocol == "netflow5",
        agent_address=_agent_address(plan),
    )


def _agent_address(plan: ExportPlan) -> str:
    """Of sFlow; empty for the others."""
    if plan.protocol != "sflow":
        return ""
    from jarvis_agent.export.agent_address import agent_address  # noqa: PLC0415 - sockets, for sFlow alone

    return agent_address(plan.collectors[0].host)
