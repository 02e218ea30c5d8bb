# SPDX-License-Identifier: Apache-2.0
"""Attests one agent: challenge -> evidence -> verdict -> state, audit and lease.

    passed              VERIFIED, and a lease is handed over
    no answer, too late STALE: nothing is known, nothing is held against it (a new agent is asked again for a few seconds)
    another challenge   one fresh one; if that does not match either: QUARANTINED
    any other failure   QUARANTINED at once: leases and streams end; one that the policy only has reported is told, and no more

One attestation of an agent at a time, a bounded number of all; the store's transaction decides, not what was read before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.commands import CommandSigner
from jarvis_trust.status import error_status, reason_of

from jarvis_controller.agent_client import AgentClient
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation_case import Judged
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.challenges import Challenge, ChallengeStore
from jarvis_controller.ima_state import ImaState
from jarvis_controller.leases import ActiveLease, LeaseBook, make_end, make_lease
from jarvis_controller.policy import AgentPolicy
from jarvis_controller.policy_keeper import PolicyKeeper
from jarvis_controller.readings import ReadingCache
from jarvis_controller.records import PassedAttestation
from jarvis_controller.rpc_status import OK, RpcError
from jarvis_controller.state_feed import StateFeed
from jarvis_controller.states import Event, IllegalTransitionError, State
from jarvis_controller.store import Store
from jarvis_controller.store_approvals import StoreApprovals
from jarvis_controller.verifier import Check, Verdict, verify

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attestation ended."""

    agent: AgentRecord
    """As it is afterwards."""
    status: status_pb2.Status
    """OK, or why there is no lease: AGENT_QUARANTINED, AGENT_RETIRED, ATTESTATION_STALE."""
    checks: tuple[Check, ...] = ()

    def to_message(self, *, connected: bool) -> fleet_pb2.AttestAgentsResponse:
        """As operators see it; connected: see AgentRecord.message."""
        checks = [check.to_message() for check in self.checks]
        return fleet_pb2.AttestAgentsResponse(agent=self.agent.message(connected=connected), status=self.status, checks=checks)


_READINGS_BYTES = 16 * 1024 * 1024
"""Of boot logs and manifests whose readings are kept: some hundreds of logs, and hosts of one make share theirs."""
_FIRST_CONTACT_S = 5.0
"""How long an agent that has just enrolled may take until it listens; then it is STALE."""
_FIRST_RETRY_S = 0.25
_LARGE_IMA_LOG = 256 * 1024
# The agent's lease is of another nonce, or of a later one that came meanwhile.
_NOT_HELD = frozenset({"LEASE_STALE", "LEASE_EXPIRED"})


class AttestationSlots:
    """How many attestations go on at once. A quarter more is kept for agents that hold a lease: newcomers cannot take it.

    However many agents come (back) at the same moment, one that was proved is asked again before its lease is over.
    """

    def __init__(self, concurrency: int) -> None:
        """Args: concurrency: of all; besides, a quarter of it, at least one, is kept."""
        self._shared = asyncio.Semaphore(concurrency)
        self._kept = asyncio.Semaphore(max(1, concurrency // 4))

    @asynccontextmanager
    async def take(self, *, is_renewal: bool) -> AsyncGenerator[None, None]:
        """Holds a slot while the block runs."""
        async with self._kept if is_renewal and self._shared.locked() else self._shared:
            yield


class UnknownAgentError(Exception):
    """No such agent is enrolled."""


class Attester:
    """Puts agents to the proof, for one event loop."""

    def __init__(
        self,
        *,
        store: Store,
        client: AgentClient,
        signer: CommandSigner,
        leases: LeaseBook,
        feed: StateFeed,
        policies: PolicyKeeper,
        approvals: StoreApprovals,
        concurrency: int,
        ca_sha256: Callable[[], bytes] = bytes,
    ) -> None:
        """For one event loop.

        Args:
            store: agents, audit and evidence.
            client: speaks to agents.
            signer: signs leases.
            leases: those in force.
            feed: told of every change.
            policies: says what is demanded.
            approvals: opens store keys.
            concurrency: attestations under way at once.
            ca_sha256: of the CAs that leases say are trusted now.
        """
        self._store = store
        self._client = client
        self._signer = signer
        self._leases = leases
        self._feed = feed
        self._policies = policies
        self._ca_sha256 = ca_sha256
        self._approvals = approvals
        self._challenges = ChallengeStore()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._revocations: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._slots = AttestationSlots(concurrency)
        self._readings = ReadingCache(_READINGS_BYTES)

    async def attest(self, agent_id: str, *, unless_session: bytes = b"") -> Outcome:
        """Attests an agent now.

        Args:
            agent_id: a full id.
            unless_session: of an agent process: where it holds a lease already, nothing is done.

        Raises:
            UnknownAgentError: it is not enrolled.
        """
        async with self._locks[agent_id]:
            lease = self._leases.get(agent_id)
            if unless_session and lease is not None and lease.session_id == unless_session:
                return Outcome(agent=await self._known(agent_id), status=OK)
            return await self._attest(agent_id)

    async def ensure_lease(self, agent_id: str, *, instead_of: int = 0) -> tuple[AgentRecord, ActiveLease]:
        """The agent and a lease in force, attesting it first where there is none.

        Args:
            agent_id: a full id.
            instead_of: sequence of a lease that the agent refuses; one with a higher sequence is wanted.

        Raises:
            RpcError: there can be no lease: AGENT_QUARANTINED, AGENT_RETIRED, ATTESTATION_STALE.
            UnknownAgentError: it is not enrolled.
        """
        async with self._locks[agent_id]:
            agent = await self._known(agent_id)
            lease = self._leases.get(agent_id)
            if agent.state is State.VERIFIED and lease is not None and lease.sequence > instead_of:
                return agent, lease
            outcome = await self._attest(agent_id)
            lease = self._leases.get(agent_id)
        if outcome.status.code or lease is None:
            raise RpcError(outcome.status if outcome.status.code else no_lease_status(outcome.agent))
        return outcome.agent, lease

    async def revoke(self, record: AgentRecord, *, principal: str = CONTROLLER) -> None:
        """What follows from a quarantine: no more commands, everything under way on the agent's channel ends, and its lease."""
        self._leases.revoke(record.agent_id)
        self._feed.publish(record)
        async with self._revocations[record.agent_id]:  # a second one must not close the connection under the first
            await self._client.forget(record.agent_id)
            await self._end_lease(record, principal)
            await self._client.forget(record.agent_id)
            if record.state is State.RETIRED:
                await self._client.hang_up(record.agent_id)

    async def _end_lease(self, record: AgentRecord, principal: str) -> None:
        """Ends the lease that the agent holds, there and now. An agent that cannot be told pauses when its lease is over."""
        held = self._leases.may_be_held(record.agent_id)
        if not held:
            return
        sequence, head = await self._store.next_lease_sequence(record.agent_id)
        problem = ""
        for lease in held:
            end = make_end(self._signer, lease, sequence=sequence, head=head, issue_time_ns=time.time_ns())
            try:
                await self._client.renew_lease(record, end, ends=True)
            except RpcError as error:
                problem = describe(error.status)
                if reason_of(error.status) not in _NOT_HELD:
                    break
            else:
                self._leases.ended(record.agent_id)
                problem = ""
                break
        detail = {"delivered": not problem, "lease_sequence": sequence, "message": problem}
        entry = AuditEntry(principal=principal, action="lease.end", agent_id=record.agent_id, detail=detail)
        await self._store.audit(entry)
        _log.info("lease ended", agent_id=record.agent_id, delivered=not problem, reason=problem)

    async def _known(self, agent_id: str) -> AgentRecord:
        agent = await self._store.agent(agent_id)
        if agent is None:
            raise UnknownAgentError(agent_id)
        return agent

    async def _attest(self, agent_id: str) -> Outcome:
        agent = await self._known(agent_id)
        if agent.state in {State.QUARANTINED, State.RETIRED}:
            return Outcome(agent=agent, status=no_lease_status(agent))
        challenge, judged = await self._judge(agent)
        patience = time.monotonic() + _FIRST_CONTACT_S
        while agent.state is State.ENROLLED and not isinstance(judged, Judged) and time.monotonic() < patience:
            await asyncio.sleep(_FIRST_RETRY_S)
            challenge, judged = await self._judge(agent)
        if not isinstance(judged, Judged):
            return await self._stale(agent, judged)
        if judged.report.verdict is Verdict.EXPIRED:
            return await self._stale(agent, judged.report.reason, judged.report.checks, judged)
        if judged.report.proved is None:
            return await self._failed(agent, judged)
        return await self._passed(agent, challenge, judged.report.proved, judged)

    async def _judge(self, agent: AgentRecord) -> tuple[Challenge, Judged | str]:
        """A challenge and its judgement, with a fresh one after an answer to another; or why no evidence came."""
        async with self._slots.take(is_renewal=self._leases.get(agent.agent_id) is not None):
            challenge, judged = await self._challenge(agent)
            if isinstance(judged, Judged) and judged.report.verdict is Verdict.CHALLENGE_MISMATCH:
                challenge, judged = await self._challenge(agent)
        return challenge, judged

    async def _challenge(self, agent: AgentRecord) -> tuple[Challenge, Judged | str]:
        """One challenge and its judgement, or why no evidence came."""
        # One policy from the challenge to the verdict, whatever is put in force meanwhile.
        demanded = self._policies.current.for_agent(agent.agent_id, agent.labels)
        known = await self._store.known_firmware(demanded.firmware_floor)
        boot_log = await self._store.boot_log(agent.agent_id) if demanded.boot_pcrs else b""
        boot_digest = hashlib.sha256(boot_log).digest() if boot_log else b""
        agent = dataclasses.replace(agent, ima=await self._known_ima(agent.agent_id, demanded))
        challenge = self._challenges.issue(agent.agent_id, demanded.quoted_pcrs)
        try:
            attested = await self._client.attest(agent, challenge.nonce, challenge.pcrs, known_boot_log_sha256=boot_digest)
        except RpcError as error:
            self._challenges.consume(challenge.nonce, agent.agent_id)
            return challenge, f"no evidence from {agent.address or 'the agent'}: {describe(error.status)}"
        evidence = attested.evidence
        consumed = self._challenges.consume(challenge.nonce, agent.agent_id)
        if boot_log and not evidence.boot_log and evidence.boot_log_sha256 == boot_digest:
            evidence.boot_log = boot_log
        policy = demanded.verifier_policy(
            releases=self._policies.releases.now(),
            controller_spki=attested.controller_spki,
            agent_spki=attested.agent_spki,
            known_firmware=known,
        )
        # Tens of thousands of IMA entries take a second: not on the event loop, whose thread the readings are of.
        if len(evidence.ima_log) > _LARGE_IMA_LOG:
            report = await asyncio.to_thread(verify, agent, consumed, evidence, policy)
        else:
            report = verify(agent, consumed, evidence, policy, readings=self._readings)
        if report.boot is not None:
            await self._store.record_boot(agent.agent_id, report.boot)
        return challenge, Judged(record=agent, challenge=consumed, evidence=evidence, policy=policy, report=report)

    async def _known_ima(self, agent_id: str, demanded: AgentPolicy) -> ImaState | None:
        """What is kept of an agent's IMA list, where it was kept for the paths of today."""
        if demanded.ima is None:
            return None
        known = await self._store.ima_state(agent_id)
        return known if known is not None and known.scope_sha256 == demanded.ima.scope_sha256 else None

    async def _stale(self, agent: AgentRecord, why: str, checks: Sequence[Check] = (), judged: Judged | None = None) -> Outcome:
        record = await self._change(agent.agent_id, Event.CONTACT_LOST, why, judged)
        self._leases.revoke(agent.agent_id)
        self._feed.publish(record)
        _log.info("attestation without an answer", agent_id=agent.agent_id, reason=why)
        return Outcome(agent=record, status=no_lease_status(record), checks=tuple(checks))

    async def _failed(self, agent: AgentRecord, judged: Judged) -> Outcome:
        report = judged.report
        record = await self._change(agent.agent_id, Event.ATTESTATION_FAILED, report.reason, judged)
        _log.warning("attestation failed", agent_id=agent.agent_id, state=str(record.state), reason=report.reason)
        await self.revoke(record)
        return Outcome(agent=record, status=no_lease_status(record), checks=report.checks)

    async def _passed(self, agent: AgentRecord, challenge: Challenge, proved: PassedAttestation, judged: Judged) -> Outcome:
        checks = judged.report.checks
        record, head = await self._store.record_passed(agent.agent_id, proved, judged)
        if record.state is not State.VERIFIED:
            return Outcome(agent=record, status=no_lease_status(record), checks=checks)
        sequence = record.lease_sequence
        lease = make_lease(
            self._signer,
            agent.agent_id,
            proved,
            sequence=sequence,
            head=head,
            nonce=challenge.nonce,
            # Of the policy in force now: what may be exported to is a right that a lease gives, not a part of the judgement.
            collectors=self._policies.current.collectors.entries,
            ca_sha256=self._ca_sha256(),
            issue_time_ns=time.time_ns(),
        )
        approval = self._approvals.approve(agent.agent_id, judged.report, judged.evidence)
        self._leases.sending(lease)
        problem = ""
        try:
            await self._client.renew_lease(record, lease, approval=approval)
        except RpcError as error:
            problem = f"the lease was not accepted: {describe(error.status)}"
        # A quarantine may have come while the lease was under way, and have missed it at the agent.
        record = await self._known(agent.agent_id)
        if record.state is not State.VERIFIED:
            await self.revoke(record)
            return Outcome(agent=record, status=no_lease_status(record), checks=checks)
        if problem:
            return await self._stale(record, problem, checks)
        self._leases.taken(agent.agent_id)
        self._leases.put(
            ActiveLease(
                agent_id=agent.agent_id,
                sequence=sequence,
                session_id=proved.session_id,
                start_ns=challenge.sent_ns,
                duration_ns=proved.lease_ns,
            )
        )
        if agent.state is not State.VERIFIED:
            _log.info("agent verified", agent_id=agent.agent_id, firmware=proved.firmware_sha256.hex(), lease=sequence)
        self._feed.publish(record)
        return Outcome(agent=record, status=OK, checks=checks)

    async def _change(self, agent_id: str, event: Event, reason: str, judged: Judged | None = None) -> AgentRecord:
        try:
            return await self._store.change_state(agent_id, event, reason, judged=judged)
        except IllegalTransitionError:  # it was retired or quarantined meanwhile, and stays so
            return await self._known(agent_id)


def no_lease_status(agent: AgentRecord) -> status_pb2.Status:
    """Why an agent in this state gets no command."""
    metadata = {"agent_id": agent.agent_id, "state": str(agent.state), "reason": agent.reason}
    if agent.state is State.QUARANTINED:
        message = f"agent is quarantined: {agent.reason}"
        return error_status(code_pb2.FAILED_PRECONDITION, "AGENT_QUARANTINED", message, metadata=metadata)
    if agent.state is State.RETIRED:
        return error_status(code_pb2.FAILED_PRECONDITION, "AGENT_RETIRED", "agent is retired", metadata=metadata)
    message = f"agent is not proved genuine now: {agent.reason}"
    return error_status(code_pb2.UNAVAILABLE, "ATTESTATION_STALE", message, metadata=metadata)


def describe(status: status_pb2.Status) -> str:
    """A status in one line."""
    reason = reason_of(status) or code_pb2.Code.Name(code_pb2.Code.ValueType(status.code))
    return f"{reason}: {status.message}"
