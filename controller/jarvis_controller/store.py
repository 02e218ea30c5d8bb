# SPDX-License-Identifier: Apache-2.0
"""The controller's memory: one database, one thread, one transaction per operation.

The event loop never waits for the disk: every operation is a function over a session, run on the store's own thread, and
what comes back is frozen. A single thread also makes every operation serial, which the audit chain and the single use of
tokens rely on. A change of state and its audit entry are always one transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jarvis.capture.v1 import audit_pb2, event_pb2, fleet_pb2
from jarvis_trust.audit import AuditHead
from sqlalchemy import create_engine, event, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from jarvis_controller import (
    agent_rows,
    audit_checkpoints,
    audit_log,
    boot_rows,
    certificate_rows,
    event_log,
    evidence_rows,
    firmware_rows,
    own_events,
    request_rows,
)
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.agent_rows import Rules
from jarvis_controller.attestation_case import Judged
from jarvis_controller.audit_checkpoints import Checkpointer, signed_checkpoints
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.commanded_captures import CommandedCapture, last_commanded
from jarvis_controller.enrolled_rows import create_token, enroll_row, usable_token
from jarvis_controller.evidence_rows import EvidenceLimits
from jarvis_controller.ima_state import ImaState
from jarvis_controller.models import (
    AgentRow,
    AuditExportRow,
    Base,
    ImaRow,
)
from jarvis_controller.policy import FleetPolicy
from jarvis_controller.records import BootEvidence, EnrolledAgent, PassedAttestation
from jarvis_controller.states import Event

T = TypeVar("T")


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

    def _rules(self) -> Rules:
        return Rules(now_ns=self._now_ns(), kept_events=self._kept_events, evidence=self._evidence)

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
            row = agent_rows.row_of(session, agent_id)
            change = agent_rows.Change(happened=happened, reason=reason, principal=principal, detail=detail or {}, judged=judged)
            agent_rows.apply(session, row, change, self._rules())
            return row.record()

        return await self.run(change)

    async def record_passed(
        self, agent_id: str, passed: PassedAttestation, judged: Judged | None = None
    ) -> tuple[AgentRecord, AuditHead]:
        """Stores what a passed attestation proved and takes the next lease sequence; the record says whether it is VERIFIED.

        Nothing of it is stored when the agent was quarantined, retired or given another AK while the evidence was under way.
        """

        def record(session: Session) -> tuple[AgentRecord, AuditHead]:
            return agent_rows.record_passed(session, agent_id, passed, judged, self._rules()), audit_log.head(session)

        return await self.run(record)

    async def record_boot(self, agent_id: str, boot: BootEvidence) -> None:
        """Keeps what an agent's firmware measured, in place of what was kept before.

        Raises:
            KeyError: no such agent.
        """
        await self.run(lambda session: boot_rows.remember(session, agent_rows.row_of(session, agent_id), boot, self._now_ns()))

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
            row = agent_rows.row_of(session, agent_id)
            row.lease_sequence += 1
            return row.lease_sequence, audit_log.head(session)

        return await self.run(take)

    # -- enrolment --

    async def create_token(
        self, token: str, labels: Mapping[str, str], lifetime_ns: int, *, principal: str, without_tpm: bool = False
    ) -> int:
        """Keeps a join token's hash; returns the wall-clock time of its end, ns.

        without_tpm: it admits an agent without a TPM too.
        """
        return await self.run(
            lambda session: create_token(
                session, token, labels, lifetime_ns, now_ns=self._now_ns(), principal=principal, without_tpm=without_tpm
            )
        )

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
        return await self.run(lambda session: firmware_rows.known(session, floor))

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
        await self.run(lambda session: firmware_rows.know(session, objects, version, security_version))

    # -- mutations --

    async def begin_request(self, request_id: str, *, principal: str, method: str, payload: bytes) -> Mapping[str, bytes]:
        """Registers a mutation; for a repeated one, gives the outcomes that are known: agent id -> bytes of the outcome.

        Raises:
            RequestConflictError: the id was used for something else in the last 24 h.
        """
        return await self.run(
            lambda session: request_rows.begin(
                session, request_id, principal=principal, method=method, payload=payload, now_ns=self._now_ns()
            )
        )

    async def record_outcome(self, entry: AuditEntry, outcome: fleet_pb2.CaptureOutcome | fleet_pb2.ExportOutcome) -> None:
        """Audits what an agent answered to a mutation; keeps a success for a repeated request."""
        await self.run(lambda session: request_rows.record_outcome(session, entry, outcome, self._now_ns()))

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
        return await self.run(lambda session: evidence_rows.case(session, case_sha256))

    async def last_case(self, agent_id: str) -> fleet_pb2.GetAttestationCaseResponse | None:
        """The agent's last case that says that it passed or failed; None when there is none, or it is not kept any more."""
        return await self.run(lambda session: evidence_rows.case(session, evidence_rows.find_last(session, agent_id)))

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
