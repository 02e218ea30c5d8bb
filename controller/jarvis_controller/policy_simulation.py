# SPDX-License-Identifier: Apache-2.0
"""What another policy would do to an agent: the verifier's own code over the evidence that is kept of it, under both policies.

    last case of the agent (its record, challenge and evidence as of then) -> verify under the policy in force
                                                                           -> verify under the other one  -> what differs

Only the judgement changes: nobody is asked and nothing is stored. What the evidence does not speak of, such as PCRs that were not
quoted, is said to be undecided and never guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2
from jarvis.capture.v1 import fleet_pb2, policy_pb2
from jarvis_trust.ek_certificate import read_ek_certificate, verify_ek_certificate
from jarvis_trust.errors import AttestationError, TrustError
from jarvis_trust.ima_log import IMA_PCR
from jarvis_trust.status import trust_error_status
from jarvis_trust.tpm_structures import parse_public

from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation_case import KeptCase, read_case
from jarvis_controller.case import ReleaseTrust
from jarvis_controller.policy import AgentPolicy, FleetPolicy, Vendors
from jarvis_controller.states import State
from jarvis_controller.store import Store
from jarvis_controller.verifier import Check, Verdict, verify

_PASSED = policy_pb2.SIMULATED_VERDICT_PASSED
_REPORTED = policy_pb2.SIMULATED_VERDICT_REPORTED
_QUARANTINED = policy_pb2.SIMULATED_VERDICT_QUARANTINED
_NO_EVIDENCE = policy_pb2.SIMULATED_VERDICT_NO_EVIDENCE
_UNDECIDED = policy_pb2.SIMULATED_VERDICT_UNDECIDED
_TRUSTED = frozenset({_PASSED, _REPORTED})
_OUT = frozenset({State.QUARANTINED, State.RETIRED})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judgement:
    verdict: policy_pb2.SimulatedVerdict.ValueType
    assurance: str = ""
    failed: tuple[Check, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One of the two policies."""

    policy: FleetPolicy
    releases: ReleaseTrust
    known_firmware: frozenset[tuple[str, str]]

    def judge(self, case: KeptCase, demanded: AgentPolicy) -> _Judgement:
        undecided = _undecided(case, demanded)
        if undecided:
            return _Judgement(verdict=_UNDECIDED, message=undecided)
        policy = demanded.verifier_policy(
            releases=self.releases,
            controller_spki=case.policy.controller_spki,
            agent_spki=case.policy.agent_spki,
            known_firmware=self.known_firmware,
        )
        report = verify(case.record, case.challenge, case.evidence, policy)
        failed = tuple(check for check in report.checks if not check.passed)
        if report.proved is not None:
            return _Judgement(verdict=_REPORTED if failed else _PASSED, assurance=report.proved.assurance, failed=failed)
        if report.verdict is Verdict.FAILED:
            return _Judgement(verdict=_QUARANTINED, failed=failed)
        return _Judgement(verdict=_UNDECIDED, message="the evidence that is kept answers another challenge, or came too late")


def _undecided(case: KeptCase, demanded: AgentPolicy) -> str:
    """What the evidence does not speak of; empty when it says all that is demanded."""
    if not case.record.has_tpm:
        return ""
    judged = {demanded.pcr, *(demanded.boot.pcrs if demanded.boot else ()), *((IMA_PCR,) if demanded.ima else ())}
    missing = sorted(judged - set(case.challenge.pcrs))
    if missing:
        return f"the evidence that is kept does not quote PCRs {missing}"
    known = case.record.ima
    if demanded.ima and case.evidence.ima_first_entry and known and known.scope_sha256 != demanded.ima.scope_sha256:
        return "the evidence that is kept has only a part of the IMA list, and the part before was read for other paths"
    return ""


class Simulation:
    """One policy tried on one fleet. Make it with `of`; use it once."""

    def __init__(self, store: Store, before: _Side, after: _Side) -> None:
        self._store = store
        self._before = before
        self._after = after

    @classmethod
    async def of(cls, store: Store, *, in_force: FleetPolicy, other: FleetPolicy, releases: ReleaseTrust) -> Simulation:
        """A simulation of `other` against what is in force."""
        sides = [
            _Side(policy=policy, releases=releases, known_firmware=await store.known_firmware(policy.firmware_floor))
            for policy in (in_force, other)
        ]
        return cls(store, *sides)

    async def run(self, agents: Iterable[AgentRecord]) -> AsyncGenerator[policy_pb2.SimulatePolicyResponse, None]:
        """One answer an agent, in their order, and a summary. One case is in memory at a time."""
        policy = self._after.policy
        summary = policy_pb2.SimulationSummary(name=policy.name, version=policy.version, sha256=policy.document.sha256)
        for record in agents:
            found = await self._store.last_case(record.agent_id)
            simulated = await asyncio.to_thread(self._simulate, record, found)
            summary.agents += 1
            summary.changed += _is_changed(simulated)
            summary.losing_trust += simulated.loses_trust
            summary.undecided += simulated.after in {_NO_EVIDENCE, _UNDECIDED}
            yield policy_pb2.SimulatePolicyResponse(agent=simulated)
        yield policy_pb2.SimulatePolicyResponse(summary=summary)

    def _simulate(self, record: AgentRecord, found: fleet_pb2.GetAttestationCaseResponse | None) -> policy_pb2.SimulatedAgent:
        demanded = [side.policy.for_agent(record.agent_id, record.labels) for side in (self._before, self._after)]
        time, before, after = (
            None,
            _Judgement(verdict=_NO_EVIDENCE),
            _Judgement(verdict=_NO_EVIDENCE, message="no evidence is kept"),
        )
        if found is not None:
            try:
                case = read_case(found.attestation_case, found.boot_log)
                before, after = self._before.judge(case, demanded[0]), self._after.judge(case, demanded[1])
                time = case.case.time
            except AttestationError as error:  # forgotten in part, or of a version whose cases cannot be read
                after = _Judgement(verdict=_UNDECIDED, message=f"{error.reason}: {error.message}")
        refusal = _refusal(record, self._before.policy.vendors, self._after.policy.vendors)
        return _simulated(record, before, after, refusal, rule=demanded[1].rule, time=time)


def _simulated(
    record: AgentRecord, before: _Judgement, after: _Judgement, refusal: TrustError | None, *, rule: str, time: Timestamp | None
) -> policy_pb2.SimulatedAgent:
    lost = refusal is not None or (before.verdict in _TRUSTED and after.verdict == _QUARANTINED)
    return policy_pb2.SimulatedAgent(
        agent=record.message(),
        before=before.verdict,
        after=after.verdict,
        assurance_before=before.assurance,
        assurance_after=after.assurance,
        failed=[check.to_message() for check in after.failed],
        message=after.message,
        evidence_time=time,
        enrollment=None if refusal is None else trust_error_status(code_pb2.PERMISSION_DENIED, refusal),
        # Who is out already has nothing to lose.
        loses_trust=lost and record.state not in _OUT,
        rule=rule,
    )


def _is_changed(agent: policy_pb2.SimulatedAgent) -> bool:
    decided = {_NO_EVIDENCE, _UNDECIDED}.isdisjoint({agent.before, agent.after})
    before, after = (agent.before, agent.assurance_before), (agent.after, agent.assurance_after)
    return agent.HasField("enrollment") or (decided and before != after)


def _refusal(record: AgentRecord, before: Vendors, after: Vendors) -> TrustError | None:
    """What the agent's next enrolment or renewal would be refused with, and is not yet."""
    return None if _judge_ek(record, before, before) is not None else _judge_ek(record, before, after)


def _judge_ek(record: AgentRecord, before: Vendors, vendors: Vendors) -> TrustError | None:
    if not record.ek_certificate:
        return None
    try:
        ek = parse_public(record.ek_public)
        vendors.check(read_ek_certificate(record.ek_certificate, ek), ek.spki_der)
        # Intermediates are not kept: a chain that cannot be followed under the roots in force says nothing about others.
        if vendors.roots != before.roots and _leads_to(record, before):
            verify_ek_certificate(record.ek_certificate, (), vendors.roots, ek, datetime.now(UTC))
    except TrustError as error:
        return error
    return None


def _leads_to(record: AgentRecord, vendors: Vendors) -> bool:
    try:
        verify_ek_certificate(record.ek_certificate, (), vendors.roots, parse_public(record.ek_public), datetime.now(UTC))
    except TrustError:
        return False
    return True
