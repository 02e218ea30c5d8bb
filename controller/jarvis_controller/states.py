# SPDX-License-Identifier: Apache-2.0
"""The states of an agent and the only ways between them: one pure function.

UNKNOWN -> ENROLLED -> VERIFIED <-> STALE, any of the last three -> QUARANTINED -> (an operator) -> STALE; any of them -> RETIRED
-> (a new join token) -> ENROLLED. Only VERIFIED agents get leases and commands. Losing contact never quarantines, and nothing
but an operator's release or retirement ends a quarantine: not a passed attestation, not an enrolment.
"""

from __future__ import annotations

from enum import StrEnum

from jarvis.capture.v1 import fleet_pb2


class State(StrEnum):
    """What the controller holds of an agent."""

    UNKNOWN = "UNKNOWN"
    ENROLLED = "ENROLLED"
    VERIFIED = "VERIFIED"
    STALE = "STALE"
    QUARANTINED = "QUARANTINED"
    RETIRED = "RETIRED"

    @property
    def wire(self) -> fleet_pb2.AgentState.ValueType:
        """The value of the wire's enum."""
        return _WIRE[self]


_WIRE: dict[State, fleet_pb2.AgentState.ValueType] = {
    State.UNKNOWN: fleet_pb2.AGENT_STATE_UNSPECIFIED,
    State.ENROLLED: fleet_pb2.AGENT_STATE_ENROLLED,
    State.VERIFIED: fleet_pb2.AGENT_STATE_VERIFIED,
    State.STALE: fleet_pb2.AGENT_STATE_STALE,
    State.QUARANTINED: fleet_pb2.AGENT_STATE_QUARANTINED,
    State.RETIRED: fleet_pb2.AGENT_STATE_RETIRED,
}


class Event(StrEnum):
    """What happened to an agent."""

    ENROLLED = "enrolled"
    """Its EK and AK were proved and a certificate was issued, for the first time or again."""
    ATTESTATION_PASSED = "attestation-passed"
    ATTESTATION_FAILED = "attestation-failed"
    """A check other than the challenge's age failed, or the challenge did not match twice."""
    CONTACT_LOST = "contact-lost"
    """Timeout, expired challenge, lost connection: nothing is known, nothing is held against it."""
    QUARANTINE_ORDERED = "quarantine-ordered"
    RELEASE_ORDERED = "release-ordered"
    RETIRE_ORDERED = "retire-ordered"


class IllegalTransitionError(Exception):
    """An event that cannot happen in this state."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"{event} cannot happen to an agent that is {state}")
        self.state = state
        self.event = event


_LIVE = (State.ENROLLED, State.VERIFIED, State.STALE)
_TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.UNKNOWN, Event.ENROLLED): State.ENROLLED,
    **{(state, Event.ENROLLED): state for state in (*_LIVE, State.QUARANTINED)},
    # Its TPM alone does not bring it back: enrolment asks it for a token, which an administrator makes.
    (State.RETIRED, Event.ENROLLED): State.ENROLLED,
    **{(state, Event.ATTESTATION_PASSED): State.VERIFIED for state in _LIVE},
    **{(state, Event.ATTESTATION_FAILED): State.QUARANTINED for state in (*_LIVE, State.QUARANTINED)},
    **{(state, Event.CONTACT_LOST): State.STALE for state in _LIVE},
    **{(state, Event.QUARANTINE_ORDERED): State.QUARANTINED for state in (*_LIVE, State.QUARANTINED)},
    **{(state, Event.RETIRE_ORDERED): State.RETIRED for state in (*_LIVE, State.QUARANTINED, State.RETIRED)},
    # Evidence that was under way when the quarantine came changes nothing.
    (State.QUARANTINED, Event.ATTESTATION_PASSED): State.QUARANTINED,
    (State.QUARANTINED, Event.CONTACT_LOST): State.QUARANTINED,
    # Not VERIFIED: the next attestation decides, over an event log that still holds whatever was measured since the last reset.
    (State.QUARANTINED, Event.RELEASE_ORDERED): State.STALE,
    (State.RETIRED, Event.ATTESTATION_PASSED): State.RETIRED,
    (State.RETIRED, Event.ATTESTATION_FAILED): State.RETIRED,
    (State.RETIRED, Event.CONTACT_LOST): State.RETIRED,
}


def transition(state: State, event: Event) -> State:
    """The state after `event`.

    Raises:
        IllegalTransitionError: for every pair that is not listed; an unknown agent, above all, can only enrol.
    """
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransitionError(state, event) from None
