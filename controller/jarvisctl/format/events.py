# SPDX-License-Identifier: Apache-2.0
"""Events for people (a table, or a line each) and for programs."""

from collections.abc import Iterable
from typing import Any

from jarvis.capture.v1 import event_pb2, flow_pb2

from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.table import Column, Table
from jarvisctl.format.units import local_time, printable

TYPE = event_pb2.EventType.DESCRIPTOR
_SEVERITY = event_pb2.EventSeverity.DESCRIPTOR
_SHOWN_OF_AGENT = 8

_COLUMNS = [
    Column(title="TIME"),
    Column(title="SEVERITY", states=True),
    Column(title="AGENT", cut=_SHOWN_OF_AGENT),
    Column(title="TYPE"),
    Column(title="INTERFACE"),
    Column(title="MESSAGE", fold=True),
]


def table(events: Iterable[event_pb2.Event]) -> Table:
    """All events that were asked for."""
    result = Table(columns=_COLUMNS)
    for event in events:
        result.add(*_cells(event))
    return result


def event_line(event: event_pb2.Event) -> str:
    """One event, as it comes."""
    time, severity, agent, kind, interface, message = _cells(event)
    where = "" if interface == "-" else f" {interface}"
    return f"{time}  {severity.upper():8}  {agent}  {kind}{where}  {message}\n"


def event_object(event: event_pb2.Event) -> dict[str, Any]:
    """For programs."""
    return {"event": "event", **to_object(event)}


def loss_text(loss: flow_pb2.LossNotice) -> str:
    """One line on stderr."""
    return f"LOSS controller: {loss.lost:,} events of the fleet are no longer kept and were not shown"


def loss_object(loss: flow_pb2.LossNotice) -> dict[str, Any]:
    """For programs."""
    return {"event": "loss", **to_object(loss), "unit": "events"}


def _cells(event: event_pb2.Event) -> tuple[str, str, str, str, str, str]:
    return (
        local_time(event.time),
        enum_text(_SEVERITY, event.severity),
        printable(event.agent_id) or "-",
        enum_text(TYPE, event.type),
        printable(event.interface) or "-",
        printable(event.message),
    )
