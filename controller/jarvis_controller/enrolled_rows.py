# SPDX-License-Identifier: Apache-2.0
"""What an enrolment does to the rows of agents and join tokens; called inside the store's transaction."""

from __future__ import annotations

from collections.abc import Mapping

from jarvis_trust.errors import EnrollmentError
from jarvis_trust.joinfile import token_sha256
from sqlalchemy.orm import Session

from jarvis_controller.models import AgentRow, JoinTokenRow
from jarvis_controller.records import EnrolledAgent
from jarvis_controller.states import Event, State, transition


def usable_token(session: Session, token: str, now_ns: int) -> JoinTokenRow:
    """A token that can enrol somebody now.

    Raises:
        EnrollmentError: TOKEN_UNKNOWN, TOKEN_REUSED, TOKEN_EXPIRED.
    """
    row = session.get(JoinTokenRow, token_sha256(token))
    if row is None:
        raise EnrollmentError("TOKEN_UNKNOWN", "token: this controller made no such join token")
    if row.used_by is not None:
        raise EnrollmentError("TOKEN_REUSED", "token: it was used before; a join token enrols one agent")
    if now_ns >= row.expire_time_ns:
        raise EnrollmentError("TOKEN_EXPIRED", f"token: it ended {(now_ns - row.expire_time_ns) // 10**9} s ago")
    return row


def new_row(agent: EnrolledAgent, labels: Mapping[str, str], now_ns: int) -> AgentRow:
    """The row of a TPM that was not known."""
    return AgentRow(
        agent_id=agent.agent_id,
        state=transition(State.UNKNOWN, Event.ENROLLED),
        reason="waiting for its first attestation",
        state_time_ns=now_ns,
        labels=dict(labels),
        address=agent.address,
        hostname=agent.hostname,
        version=agent.version,
        enroll_time_ns=now_ns,
        ek_certificate=agent.ek_certificate,
        ek_public=agent.ek_public,
        ak_public=agent.ak_public,
        ak_name=agent.ak_name,
        tls_spki=agent.tls_spki,
        certificate_expire_ns=agent.certificate_expire_ns,
        lease_sequence=0,
    )


def renew_row(row: AgentRow, agent: EnrolledAgent) -> None:
    """A known agent got a certificate: its state, labels and history stay."""
    row.state = transition(State(row.state), Event.ENROLLED)
    row.address, row.hostname, row.version = agent.address, agent.hostname, agent.version
    if row.tls_spki != agent.tls_spki:
        row.previous_tls_spki, row.tls_spki = row.tls_spki, agent.tls_spki
    row.certificate_expire_ns = agent.certificate_expire_ns


def readmit_row(row: AgentRow, agent: EnrolledAgent, labels: Mapping[str, str], now_ns: int) -> None:
    """A retired TPM joins again: as if it were new, but that its lease sequence must never go back."""
    fresh = new_row(agent, labels, now_ns)
    row.state = transition(State(row.state), Event.ENROLLED)
    for column in set(AgentRow.__table__.columns.keys()) - {"agent_id", "state", "lease_sequence"}:
        setattr(row, column, getattr(fresh, column))
    row.previous_tls_spki = row.boot_id = row.session_id = row.firmware_sha256 = b""
    row.firmware_version = ""
