# SPDX-License-Identifier: Apache-2.0
"""The controller's own events: who joined, what became of whom, and why. Pure functions; the event log numbers and dates them."""

from __future__ import annotations

from collections.abc import Sequence

from jarvis.capture.v1 import event_pb2
from jarvis.capture.v1.event_pb2 import Event

from jarvis_controller.audit_log import CONTROLLER
from jarvis_controller.states import Event as Happened
from jarvis_controller.states import State

_SEVERITIES: dict[State, event_pb2.EventSeverity.ValueType] = {
    State.STALE: event_pb2.EVENT_SEVERITY_WARNING,
    State.QUARANTINED: event_pb2.EVENT_SEVERITY_CRITICAL,
}
"""Of a change to this state; any other is information."""
_TOLD_SERIALS = 10


def enrolled(agent_id: str, hostname: str, address: str, *, has_tpm: bool = True) -> Event:
    """An agent joined."""
    level = {} if has_tpm else {"assurance": "L0"}
    return Event(
        type=event_pb2.EVENT_TYPE_AGENT_ENROLLED,
        severity=event_pb2.EVENT_SEVERITY_INFO,
        agent_id=agent_id,
        message=f"the agent of {hostname} joined the fleet" + ("" if has_tpm else " without a TPM"),
        detail={"address": address, "hostname": hostname, **level},
    )


def policy_applied(name: str, version: int, principal: str) -> Event:
    """Another policy has come into force."""
    return Event(
        type=event_pb2.EVENT_TYPE_POLICY_APPLIED,
        severity=event_pb2.EVENT_SEVERITY_INFO,
        value=version,
        message=f"version {version} of policy {name} is in force",
        detail={"name": name, "principal": principal, "version": str(version)},
    )


def reported(agent_id: str, reason: str) -> Event:
    """Checks failed that the policy only has reported."""
    return Event(
        type=event_pb2.EVENT_TYPE_ATTESTATION_REPORTED,
        severity=event_pb2.EVENT_SEVERITY_WARNING,
        agent_id=agent_id,
        message=f"the agent keeps its lease, but: {reason}",
        detail={"reason": reason},
    )


def state_events(
    agent_id: str,
    before: State,
    after: State,
    happened: Happened,
    *,
    reason: str,
    principal: str = CONTROLLER,
    assurance: str = "",
) -> list[Event]:
    """What an agent's change of state, or its failed attestation, is told as; with the level that it was verified at."""
    events = []
    if happened is Happened.ATTESTATION_FAILED and before not in {State.QUARANTINED, State.RETIRED}:
        events.append(
            Event(
                type=event_pb2.EVENT_TYPE_ATTESTATION_FAILED,
                severity=event_pb2.EVENT_SEVERITY_CRITICAL,
                agent_id=agent_id,
                message=f"the agent did not pass its attestation: {reason}",
                detail={"reason": reason},
            )
        )
    if after is not before:
        detail = {"from": str(before), "reason": reason, "to": str(after)}
        if principal != CONTROLLER:
            detail["principal"] = principal
        if after is State.VERIFIED and assurance:
            detail["assurance"] = assurance
        events.append(
            Event(
                type=event_pb2.EVENT_TYPE_AGENT_STATE_CHANGED,
                severity=_SEVERITIES.get(after, event_pb2.EVENT_SEVERITY_INFO),
                agent_id=agent_id,
                value=after.wire,
                message=f"{before} -> {after}" + (f": {reason}" if reason else ""),
                detail=detail,
            )
        )
    return events


def certificate_revoked(subject: str, serials: Sequence[str], *, reason: str, principal: str, agent_id: str = "") -> Event:
    """A certificate, or all of an id, is refused from now on."""
    return Event(
        type=event_pb2.EVENT_TYPE_CERTIFICATE_REVOKED,
        severity=event_pb2.EVENT_SEVERITY_WARNING,
        agent_id=agent_id,
        message=f"the certificate of {subject} was revoked: {reason}",
        detail={"principal": principal, "reason": reason, "serial": ",".join(serials[:_TOLD_SERIALS]), "subject": subject},
    )
