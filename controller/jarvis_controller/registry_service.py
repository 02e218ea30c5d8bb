# SPDX-License-Identifier: Apache-2.0
"""The registry's part of FleetService: who is in the fleet, who may join, who is out, and what was done by whom.

Roles are checked before a handler runs (authorization.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.rpc import code_pb2
from jarvis.capture.v1 import fleet_pb2
from jarvis_trust.joinfile import JoinFile, new_token

from jarvis_controller.access_log import AccessLog
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation import Attester
from jarvis_controller.attestation_loop import AttestationLoop
from jarvis_controller.authorization import caller_of
from jarvis_controller.capture_request import check_lifetime_ns, check_page_size, check_reason
from jarvis_controller.rpc_status import bad_field, refuse
from jarvis_controller.selection import read_selector, select
from jarvis_controller.selectors import SelectorError, check_labels, check_prefix, resolve
from jarvis_controller.state_feed import StateFeed
from jarvis_controller.states import Event, IllegalTransitionError
from jarvis_controller.store import Store

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_TOKEN_LIFETIME_NS = 3600 * 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """What a join file holds besides its token."""

    fleet: str
    ca_pem: Callable[[], bytes]
    """Every CA that is trusted now."""
    command_public_pem: bytes
    advertise_enroll: str


class RegistryService:
    """The handlers. One instance per controller."""

    def __init__(
        self,
        *,
        settings: RegistrySettings,
        store: Store,
        attester: Attester,
        loop: AttestationLoop,
        feed: StateFeed,
        access: AccessLog,
        is_connected: Callable[[str], bool],
    ) -> None:
        """Args: is_connected: whether an agent that dials by itself is there now."""
        self._is_connected = is_connected
        self._settings = settings
        self._store = store
        self._attester = attester
        self._loop = loop
        self._feed = feed
        self._access = access

    async def list_agents(self, request: fleet_pb2.ListAgentsRequest, _context: Context) -> fleet_pb2.ListAgentsResponse:
        """ListAgents."""
        size = check_page_size(request.page_size)
        selector = read_selector(request.selector)
        agents = await self._store.agents()
        selected = select(selector, agents, may_be_empty=selector.is_everything, with_retired=request.show_retired)
        rest = [agent for agent in selected if agent.agent_id > request.page_token]
        more = rest[size - 1].agent_id if len(rest) > size else ""
        return fleet_pb2.ListAgentsResponse(agents=[self._message(agent) for agent in rest[:size]], next_page_token=more)

    async def get_boot_report(self, request: fleet_pb2.GetBootReportRequest, context: Context) -> fleet_pb2.GetBootReportResponse:
        """GetBootReport."""
        agent_id = await self._resolve(request.agent_id)
        report = await self._store.boot_report(agent_id)
        if report is None:
            message = f"agent {agent_id}: no boot log was quoted by it yet (attestation.boot_pcrs in the policy)"
            raise refuse(code_pb2.NOT_FOUND, "BOOT_LOG_MISSING", message)
        await self._access.read(self._principal(context), "GetBootReport", [agent_id], request)
        return report

    async def create_join_token(
        self, request: fleet_pb2.CreateJoinTokenRequest, context: Context
    ) -> fleet_pb2.CreateJoinTokenResponse:
        """CreateJoinToken."""
        lifetime_ns = check_lifetime_ns(request.lifetime) if request.HasField("lifetime") else _DEFAULT_TOKEN_LIFETIME_NS
        try:
            check_labels(request.labels)
        except SelectorError as error:
            raise bad_field(error.field, error.message) from error
        token = new_token()
        join_file = JoinFile(
            fleet=self._settings.fleet,
            token=token,
            ca_pem=self._settings.ca_pem().decode("ascii"),
            command_public_pem=self._settings.command_public_pem.decode("ascii"),
            address=self._settings.advertise_enroll,
        )
        expire_ns = await self._store.create_token(
            token, request.labels, lifetime_ns, principal=self._principal(context), without_tpm=request.without_tpm
        )
        answer = fleet_pb2.CreateJoinTokenResponse(join_file=join_file.to_json())
        answer.expire_time.FromNanoseconds(expire_ns)
        return answer

    async def quarantine_agent(
        self, request: fleet_pb2.QuarantineAgentRequest, context: Context
    ) -> fleet_pb2.QuarantineAgentResponse:
        """QuarantineAgent."""
        principal = self._principal(context)
        reason = f"by {principal}: {check_reason(request.reason)}"
        record = await self._order(request.agent_id, Event.QUARANTINE_ORDERED, reason, principal)
        await self._attester.revoke(record, principal=principal)
        return fleet_pb2.QuarantineAgentResponse(agent=self._message(record))

    async def release_agent(self, request: fleet_pb2.ReleaseAgentRequest, context: Context) -> fleet_pb2.ReleaseAgentResponse:
        """ReleaseAgent."""
        principal = self._principal(context)
        reason = f"released by {principal}: {check_reason(request.reason)}"
        record = await self._order(request.agent_id, Event.RELEASE_ORDERED, reason, principal)
        self._feed.publish(record)
        self._loop.attest_soon(record)
        return fleet_pb2.ReleaseAgentResponse(agent=self._message(record))

    async def retire_agent(self, request: fleet_pb2.RetireAgentRequest, context: Context) -> fleet_pb2.RetireAgentResponse:
        """RetireAgent."""
        principal = self._principal(context)
        reason = f"retired by {principal}: {check_reason(request.reason)}"
        record = await self._order(request.agent_id, Event.RETIRE_ORDERED, reason, principal)
        await self._attester.revoke(record, principal=principal)
        return fleet_pb2.RetireAgentResponse(agent=self._message(record))

    async def list_audit_events(
        self, request: fleet_pb2.ListAuditEventsRequest, _context: Context
    ) -> fleet_pb2.ListAuditEventsResponse:
        """ListAuditEvents."""
        size = check_page_size(request.page_size)
        events = await self._store.audit_page(_after(request.page_token), size + 1)
        more = str(events[size - 1].sequence) if len(events) > size else ""
        return fleet_pb2.ListAuditEventsResponse(events=events[:size], next_page_token=more)

    async def list_audit_checkpoints(
        self, request: fleet_pb2.ListAuditCheckpointsRequest, _context: Context
    ) -> fleet_pb2.ListAuditCheckpointsResponse:
        """ListAuditCheckpoints."""
        size = check_page_size(request.page_size)
        answer = await self._store.audit_checkpoints(_after(request.page_token), size)
        if len(answer.checkpoints) == size:
            answer.next_page_token = str(answer.checkpoints[-1].number)
        return answer

    async def get_attestation_case(
        self, request: fleet_pb2.GetAttestationCaseRequest, context: Context
    ) -> fleet_pb2.GetAttestationCaseResponse:
        """GetAttestationCase."""
        if len(request.case_sha256) != 32:
            raise bad_field("case_sha256", f"{len(request.case_sha256)} bytes: 32 are accepted")
        case = await self._store.attestation_case(request.case_sha256)
        if case is None:
            message = f"case {request.case_sha256.hex()} is not kept, or not any more (evidence_days, evidence_mib)"
            raise refuse(code_pb2.NOT_FOUND, "CASE_NOT_KEPT", message)
        # Which one is not told apart: `audit replay --all` asks for every one.
        anything = fleet_pb2.GetAttestationCaseRequest()
        await self._access.read(self._principal(context), "GetAttestationCase", [], anything)
        return case

    def _message(self, record: AgentRecord) -> fleet_pb2.Agent:
        return record.message(connected=self._is_connected(record.agent_id))

    def _principal(self, context: Context) -> str:
        return caller_of(context, self._settings.fleet).uri

    async def _order(self, prefix: str, event: Event, reason: str, principal: str) -> AgentRecord:
        agent_id = await self._resolve(prefix)
        try:
            return await self._store.change_state(agent_id, event, reason, principal=principal)
        except IllegalTransitionError as error:
            raise refuse(code_pb2.FAILED_PRECONDITION, "AGENT_STATE", f"agent {agent_id}: {error}") from error

    async def _resolve(self, prefix: str) -> str:
        try:
            check_prefix("agent_id", prefix)
            agent_id = resolve(await self._store.agents(), prefix, "agent_id")
        except SelectorError as error:
            raise bad_field(error.field, error.message) from error
        if agent_id is None:
            raise refuse(code_pb2.NOT_FOUND, "AGENT_NOT_FOUND", f"agent_id {prefix!r}: no such agent is enrolled")
        return agent_id


def _after(page_token: str) -> int:
    token = page_token or "0"
    if not token.isascii() or not token.isdecimal() or len(token) > 18:
        raise bad_field("page_token", f"{token[:40]!r}: the next_page_token of an earlier answer is accepted")
    return int(token)
