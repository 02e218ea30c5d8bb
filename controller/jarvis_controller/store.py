# SPDX-License-Identifier: Apache-2.0
"""The controller's memory: one database, one thread, one transaction per operation.

The event loop never waits for the disk: every operation is a function over a session, run on the store's own thread, and
what comes back is frozen. A single thread also makes every operation serial, which the audit chain and the single use of
tokens rely on. A change of state and its audit entry are always one transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jarvis.capture.v1 import audit_pb2, event_pb2, fleet_pb2
from jarvis_trust.audit import AuditHead
from jarvis_trust.joinfile import token_sha256
from sqlalchemy import create_engine, delete, event, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from jarvis_controller import audit_checkpoints, audit_log, boot_rows, certificate_rows, event_log, evidence_rows, own_events
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation_case import Judged
from jarvis_controller.audit_checkpoints import Checkpointer, signed_checkpoints
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.commanded_captures import CommandedCapture, last_commanded
from jarvis_controller.enrolled_rows import enroll_row, usable_token
from jarvis_controller.evidence_rows import EvidenceLimits
from jarvis_controller.ima_state import ImaState
from jarvis_controller.models import (
    AgentRow,
    AuditExportRow,
    Base,
    FirmwareRow,
    ImaRow,
    JoinTokenRow,
    OutcomeRow,
    RequestRow,
    SoftwareTokenRow,
)
from jarvis_controller.policy import FleetPolicy
from jarvis_controller.records import BootEvidence, EnrolledAgent, PassedAttestation, RequestConflictError
from jarvis_controller.states import Event, State, transition
from jarvis_controller.verifier import Verdict

T = TypeVar("T")

_REQUEST_LIFETIME_NS = 24 * 3600 * 10**9


class Store:
    """All that survives a restart. Methods are coroutines for the one event loop; each is atomic."""

    def __init__(
        self,
        url: str,
        *,
        checkpointer: Checkpointer | None = None,
        evidence: EvidenceLimits | None = None,
        kept_events: int = 100_000,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._engine = _engine(url)
        self._checkpointer = checkpointer
        self._evidence = evidence or EvidenceLimits()
        self._kept_events = kept_events
        self.events_changed = asyncio.Event()
        """Set, and replaced by a new one, when an event was kept."""
        self._now_ns = wall_clock_ns
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def open(self) -> None:
        """Creates the tables where they are missing."""
        await asyncio.get_running_loop().run_in_executor(self._thread, Base.metadata.create_all, self._engine)

    def now_ns(self) -> int:
        """The wall clock that rows are dated with."""
        return self._now_ns()

    @property
    def kept_events(self) -> int:
        """How many events are kept."""
        return self._kept_events

    async def close(self) -> None:
        """Ends the thread after what is queued."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown()

    async def run(self, operation: Callable[[Session], T]) -> T:
        """Runs `operation` in one transaction: committed when it returns, rolled back when it raises."""

        def in_transaction() -> tuple[T, bool]:
            with Session(self._engine) as session:
                with signed_checkpoints(self._checkpointer, session, self._now_ns):
                    result = operation(session)
                return result, event_log.CHANGED in session.info

        result, events_changed = await asyncio.get_running_loop().run_in_executor(self._thread, in_transaction)
        if events_changed:
            self.events_changed.set()
            self.events_changed = asyncio.Event()
        return result

    # -- agents --

    async def agents(self) -> Sequence[AgentRecord]:
        """Every agent, ordered by id."""
        return await self.run(
            lambda session: [row.record() for row in session.scalars(select(AgentRow).order_by(AgentRow.agent_id))]
        )

    async def agent(self, agent_id: str) -> AgentRecord | None:
        """One agent, or None."""

        def find(session: Session) -> AgentRecord | None:
            row = session.get(AgentRow, agent_id)
            return None if row is None else row.record()

        return await self.run(find)

    async def change_state(
        self,
        agent_id: str,
        happened: Event,
        reason: str,
        *,
        principal: str = CONTROLLER,
        detail: Mapping[str, object] | None = None,
        judged: Judged | None = None,
    ) -> AgentRecord:
        """Applies an event to an agent; a change of state, and everything an operator does, is audited with it.

        What was judged is kept with an entry that follows from it.

        Raises:
            IllegalTransitionError: the event cannot happen in its state.
            KeyError: no such agent.
        """

        def change(session: Session) -> AgentRecord:
            row = _row(session, agent_id)
            self._apply(session, row, happened, reason, principal=principal, detail=detail or {}, judged=judged)
            return row.record()

        return await self.run(change)

    async def record_passed(
        self, agent_id: str, passed: PassedAttestation, judged: Judged | None = None
    ) -> tuple[AgentRecord, AuditHead]:
        """Stores what a passed attestation proved and takes the next lease sequence; the record says whether it is VERIFIED.

        Nothing of it is stored when the agent was quarantined, retired or given another AK while the evidence was under way.
        """

        def record(session: Session) -> tuple[AgentRecord, AuditHead]:
            row = _row(session, agent_id)
            if row.ak_name != passed.ak_name or State(row.state) in {State.QUARANTINED, State.RETIRED}:
                return row.record(), audit_log.head(session)
            was_reported = row.reason if State(row.state) is State.VERIFIED else ""
            changed = (row.session_id, row.firmware_sha256, row.assurance, was_reported) != (
                passed.session_id,
                passed.firmware_sha256,
                passed.assurance,
                passed.reported,
            )
            _remember(session, row, passed, self._now_ns())
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
            self._apply(
                session, row, Event.ATTESTATION_PASSED, passed.reported, detail=detail, judged=judged, always_audited=changed
            )
            if passed.reported and passed.reported != was_reported:
                told = [own_events.reported(agent_id, passed.reported)]
                event_log.append_own(session, told, now_ns=self._now_ns(), keep=self._kept_events)
            return row.record(), audit_log.head(session)

        return await self.run(record)

    async def record_boot(self, agent_id: str, boot: BootEvidence) -> None:
        """Keeps what an agent's firmware measured, in place of what was kept before.

        Raises:
            KeyError: no such agent.
        """
        await self.run(lambda session: boot_rows.remember(session, _row(session, agent_id), boot, self._now_ns()))

    async def boot_report(self, agent_id: str) -> fleet_pb2.GetBootReportResponse | None:
        """What was kept of an agent's boot, log included; None when there is nothing."""
        return await self.run(lambda session: boot_rows.report(session, agent_id))

    async def boot_log(self, agent_id: str) -> bytes:
        """The log that the agent showed last; empty when there is none."""
        report = await self.boot_report(agent_id)
        return b"" if report is None else report.boot_log

    async def ima_state(self, agent_id: str) -> ImaState | None:
        """What is kept of the agent's IMA list; None when there is nothing."""

        def find(session: Session) -> ImaState | None:
            row = session.get(ImaRow, agent_id)
            return None if row is None else ImaState.from_message(audit_pb2.CaseIma.FromString(row.state))

        return await self.run(find)

    async def next_lease_sequence(self, agent_id: str) -> tuple[int, AuditHead]:
        """Takes the next lease sequence of an agent, for what ends its lease.

        Raises:
            KeyError: no such agent.
        """

        def take(session: Session) -> tuple[int, AuditHead]:
            row = _row(session, agent_id)
            row.lease_sequence += 1
            return row.lease_sequence, audit_log.head(session)

        return await self.run(take)

    def _apply(
        self,
        session: Session,
        row: AgentRow,
        happened: Event,
        reason: str,
        *,
        principal: str = CONTROLLER,
        detail: Mapping[str, object],
        judged: Judged | None = None,
        always_audited: bool = False,
    ) -> None:
        before = State(row.state)
        after = transition(before, happened)
        told = own_events.state_events(
            row.agent_id, before, after, happened, reason=reason, principal=principal, assurance=row.assurance
        )
        event_log.append_own(session, told, now_ns=self._now_ns(), keep=self._kept_events)
        if after is before and principal == CONTROLLER and not always_audited:
            if before is State.STALE:
                row.reason = reason
            return
        row.state = after
        # A second failure must not hide why an agent was quarantined in the first place.
        if after is not before or after is not State.QUARANTINED:
            row.reason = reason
        if after is not before:
            row.state_time_ns = self._now_ns()
        if happened is Event.RELEASE_ORDERED:
            # The operator accepts the TPM as it is now (new firmware, another clock); the next nonce proves freshness anyway.
            row.tpm_clock = row.tpm_firmware_version = row.reset_count = row.restart_count = None
        if after is not State.VERIFIED:
            row.lease_expire_ns = None
        described = {"event": str(happened), "from": str(before), "reason": reason, "to": str(after), **detail}
        if judged is not None:
            case = evidence_rows.keep(session, judged.to_case(self._now_ns()), self._now_ns(), self._evidence)
            described |= {"case_sha256": case.hex(), "verdict": str(judged.report.verdict)}
            if judged.report.verdict in {Verdict.PASSED, Verdict.FAILED}:
                evidence_rows.remember_last(session, row.agent_id, case)
        entry = AuditEntry(principal=principal, action="agent.state", agent_id=row.agent_id, detail=described)
        audit_log.append(session, entry, self._now_ns())

    # -- enrolment --

    async def create_token(
        self, token: str, labels: Mapping[str, str], lifetime_ns: int, *, principal: str, without_tpm: bool = False
    ) -> int:
        """Keeps a join token's hash; returns the wall-clock time of its end, ns.

        without_tpm: it admits an agent without a TPM too.
        """

        def create(session: Session) -> int:
            now = self._now_ns()
            row = JoinTokenRow(
                token_sha256=token_sha256(token), labels=dict(labels), create_time_ns=now, expire_time_ns=now + lifetime_ns
            )
            session.add(row)
            detail = {"expire_time_ns": row.expire_time_ns, "labels": row.labels, "token_sha256": row.token_sha256.hex()}
            if without_tpm:
                session.flush()
                session.add(SoftwareTokenRow(token_sha256=row.token_sha256))
                detail["without_tpm"] = True
            audit_log.append(session, AuditEntry(principal=principal, action="enroll.token", detail=detail), now)
            return row.expire_time_ns

        return await self.run(create)

    async def check_token(self, token: str, *, without_tpm: bool = False) -> Mapping[str, str]:
        """The labels that a token gives; refuses a token that could not enrol anybody now.

        Raises:
            EnrollmentError: TOKEN_UNKNOWN, TOKEN_EXPIRED, TOKEN_REUSED, TPM_REQUIRED.
        """
        return await self.run(lambda session: dict(usable_token(session, token, self._now_ns(), without_tpm=without_tpm).labels))

    async def enroll(self, agent: EnrolledAgent, token: str | None) -> AgentRecord:
        """Stores an agent whose TPM was proved, and consumes the token. A known one keeps its state, unless it was retired.

        Raises:
            EnrollmentError: the token's, or AK_CHANGED.
        """

        def store(session: Session) -> AgentRecord:
            now = self._now_ns()
            row, told = enroll_row(session, agent, token, now)
            event_log.append_own(session, told, now_ns=now, keep=self._kept_events)
            return row.record()

        return await self.run(store)

    async def must_be_admitted(self, subject: str) -> bool:
        """Whether this agent's certificate was revoked, and no join token admitted it again."""
        return await self.run(lambda session: certificate_rows.must_be_admitted(session, subject))

    async def is_revoked_key(self, subject: str, spki_sha256: bytes) -> bool:
        """Whether a certificate of this id for this key was revoked."""
        return await self.run(lambda session: spki_sha256 in certificate_rows.denied_keys(session, subject))

    # -- firmware --

    async def known_firmware(self, floor: int) -> frozenset[tuple[str, str]]:
        """(object, SHA-256 hex) of every object of a signed manifest seen so far that is not below the floor."""

        def find(session: Session) -> frozenset[tuple[str, str]]:
            rows = session.scalars(select(FirmwareRow).where(FirmwareRow.security_version >= floor))
            return frozenset((row.object, row.sha256.hex()) for row in rows)

        return await self.run(find)

    # -- policy --

    async def record_policy(self, policy: FleetPolicy, *, principal: str, is_told: bool) -> None:
        """Audits that a policy comes into force; `is_told`: as an event too."""
        detail = {"name": policy.name, "sha256": policy.document.sha256.hex(), "version": policy.version}
        entry = AuditEntry(principal=principal, action="policy.apply", detail=detail)
        told = [own_events.policy_applied(policy.name, policy.version, principal)] if is_told else []

        def record(session: Session) -> None:
            audit_log.append(session, entry, self._now_ns())
            event_log.append_own(session, told, now_ns=self._now_ns(), keep=self._kept_events)

        await self.run(record)

    async def know_release(self, objects: Mapping[str, str], *, version: str, security_version: int) -> None:
        """A verified release is about to be delivered: a host that leaves it again has it in its event log all the same."""
        await self.run(lambda session: _know_objects(session, objects, version, security_version))

    # -- mutations --

    async def begin_request(self, request_id: str, *, principal: str, method: str, payload: bytes) -> Mapping[str, bytes]:
        """Registers a mutation; for a repeated one, gives the outcomes that are known: agent id -> CaptureOutcome bytes.

        Raises:
            RequestConflictError: the id was used for something else in the last 24 h.
        """
        digest = hashlib.sha256(payload).digest()

        def begin(session: Session) -> Mapping[str, bytes]:
            now = self._now_ns()
            _forget_old_requests(session, now - _REQUEST_LIFETIME_NS)
            row = session.get(RequestRow, request_id)
            if row is None:
                session.add(
                    RequestRow(request_id=request_id, principal=principal, method=method, payload_sha256=digest, time_ns=now)
                )
                return {}
            if (row.principal, row.method, row.payload_sha256) != (principal, method, digest):
                raise RequestConflictError(request_id)
            outcomes = session.scalars(select(OutcomeRow).where(OutcomeRow.request_id == request_id))
            return {outcome.agent_id: outcome.outcome for outcome in outcomes}

        return await self.run(begin)

    async def record_outcome(self, entry: AuditEntry, outcome: fleet_pb2.CaptureOutcome) -> None:
        """Audits what an agent answered to a mutation; keeps a success for a repeated request."""

        def record(session: Session) -> None:
            if outcome.status.code == 0:
                session.merge(
                    OutcomeRow(request_id=entry.request_id, agent_id=entry.agent_id, outcome=outcome.SerializeToString())
                )
            audit_log.append(session, entry, self._now_ns())

        await self.run(record)

    # -- events --

    async def keep_events(self, agent_id: str, events: Sequence[event_pb2.Event]) -> int:
        """Keeps what an agent told; returns how many were new."""

        def keep(session: Session) -> int:
            return event_log.append_collected(session, agent_id, events, now_ns=self._now_ns(), keep=self._kept_events)

        return await self.run(keep)

    # -- audit --

    async def audit(self, entry: AuditEntry) -> AuditHead:
        """Appends one entry."""
        return await self.run(lambda session: audit_log.append(session, entry, self._now_ns()))

    async def audit_page(self, after_sequence: int, limit: int) -> Sequence[fleet_pb2.AuditEvent]:
        """Entries after a sequence, oldest first."""
        return await self.run(lambda session: audit_log.page(session, after_sequence, limit))

    async def attestation_case(self, case_sha256: bytes) -> fleet_pb2.GetAttestationCaseResponse | None:
        """A case with the boot log that it names; None when it is not kept, or not any more."""
        return await self.run(lambda session: _case(session, case_sha256))

    async def last_case(self, agent_id: str) -> fleet_pb2.GetAttestationCaseResponse | None:
        """The agent's last case that says that it passed or failed; None when there is none, or it is not kept any more."""
        return await self.run(lambda session: _case(session, evidence_rows.find_last(session, agent_id)))

    async def exported_up_to(self, target: str) -> int:
        """Sequence of the last entry that a collector has taken; 0 when it has taken none."""

        def find(session: Session) -> int:
            row = session.get(AuditExportRow, target)
            return 0 if row is None else row.sequence

        return await self.run(find)

    async def exported(self, target: str, sequence: int) -> None:
        """A collector has taken everything up to this entry."""
        await self.run(lambda session: session.merge(AuditExportRow(target=target, sequence=sequence)))

    async def commanded_capture(self, agent_id: str) -> CommandedCapture | None:
        """The capture that the agent was last told to run; None when there is none, or it was stopped."""
        return await self.run(lambda session: last_commanded(session, agent_id))

    async def verify_audit(self) -> None:
        """Recomputes the chain and checks its checkpoints; from then on it is signed, or not any more.

        Raises:
            AuditError: it was edited.
        """
        await self.run(audit_log.verify if self._checkpointer is None else self._checkpointer.open)

    async def checkpoint(self) -> None:
        """Signs what no checkpoint covers yet."""
        checkpointer = self._checkpointer
        if checkpointer is not None:
            await self.run(lambda session: checkpointer.advance(session, audit_log.head(session), self._now_ns(), at_once=True))

    async def audit_checkpoints(self, after_number: int, limit: int) -> fleet_pb2.ListAuditCheckpointsResponse:
        """Checkpoints after a number, oldest first, with their signers."""
        return await self.run(lambda session: audit_checkpoints.page(session, after_number, limit))


def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None  # or sqlite3 itself begins and commits behind SQLAlchemy's back
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # an audit entry that was acknowledged survives a power cut
            connection.execute("PRAGMA foreign_keys=ON")

        @event.listens_for(engine, "begin")
        def begin(connection: object) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]

    return engine


def _row(session: Session, agent_id: str) -> AgentRow:
    row = session.get(AgentRow, agent_id)
    if row is None:
        raise KeyError(agent_id)
    return row


def _case(session: Session, case_sha256: bytes) -> fleet_pb2.GetAttestationCaseResponse | None:
    data = evidence_rows.find(session, case_sha256)
    if data is None:
        return None
    named = audit_pb2.AttestationCase.FromString(data).boot_log_sha256
    boot_log = evidence_rows.find(session, named) if named else None
    return fleet_pb2.GetAttestationCaseResponse(attestation_case=data, boot_log=boot_log or b"")


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
    _know_objects(session, passed.objects, passed.firmware_version, passed.security_version)


def _know_objects(session: Session, objects: Mapping[str, str], version: str, security_version: int) -> None:
    for name, digest in objects.items():
        sha256 = bytes.fromhex(digest)
        session.merge(FirmwareRow(object=name, sha256=sha256, version=version, security_version=security_version))


def _forget_old_requests(session: Session, before_ns: int) -> None:
    old = select(RequestRow.request_id).where(RequestRow.time_ns < before_ns)
    session.execute(delete(OutcomeRow).where(OutcomeRow.request_id.in_(old)))
    session.execute(delete(RequestRow).where(RequestRow.time_ns < before_ns))
