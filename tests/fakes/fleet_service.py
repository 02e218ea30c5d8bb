# SPDX-License-Identifier: Apache-2.0
"""A controller's FleetService without agents: answers from what a test puts into it, over real mTLS.

It keeps every request it got, selects agents by id prefix and by equal labels, keeps a true audit chain, and refuses what a test
tells it to.
"""

# ruff: noqa: N802 (the methods are named as the service names them)

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio
from jarvis.capture.v1 import audit_pb2, capture_pb2, export_pb2, fleet_pb2
from jarvis.capture.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server
from jarvis_trust.audit import GENESIS_HASH, AuditHead, entry_hash
from jarvis_trust.audit_checkpoint import CheckpointSigner
from jarvis_trust.ca import FleetCA, generate_key, public_key_of
from jarvis_trust.identities import Identity, Role

CODES = {code.value[0]: code for code in grpc.StatusCode}


def status(
    code: int, message: str, reason: str = "", violations: dict[str, str] | None = None, metadata: dict[str, str] | None = None
) -> status_pb2.Status:
    """A google.rpc.Status with the details that are given."""
    details: list[Message] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="jarvis.capture", metadata=metadata))
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text) for field, text in violations.items()
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    result = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        result.details.append(packed)
    return result


class FakeFleetService(FleetServiceServicer):
    """What the operator's side sees of a controller."""

    def __init__(self) -> None:
        self.agents: dict[str, fleet_pb2.Agent] = {}
        self.events: list[fleet_pb2.AuditEvent] = []
        self.page_size = 2
        #: Method name -> Status the call is refused with.
        self.refusals: dict[str, status_pb2.Status] = {}
        #: Agent id -> Status of its outcome in fan-outs.
        self.agent_failures: dict[str, status_pb2.Status] = {}
        self.checks: dict[str, list[fleet_pb2.AttestationCheck]] = {}
        #: One list of responses per WatchFlows call; then the call ends as `flow_endings` says (None: OK).
        self.flow_calls: list[list[fleet_pb2.WatchFlowsResponse]] = []
        self.flow_endings: list[grpc.StatusCode | status_pb2.Status | None] = []
        #: One list of responses per WatchEvents call; then the call ends as `event_endings` says (None: OK).
        self.event_calls: list[list[fleet_pb2.WatchEventsResponse]] = []
        self.event_endings: list[grpc.StatusCode | status_pb2.Status | None] = []
        self.live_flows: list[fleet_pb2.FleetListFlowsResponse] = []
        #: What capture statuses say of the clock.
        self.clock: capture_pb2.ClockStatus | None = None
        #: What every agent exports.
        self.exports: list[export_pb2.ExportStatus] = []
        self.requests: list[Any] = []
        #: Signs checkpoints; set when it is served.
        self.audit_signer: CheckpointSigner | None = None
        #: SHA-256 -> what GetAttestationCase answers.
        self.cases: dict[bytes, fleet_pb2.GetAttestationCaseResponse] = {}
        #: What ListAuditCheckpoints answers; None: one of the chain as it is.
        self.checkpoints: list[audit_pb2.AuditCheckpoint] | None = None
        #: Set while a WatchFlows call without end is waiting for its client to go.
        self.streaming = asyncio.Event()

    def add_agent(
        self, agent_id: str, state: int = fleet_pb2.AGENT_STATE_VERIFIED, hostname: str = "", **labels: str
    ) -> fleet_pb2.Agent:
        agent = fleet_pb2.Agent(
            agent_id=agent_id, state=state, hostname=hostname or f"host-{agent_id[:4]}", labels=labels, assurance="L1"
        )
        agent.firmware_sha256 = bytes(range(32))
        agent.verify_time.FromSeconds(int(time.time()) - 65)
        self.agents[agent_id] = agent
        return agent

    def add_event(self, action: str, agent_id: str = "", detail: str = "{}") -> None:
        previous = self.events[-1].hash if self.events else GENESIS_HASH
        event = fleet_pb2.AuditEvent(
            sequence=len(self.events) + 1, principal="controller", action=action, agent_id=agent_id, detail=detail
        )
        event.time.FromNanoseconds(1_700_000_000_000_000_000 + len(self.events))
        event.previous_hash = previous
        event.hash = entry_hash(
            previous, event.sequence, event.time.ToNanoseconds(), event.principal, action, agent_id, detail, event.request_id
        )
        self.events.append(event)

    async def _enter(self, request: Message, context: Any, method: str) -> None:
        self.requests.append(request)
        if method in self.refusals:
            await self._abort(context, self.refusals[method])

    async def _abort(self, context: Any, refusal: status_pb2.Status) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", refusal.SerializeToString()),))
        await context.abort(CODES[refusal.code], refusal.message)

    async def _selected(self, selector: fleet_pb2.AgentSelector, context: Any) -> list[fleet_pb2.Agent]:
        wanted = [pair.split("=") for pair in selector.label_selector.split(",") if pair]
        found = [
            agent
            for agent in self.agents.values()
            if (not selector.agent_ids or any(agent.agent_id.startswith(prefix) for prefix in selector.agent_ids))
            and all(agent.labels.get(key) == value for key, value in wanted)
        ]
        if not found and (selector.agent_ids or selector.label_selector):
            await self._abort(
                context,
                status(code_pb2.NOT_FOUND, f"no agent matches the selector {selector.label_selector!r}", "AGENT_NOT_FOUND"),
            )
        return found

    async def ListAgents(self, request: fleet_pb2.ListAgentsRequest, context: Any) -> fleet_pb2.ListAgentsResponse:
        await self._enter(request, context, "ListAgents")
        found = await self._selected(request.selector, context)
        first = int(request.page_token or 0)
        end = first + self.page_size
        return fleet_pb2.ListAgentsResponse(agents=found[first:end], next_page_token=str(end) if end < len(found) else "")

    async def AttestAgents(
        self, request: fleet_pb2.AttestAgentsRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.AttestAgentsResponse]:
        await self._enter(request, context, "AttestAgents")
        for agent in await self._selected(request.selector, context):
            yield fleet_pb2.AttestAgentsResponse(
                agent=agent, status=self.agent_failures.get(agent.agent_id), checks=self.checks.get(agent.agent_id, [])
            )

    async def _outcomes(
        self, selector: fleet_pb2.AgentSelector, context: Any, capture: capture_pb2.CaptureStatus
    ) -> AsyncIterator[Any]:
        for agent in await self._selected(selector, context):
            failure = self.agent_failures.get(agent.agent_id)
            yield fleet_pb2.CaptureOutcome(agent_id=agent.agent_id, status=failure, capture=None if failure else capture)

    async def StartCaptures(
        self, request: fleet_pb2.StartCapturesRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.CaptureOutcome]:
        await self._enter(request, context, "StartCaptures")
        capture = capture_pb2.CaptureStatus(state=capture_pb2.CAPTURE_STATE_RUNNING, spec=request.spec, backend="afpacket")
        async for outcome in self._outcomes(request.selector, context, capture):
            yield outcome

    async def StopCaptures(self, request: fleet_pb2.StopCapturesRequest, context: Any) -> AsyncIterator[fleet_pb2.CaptureOutcome]:
        await self._enter(request, context, "StopCaptures")
        async for outcome in self._outcomes(
            request.selector, context, capture_pb2.CaptureStatus(state=capture_pb2.CAPTURE_STATE_STOPPED)
        ):
            yield outcome

    async def UpdateInterfaces(
        self, request: fleet_pb2.FleetUpdateInterfacesRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.CaptureOutcome]:
        await self._enter(request, context, "UpdateInterfaces")
        names = ["eth0", *request.add]
        capture = capture_pb2.CaptureStatus(state=capture_pb2.CAPTURE_STATE_RUNNING)
        for name in names:
            if name not in request.remove:
                capture.interfaces.add(name=name, backend="afpacket", state=capture_pb2.INTERFACE_STATE_UP, received=12_345)
        async for outcome in self._outcomes(request.selector, context, capture):
            yield outcome

    async def GetCaptureStatuses(self, request: Any, context: Any) -> AsyncIterator[fleet_pb2.CaptureOutcome]:
        await self._enter(request, context, "GetCaptureStatuses")
        metrics = capture_pb2.CaptureMetrics(received=12_345, received_octets=6_700_000, dropped_kernel=7, flows_active=42)
        capture = capture_pb2.CaptureStatus(state=capture_pb2.CAPTURE_STATE_RUNNING, backend="pcap", metrics=metrics)
        capture.spec.interfaces.append("eth0")
        capture.interfaces.add(name="eth0", backend="pcap", state=capture_pb2.INTERFACE_STATE_UP, received=12_345)
        if self.clock is not None:
            capture.clock.CopyFrom(self.clock)
        async for outcome in self._outcomes(request.selector, context, capture):
            yield outcome

    async def _export_outcomes(
        self, selector: fleet_pb2.AgentSelector, context: Any, exports: list[export_pb2.ExportStatus]
    ) -> AsyncIterator[fleet_pb2.ExportOutcome]:
        for agent in await self._selected(selector, context):
            failure = self.agent_failures.get(agent.agent_id)
            yield fleet_pb2.ExportOutcome(agent_id=agent.agent_id, status=failure, exports=[] if failure else exports)

    async def EnableExports(
        self, request: fleet_pb2.EnableExportsRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.ExportOutcome]:
        await self._enter(request, context, "EnableExports")
        enabled = export_pb2.ExportStatus(spec=request.spec, state=export_pb2.EXPORT_STATE_ACTIVE)
        async for outcome in self._export_outcomes(request.selector, context, [enabled]):
            yield outcome

    async def DisableExports(
        self, request: fleet_pb2.DisableExportsRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.ExportOutcome]:
        await self._enter(request, context, "DisableExports")
        ended = [status for status in self.exports if status.spec.export_id == request.export_id]
        async for outcome in self._export_outcomes(request.selector, context, ended):
            yield outcome

    async def ListExports(
        self, request: fleet_pb2.FleetListExportsRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.ExportOutcome]:
        await self._enter(request, context, "ListExports")
        async for outcome in self._export_outcomes(request.selector, context, self.exports):
            yield outcome

    async def WatchMetrics(
        self, request: fleet_pb2.WatchMetricsRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.WatchMetricsResponse]:
        await self._enter(request, context, "WatchMetrics")
        for turn in range(3 if request.follow else 1):
            for agent in await self._selected(request.selector, context):
                failure = self.agent_failures.get(agent.agent_id)
                if failure:
                    yield fleet_pb2.WatchMetricsResponse(agent_id=agent.agent_id, status=failure)
                else:
                    metrics = capture_pb2.CaptureMetrics(received=1000 * (turn + 1), throughput_bps=3.4e9)
                    yield fleet_pb2.WatchMetricsResponse(agent_id=agent.agent_id, metrics=metrics)

    async def ListFlows(
        self, request: fleet_pb2.FleetListFlowsRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.FleetListFlowsResponse]:
        await self._enter(request, context, "ListFlows")
        await self._selected(request.selector, context)
        for response in self.live_flows:
            yield response

    async def WatchFlows(self, request: fleet_pb2.WatchFlowsRequest, context: Any) -> AsyncIterator[fleet_pb2.WatchFlowsResponse]:
        await self._enter(request, context, "WatchFlows")
        await self._selected(request.selector, context)
        responses = self.flow_calls.pop(0) if self.flow_calls else []
        for response in responses:
            yield response
        if self.flow_endings:
            ending = self.flow_endings.pop(0)
            if isinstance(ending, status_pb2.Status):
                await self._abort(context, ending)
            elif ending is not None:
                await context.abort(ending, "the fake ends the stream")
            return
        self.streaming.set()
        await asyncio.sleep(60)

    async def WatchEvents(
        self, request: fleet_pb2.WatchEventsRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.WatchEventsResponse]:
        await self._enter(request, context, "WatchEvents")
        await self._selected(request.selector, context)
        for response in self.event_calls.pop(0) if self.event_calls else []:
            yield response
        if self.event_endings:
            ending = self.event_endings.pop(0)
            if isinstance(ending, status_pb2.Status):
                await self._abort(context, ending)
            elif ending is not None:
                await context.abort(ending, "the fake ends the stream")
            return
        if request.follow:
            self.streaming.set()
            await asyncio.sleep(60)

    async def CreateJoinToken(self, request: fleet_pb2.CreateJoinTokenRequest, context: Any) -> fleet_pb2.CreateJoinTokenResponse:
        await self._enter(request, context, "CreateJoinToken")
        answer = fleet_pb2.CreateJoinTokenResponse(join_file='{"fleet":"test","token":"s3cret"}')
        answer.expire_time.FromSeconds(int(time.time()) + request.lifetime.seconds)
        return answer

    async def QuarantineAgent(self, request: fleet_pb2.QuarantineAgentRequest, context: Any) -> fleet_pb2.QuarantineAgentResponse:
        await self._enter(request, context, "QuarantineAgent")
        agent = self.agents[request.agent_id]
        agent.state, agent.reason = fleet_pb2.AGENT_STATE_QUARANTINED, request.reason
        return fleet_pb2.QuarantineAgentResponse(agent=agent)

    async def ReleaseAgent(self, request: fleet_pb2.ReleaseAgentRequest, context: Any) -> fleet_pb2.ReleaseAgentResponse:
        await self._enter(request, context, "ReleaseAgent")
        agent = self.agents[request.agent_id]
        agent.state, agent.reason = fleet_pb2.AGENT_STATE_STALE, ""
        return fleet_pb2.ReleaseAgentResponse(agent=agent)

    async def RetireAgent(self, request: fleet_pb2.RetireAgentRequest, context: Any) -> fleet_pb2.RetireAgentResponse:
        await self._enter(request, context, "RetireAgent")
        agent = self.agents[request.agent_id]
        agent.state, agent.reason = fleet_pb2.AGENT_STATE_RETIRED, request.reason
        return fleet_pb2.RetireAgentResponse(agent=agent)

    async def ListAuditEvents(self, request: fleet_pb2.ListAuditEventsRequest, context: Any) -> fleet_pb2.ListAuditEventsResponse:
        await self._enter(request, context, "ListAuditEvents")
        first = int(request.page_token or 0)
        end = first + self.page_size
        token = str(end) if end < len(self.events) else ""
        return fleet_pb2.ListAuditEventsResponse(events=self.events[first:end], next_page_token=token)

    async def ListAuditCheckpoints(
        self, request: fleet_pb2.ListAuditCheckpointsRequest, context: Any
    ) -> fleet_pb2.ListAuditCheckpointsResponse:
        await self._enter(request, context, "ListAuditCheckpoints")
        checkpoints = self.checkpoints
        if checkpoints is None:
            checkpoints = [self.signed_checkpoint(1, len(self.events))] if self.events else []
        assert self.audit_signer is not None
        return fleet_pb2.ListAuditCheckpointsResponse(
            checkpoints=checkpoints, signer_certificates=[self.audit_signer.certificate]
        )

    async def GetAttestationCase(
        self, request: fleet_pb2.GetAttestationCaseRequest, context: Any
    ) -> fleet_pb2.GetAttestationCaseResponse:
        await self._enter(request, context, "GetAttestationCase")
        if request.case_sha256 not in self.cases:
            await self._abort(context, status(code_pb2.NOT_FOUND, "the case is not kept", "CASE_NOT_KEPT"))
        return self.cases[request.case_sha256]

    def signed_checkpoint(self, number: int, sequence: int) -> audit_pb2.AuditCheckpoint:
        """A checkpoint of the chain as it is now."""
        assert self.audit_signer is not None
        head = AuditHead(sequence=sequence, hash=self.events[sequence - 1].hash)
        return self.audit_signer.sign(number, head, time.time_ns())


async def serve(
    service: FakeFleetService,
    ca: FleetCA,
    *,
    identity: Identity | None = None,
    port: int = 0,
    lifetime: timedelta = timedelta(hours=1),
    client_ca: bytes | None = None,
) -> tuple[aio.Server, int]:
    """Serves on loopback with a certificate of that CA; gives the server and its port."""
    key = generate_key()
    audit_key = generate_key()
    service.audit_signer = CheckpointSigner(
        audit_key + ca.issue_audit_signer("main", public_key_of(audit_key), timedelta(days=1))
    )
    identity = identity or Identity(fleet=ca.fleet, role=Role.CONTROLLER, name="main")
    certificate = ca.issue(identity, public_key_of(key), lifetime)
    credentials = grpc.ssl_server_credentials([(key, certificate)], client_ca or ca.certificate_pem, require_client_auth=True)
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    add_FleetServiceServicer_to_server(service, server)
    bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    return server, bound
