# SPDX-License-Identifier: Apache-2.0
"""What capture an agent was last told to run, by the audit log: the controller's own record, whatever the agent says.

capture.start, capture.interfaces, capture.stop of one agent -> who started which capture, and on which interfaces it may be
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from google.protobuf.json_format import ParseDict, ParseError
from jarvis.capture.v1 import agent_pb2, capture_pb2
from sqlalchemy import select
from sqlalchemy.orm import Session

from jarvis_controller.models import AuditRow

_START, _STOP, _INTERFACES = "capture.start", "capture.stop", "capture.interfaces"
_FILE_DEVICE = "pcap:"
"""Where such a device's file lies is the agent's to say, so that its name is another there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandedCapture:
    """A capture that somebody started and nobody stopped."""

    principal: str
    """Who started it."""
    spec: capture_pb2.CaptureSpec
    """As it was commanded."""
    interfaces: tuple[str, ...]
    """Those of its spec, and each that was added since."""

    def spec_on(self, interfaces: list[str]) -> capture_pb2.CaptureSpec | None:
        """The same on the interfaces where the agent says that it is now; None when one of them was never commanded."""
        spec = capture_pb2.CaptureSpec.FromString(self.spec.SerializeToString())
        named = [name for name in interfaces if not name.startswith(_FILE_DEVICE)]
        if not set(named) <= set(self.interfaces):
            return None
        if interfaces:
            del spec.interfaces[:]
            spec.interfaces.extend((*named, *(name for name in self.interfaces if name.startswith(_FILE_DEVICE))))
        return spec


def last_commanded(session: Session, agent_id: str) -> CommandedCapture | None:
    """The capture that an agent was told to run, each command of it answered with success; None when there is none."""
    rows = session.scalars(
        select(AuditRow)
        .where(AuditRow.agent_id == agent_id, AuditRow.action.in_((_START, _STOP, _INTERFACES)))
        .order_by(AuditRow.sequence.desc())
    )
    added: list[str] = []
    for row in rows:
        detail = json.loads(row.detail)
        if detail.get("code") != "OK":
            continue
        if row.action == _STOP:
            return None
        try:
            if row.action == _INTERFACES:
                added += ParseDict(detail.get("request", {}), agent_pb2.UpdateInterfacesRequest()).add
                continue
            spec = ParseDict(detail.get("request", {}), agent_pb2.StartCaptureRequest()).spec
        except ParseError:
            return None
        return CommandedCapture(
            principal=row.principal, spec=spec, interfaces=tuple(dict.fromkeys((*spec.interfaces, *reversed(added))))
        )
    return None
