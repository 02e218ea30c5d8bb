# SPDX-License-Identifier: Apache-2.0
"""What of agents' exports is shown to people and to programs: a row for each collector (outcomes.py prints it)."""

from typing import Any

from jarvis.capture.v1 import export_pb2, fleet_pb2

from jarvisctl.commands.export_spec import PROTOCOLS, TRANSPORTS
from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import count, printable

_STATE = export_pb2.ExportState.DESCRIPTOR
_COLLECTOR_STATE = export_pb2.CollectorState.DESCRIPTOR
# As the options of `enable` say them.
_PROTOCOLS = {number: name.value for name, number in PROTOCOLS.items()}
_TRANSPORTS = {export_pb2.EXPORT_TRANSPORT_UNSPECIFIED: "udp", **{number: name.value for name, number in TRANSPORTS.items()}}
_COLUMNS = [
    Column(title="AGENT", cut=12),
    Column(title="EXPORT"),
    Column(title="STATE", states=True),
    Column(title="PROTOCOL"),
    Column(title="COLLECTOR"),
    Column(title="LINK", states=True),
    Column(title="ADDRESS"),
    Column(title="FLOWS", right=True),
    Column(title="SPOOLED", right=True),
    Column(title="DROPPED", right=True),
    Column(title="MESSAGE", fold=True),
]


class ExportsView:
    """Exports, of every id or of one."""

    def __init__(self, export_id: str = "") -> None:
        """Args: export_id: only exports of this name; empty: all."""
        self._export_id = export_id
        self.shown = 0
        """Exports that there were."""

    def table(self) -> Table:
        """Empty, with its columns."""
        return Table(columns=_COLUMNS)

    def rows(self, outcome: fleet_pb2.ExportOutcome, failure: str) -> list[list[str]]:
        """A row for each collector of each export; one where there is none."""
        if failure:
            return [[outcome.agent_id, self._export_id or "-", "failed", *["-"] * 7, failure]]
        rows = [row for status in self._wanted(outcome) for row in _rows(outcome.agent_id, status)]
        return rows or [[outcome.agent_id, self._export_id or "-", "none", *["-"] * 8]]

    def contents(self, outcome: fleet_pb2.ExportOutcome) -> dict[str, Any]:
        """All of them."""
        return {"exports": [to_object(status) for status in self._wanted(outcome)]}

    def _wanted(self, outcome: fleet_pb2.ExportOutcome) -> list[export_pb2.ExportStatus]:
        found = [status for status in outcome.exports if self._export_id in {"", status.spec.export_id}]
        self.shown += len(found)
        return found


def _rows(agent_id: str, status: export_pb2.ExportStatus) -> list[list[str]]:
    spec = status.spec
    way = f"{_PROTOCOLS.get(spec.protocol, spec.protocol)}/{_TRANSPORTS.get(spec.transport, spec.transport)}"
    head = [agent_id, printable(spec.export_id), enum_text(_STATE, status.state), way]
    if not status.collectors:
        return [[*head, *["-"] * 6, printable(status.message) or "-"]]
    return [[*head, *_cells(collector, status)] for collector in status.collectors]


def _cells(one: export_pb2.CollectorStatus, status: export_pb2.ExportStatus) -> list[str]:
    unexportable = f"{count(one.unexportable_flows)} flows cannot be said in this protocol" if one.unexportable_flows else ""
    message = "; ".join(part for part in (printable(status.message), printable(one.message), unexportable) if part)
    return [
        printable(_collector_text(one.collector)) or "-",
        enum_text(_COLLECTOR_STATE, one.state),
        printable(one.address) or "-",
        count(one.flows),
        count(one.spooled_flows),
        count(one.dropped_flows),
        message or "-",
    ]


def _collector_text(collector: export_pb2.ExportCollector) -> str:
    """As `--collector` takes it; a file is its path."""
    if not collector.port:
        return collector.host
    return f"[{collector.host}]:{collector.port}" if ":" in collector.host else f"{collector.host}:{collector.port}"
