# SPDX-License-Identifier: Apache-2.0
"""What a flow stream says besides flows: losses, agents that come and go, watermarks. Never swallowed, whatever the output."""

from collections import Counter
from typing import Any

from jarvis.capture.v1 import fleet_pb2, flow_pb2

from jarvisctl.format.objects import enum_text, to_object
from jarvisctl.format.units import local_time, printable, rfc3339

_POINT = flow_pb2.LossPoint.DESCRIPTOR
_STATE = fleet_pb2.AgentState.DESCRIPTOR
#: Here packets are lost, elsewhere flow records.
_PACKET_POINTS = frozenset({flow_pb2.LOSS_POINT_NIC, flow_pb2.LOSS_POINT_KERNEL_RING})


def loss_text(agent_id: str, loss: flow_pb2.LossNotice) -> str:
    """One line on stderr."""
    what = "packets" if loss.point in _PACKET_POINTS else "flow records"
    when = f" from {local_time(loss.first_time)} to {local_time(loss.last_time)}" if loss.HasField("first_time") else ""
    return f"LOSS {printable(agent_id) or 'controller'}: {_lost(loss)} {what} at {_point(loss)}{when}"


def status_text(agent_id: str, status: fleet_pb2.AgentStatusEvent) -> str:
    """One line on stderr."""
    streaming = "its flows are arriving" if status.streaming else "its flows are not arriving"
    message = f": {printable(status.message)}" if status.message else ""
    return f"AGENT {printable(agent_id)}: {enum_text(_STATE, status.state)}, {streaming}{message}"


def loss_object(agent_id: str, loss: flow_pb2.LossNotice) -> dict[str, Any]:
    """For programs."""
    return {
        "event": "loss",
        "agent_id": agent_id,
        **to_object(loss),
        "unit": "packets" if loss.point in _PACKET_POINTS else "records",
    }


def status_object(agent_id: str, status: fleet_pb2.AgentStatusEvent) -> dict[str, Any]:
    """For programs."""
    return {"event": "status", "agent_id": agent_id, **to_object(status)}


def watermark_object(agent_id: str, watermark: flow_pb2.Watermark) -> dict[str, Any]:
    """For programs; people are not shown them."""
    return {"event": "watermark", "agent_id": agent_id, "low_watermark": rfc3339(watermark.low_watermark)}


class Tally:
    """How many flows came and how much was lost on the way."""

    def __init__(self) -> None:
        self.flows = 0
        self.agents: set[str] = set()
        self.lost: Counter[int] = Counter()
        self.count_unknown = False
        """Whether more was lost than could be counted."""

    def flow(self, agent_id: str, records: int) -> None:
        """Counts the records of a batch."""
        self.flows += records
        self.agents.add(agent_id)

    def loss(self, loss: flow_pb2.LossNotice) -> None:
        """Counts a loss notice."""
        self.lost[loss.point] += loss.lost
        self.count_unknown |= loss.count_unknown

    @property
    def lost_records(self) -> int:
        """Flow records, at whatever place."""
        return sum(lost for point, lost in self.lost.items() if point not in _PACKET_POINTS)

    @property
    def lost_packets(self) -> int:
        """Packets before they were metered."""
        return sum(lost for point, lost in self.lost.items() if point in _PACKET_POINTS)

    def text(self) -> str:
        """The last line on stderr."""
        flows = f"{self.flows:,} flow{'' if self.flows == 1 else 's'}"
        agents = f"{len(self.agents)} agent{'' if len(self.agents) == 1 else 's'}"
        more = " and an unknown number more" if self.count_unknown else ""
        return f"{flows} from {agents}, lost on the way: {self.lost_records:,} flow records{more}, {self.lost_packets:,} packets"

    def to_object(self) -> dict[str, Any]:
        """The last object."""
        return {
            "event": "end",
            "flows": self.flows,
            "agents": len(self.agents),
            "lost_records": self.lost_records,
            "lost_packets": self.lost_packets,
            "count_unknown": self.count_unknown,
        }


def _lost(loss: flow_pb2.LossNotice) -> str:
    if not loss.count_unknown:
        return f"{loss.lost:,}"
    return f"at least {loss.lost:,}" if loss.lost else "an unknown number of"


def _point(loss: flow_pb2.LossNotice) -> str:
    return enum_text(_POINT, loss.point).replace("_", " ")
