# SPDX-License-Identifier: Apache-2.0
"""The rows of agents: a change of state with all that goes with it, and what a passed attestation proved.

Functions over a session, run on the store's thread; the row, its audit entry, its events and its case are one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from jarvis_controller import audit_log, event_log, evidence_rows, firmware_rows, own_events
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation_case import Judged
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.evidence_rows import EvidenceLimits
from jarvis_controller.models import AgentRow, ImaRow
from jarvis_controller.records import PassedAttestation
from jarvis_controller.states import Event, State, transition
from jarvis_controller.verifier import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When it is, and how much is kept."""

    now_ns: int
    kept_events: int
    evidence: EvidenceLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happened to an agent, for its state, the audit log and the events."""

    happened: Event
    reason: str
    principal: str = CONTROLLER
    detail: Mapping[str, object] = field(default_factory=dict)
    judged: Judged | None = None
    always_audited: bool = False
    """Even when the controller itself changed no state by it."""


def row_of(session: Session, agent_id: str) -> AgentRow:
    """An agent's row.

    Raises:
        KeyError: no such agent.
    """
    row = session.get(AgentRow, agent_id)
    if row is None:
        raise KeyError(agent_id)
    return row


def apply(session: Session, row: AgentRow, change: Change, rules: Rules) -> None:
    """Changes the state, tells it, and audits it with the case that it follows from.

    Raises:
        IllegalTransitionError: the event cannot happen in this state.
    """
    happened, reason = change.happened, change.reason
    before = State(row.state)
    after = transition(before, happened)
    told = own_events.state_events(
        row.agent_id, before, after, happened, reason=reason, principal=change.principal, assurance=row.assurance
    )
    event_log.append_own(session, told, now_ns=rules.now_ns, keep=rules.kept_events)
    if after is before and change.principal == CONTROLLER and not change.always_audited:
        if before is State.STALE:
            row.reason = reason
        return
    _set_state(row, before, after, change, rules.now_ns)
    described = {"event": str(happened), "from": str(before), "reason": reason, "to": str(after), **change.detail}
    if change.judged is not None:
        described |= _kept_case(session, row, change.judged, rules)
    entry = AuditEntry(principal=change.principal, action="agent.state", agent_id=row.agent_id, detail=described)
    audit_log.append(session, entry, rules.now_ns)


def _set_state(row: AgentRow, before: State, after: State, change: Change, now_ns: int) -> None:
    row.state = after
    # A second failure must not hide why an agent was quarantined in the first place.
    if after is not before or after is not State.QUARANTINED:
        row.reason = change.reason
    if after is not before:
        row.state_time_ns = now_ns
    if change.happened is Event.RELEASE_ORDERED:
        # The operator accepts the TPM as it is now (new firmware, another clock); the next nonce proves freshness anyway.
        row.tpm_clock = row.tpm_firmware_version = row.reset_count = row.restart_count = None
    if after is not State.VERIFIED:
        row.lease_expire_ns = None


def _kept_case(session: Session, row: AgentRow, judged: Judged, rules: Rules) -> dict[str, object]:
    case = evidence_rows.keep(session, judged.to_case(rules.now_ns), rules.now_ns, rules.evidence)
    if judged.report.verdict in {Verdict.PASSED, Verdict.FAILED}:
        evidence_rows.remember_last(session, row.agent_id, case)
    return {"case_sha256": case.hex(), "verdict": str(judged.report.verdict)}


def record_passed(session: Session, agent_id: str, passed: PassedAttestation, judged: Judged | None, rules: Rules) -> AgentRecord:
    """Stores what was proved and takes the next lease sequence, unless the agent was quarantined, retired or given another AK.

    Raises:
        KeyError: no such agent.
    """
    row = row_of(session, agent_id)
    if row.ak_name != passed.ak_name or State(row.state) in {State.QUARANTINED, State.RETIRED}:
        return row.record()
    was_reported = row.reason if State(row.state) is State.VERIFIED else ""
    changed = (row.session_id, row.firmware_sha256, row.assurance, was_reported) != (
        passed.session_id,
        passed.firmware_sha256,
        passed.assurance,
        passed.reported,
    )
    _remember(session, row, passed, rules.now_ns)
    change = Change(
        happened=Event.ATTESTATION_PASSED,
        reason=passed.reported,
        detail=_detail(row, passed),
        judged=judged,
        always_audited=changed,
    )
    apply(session, row, change, rules)
    if passed.reported and passed.reported != was_reported:
        told = [own_events.reported(agent_id, passed.reported)]
        event_log.append_own(session, told, now_ns=rules.now_ns, keep=rules.kept_events)
    return row.record()


def _detail(row: AgentRow, passed: PassedAttestation) -> dict[str, object]:
    detail: dict[str, object] = {
        "assurance": passed.assurance,
        "boot_id": passed.boot_id.hex(),
        "channel_bound": passed.channel_bound,
        "firmware_sha256": passed.firmware_sha256.hex(),
        "firmware_version": passed.firmware_version,
        "lease_sequence": row.lease_sequence,
        "session_id": passed.session_id.hex(),
    }
    if passed.tpm is not None:
        detail["tpm_reset_count"] = passed.tpm.reset_count
    if passed.ima is not None:
        detail |= {"ima_entries": passed.ima.entries, "ima_unquoted": passed.ima_unquoted}
    return detail


def _remember(session: Session, row: AgentRow, passed: PassedAttestation, now_ns: int) -> None:
    if passed.tpm is not None:
        row.tpm_clock = str(passed.tpm.clock)
        row.tpm_firmware_version = str(passed.tpm.firmware_version)
        row.reset_count = passed.tpm.reset_count
        row.restart_count = passed.tpm.restart_count
    row.boot_id = passed.boot_id
    row.session_id = passed.session_id
    row.firmware_sha256 = passed.firmware_sha256
    row.firmware_version = passed.firmware_version
    row.verify_time_ns = now_ns
    row.lease_sequence += 1
    row.lease_expire_ns = now_ns + passed.lease_ns
    row.assurance = passed.assurance
    row.channel_bound = passed.channel_bound
    if passed.ima is not None:
        session.merge(ImaRow(agent_id=row.agent_id, state=passed.ima.to_message().SerializeToString()))
    firmware_rows.know(session, passed.objects, passed.firmware_version, passed.security_version)
