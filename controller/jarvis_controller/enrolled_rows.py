# SPDX-License-Identifier: Apache-2.0
"""Join tokens, and what an enrolment does to the rows of agents; called inside the store's transaction."""

from __future__ import annotations

from collections.abc import Mapping

from jarvis.capture.v1 import event_pb2
from jarvis_trust.errors import EnrollmentError
from jarvis_trust.joinfile import token_sha256
from sqlalchemy.orm import Session

from jarvis_controller import audit_log, certificate_rows, own_events
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.models import AgentRow, JoinTokenRow, SoftwareTokenRow
from jarvis_controller.records import EnrolledAgent
from jarvis_controller.states import Event, State, transition


def create_token(
    session: Session,
    token: str,
    labels: Mapping[str, str],
    lifetime_ns: int,
    *,
    now_ns: int,
    principal: str,
    without_tpm: bool,
) -> int:
    """Keeps a join token's hash, audited; returns the wall-clock time of its end, ns.

    without_tpm: it admits an agent without a TPM too.
    """
    row = JoinTokenRow(
        token_sha256=token_sha256(token), labels=dict(labels), create_time_ns=now_ns, expire_time_ns=now_ns + lifetime_ns
    )
    session.add(row)
    detail = {"expire_time_ns": row.expire_time_ns, "labels": row.labels, "token_sha256": row.token_sha256.hex()}
    if without_tpm:
        session.flush()
        session.add(SoftwareTokenRow(token_sha256=row.token_sha256))
        detail["without_tpm"] = True
    audit_log.append(session, AuditEntry(principal=principal, action="enroll.token", detail=detail), now_ns)
    return row.expire_time_ns


def usable_token(session: Session, token: str, now_ns: int, *, without_tpm: bool) -> JoinTokenRow:
    """A token that can enrol somebody now: an agent without a TPM only when it was made for that.

    Raises:
        EnrollmentError: TOKEN_UNKNOWN, TOKEN_REUSED, TOKEN_EXPIRED, TPM_REQUIRED.
    """
    row = session.get(JoinTokenRow, token_sha256(token))
    if row is None:
        raise EnrollmentError("TOKEN_UNKNOWN", "token: this controller made no such join token")
    if row.used_by is not None:
        raise EnrollmentError("TOKEN_REUSED", "token: it was used before; a join token enrols one agent")
    if now_ns >= row.expire_time_ns:
        raise EnrollmentError("TOKEN_EXPIRED", f"token: it ended {(now_ns - row.expire_time_ns) // 10**9} s ago")
    if without_tpm and session.get(SoftwareTokenRow, row.token_sha256) is None:
        message = "token: it was made for an agent with a TPM; `jarvisctl enroll token --without-tpm` makes one for others"
        raise EnrollmentError("TPM_REQUIRED", message)
    return row


def enroll_row(session: Session, agent: EnrolledAgent, token: str | None, now_ns: int) -> tuple[AgentRow, list[event_pb2.Event]]:
    """Stores an agent whose TPM was proved, audits it and consumes the token; its row, and what is to be told of it.

    Raises:
        EnrollmentError: the token's, TOKEN_REQUIRED, or AK_CHANGED.
    """
    used = None if token is None else usable_token(session, token, now_ns, without_tpm=not agent.ek_public)
    denial = certificate_rows.open_denial(session, agent.agent_id)
    if denial is not None:  # what was issued before stays refused
        _required(used, agent, "revoked")
        denial.is_open = False
    row = session.get(AgentRow, agent.agent_id)
    told: list[event_pb2.Event] = []
    if row is None:
        row = new_row(agent, _required(used, agent, "not enrolled").labels, now_ns)
        session.add(row)
        session.flush()
        told.append(own_events.enrolled(agent.agent_id, agent.hostname, agent.address, has_tpm=bool(agent.ek_public)))
    elif row.state == State.RETIRED:
        readmit_row(row, agent, _required(used, agent, "retired").labels, now_ns)
        readmitted = {"event": str(Event.ENROLLED), "from": str(State.RETIRED), "reason": row.reason, "to": row.state}
        change = AuditEntry(principal=CONTROLLER, action="agent.state", agent_id=agent.agent_id, detail=readmitted)
        audit_log.append(session, change, now_ns)
        told.append(own_events.enrolled(agent.agent_id, agent.hostname, agent.address, has_tpm=bool(agent.ek_public)))
        after = State(row.state)
        told += own_events.state_events(agent.agent_id, State.RETIRED, after, Event.ENROLLED, reason=row.reason)
    elif row.ak_name != agent.ak_name:
        message = f"ak_public is not the attestation key that agent {agent.agent_id} enrolled with"
        raise EnrollmentError("AK_CHANGED", message)
    else:
        if row.state == State.QUARANTINED:  # it may have become so while it proved its TPM
            _required(used, agent, "QUARANTINED")
        renew_row(row, agent)
        if denial is not None:
            row.previous_tls_spki = b""
    if used is not None:
        used.used_by = agent.agent_id
    detail = {
        "address": agent.address,
        "carrier": str(agent.carrier),
        "certificate_expire_ns": agent.certificate_expire_ns,
        "hostname": agent.hostname,
        "state": row.state,
        "tls_spki_sha256": agent.tls_spki.hex(),
        "token_sha256": "" if used is None else used.token_sha256.hex(),
    }
    entry = AuditEntry(principal=CONTROLLER, action="enroll.certificate", agent_id=agent.agent_id, detail=detail)
    audit_log.append(session, entry, now_ns)
    return row, told


def _required(token: JoinTokenRow | None, agent: EnrolledAgent, what: str) -> JoinTokenRow:
    if token is None:
        raise EnrollmentError("TOKEN_REQUIRED", f"token: agent {agent.agent_id} is {what} and needs a join token")
    return token


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
        carrier=agent.carrier,
    )


def renew_row(row: AgentRow, agent: EnrolledAgent) -> None:
    """A known agent got a certificate: its state, labels and history stay."""
    row.state = transition(State(row.state), Event.ENROLLED)
    row.address, row.hostname, row.version = agent.address, agent.hostname, agent.version
    row.carrier = agent.carrier
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
    row.firmware_version = row.assurance = ""
    row.channel_bound = False
