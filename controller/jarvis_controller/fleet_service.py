# SPDX-License-Identifier: Apache-2.0
"""FleetService: what operators may ask of agents, over a selector, with one answer per agent as it comes.

The registry's methods are registry_service.py's, those of exports export_service.py's. Roles are checked before a handler runs
(authorization.py). Flow bytes are never parsed on their way through (flow_relay.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import code_pb2
from jarvis.capture.v1 import agent_pb2, fleet_pb2

from jarvis_controller.access_log import AccessLog
from jarvis_controller.agent_client import AgentClient, Command
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation import Attester, UnknownAgentError
from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.authorization import caller_of
from jarvis_controller.capture_request import (
    check_interface_changes,
    check_interval,
    check_query,
    check_spec,
    check_subscription,
)
from jarvis_controller.commander import Commander, fan_out
from jarvis_controller.event_relay import EventRelay
from jarvis_controller.event_request import read_event_watch
from jarvis_controller.fleet_commands import CommandKind, FleetCommands
from jarvis_controller.flow_relay import FlowRelay, RelayLimits
from jarvis_controller.flow_wire import FlowWireError, agent_id_suffix, check_batch
from jarvis_controller.metrics_relay import MetricsRelay
from jarvis_controller.rpc_status import OK, RpcError, bad_field, malformed_answer, refuse
from jarvis_controller.selection import gone, read_selector, select
from jarvis_controller.state_feed import StateFeed
from jarvis_controller.store import Store

Context = grpc.aio.ServicerContext[Any, Any]


def _capture(kind: type[_Answer]) -> Callable[[bytes], fleet_pb2.CaptureOutcome]:
    return lambda payload: fleet_pb2.CaptureOutcome(capture=kind.FromString(payload).status)


_Answer = agent_pb2.StartCaptureResponse | agent_pb2.StopCaptureResponse | agent_pb2.UpdateInterfacesResponse
_START = CommandKind("StartCapture", "capture.start", fleet_pb2.CaptureOutcome, _capture(agent_pb2.StartCaptureResponse))
_STOP = CommandKind("StopCapture", "capture.stop", fleet_pb2.CaptureOutcome, _capture(agent_pb2.StopCaptureResponse))
_INTERFACES = CommandKind(
    "UpdateInterfaces", "capture.interfaces", fleet_pb2.CaptureOutcome, _capture(agent_pb2.UpdateInterfacesResponse)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """What the service needs to know of the configuration."""

    fleet: str
    concurrency: int
    relay_limits: RelayLimits


class FleetService:
    """The handlers. One instance per controller."""

    def __init__(
        self,
        *,
        settings: FleetSettings,
        store: Store,
        client: AgentClient,
        attester: Attester,
        commander: Commander,
        commands: FleetCommands,
        feed: StateFeed,
        access: AccessLog,
    ) -> None:
        self._settings = settings
        self._store = store
        self._client = client
        self._attester = attester
        self._commander = commander
        self._commands = commands
        self._feed = feed
        self._access = access
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Ends the streams that would go on for ever; their callers come back later."""
        self._draining.set()

    # -- attestation and captures --

    async def attest_agents(
        self, request: fleet_pb2.AttestAgentsRequest, context: Context
    ) -> AsyncGenerator[fleet_pb2.AttestAgentsResponse, None]:
        """AttestAgents."""
        agents = await self._selected(request.selector)
        await self._audit(context, "attest", agents, {})

        async def one(agent: AgentRecord) -> fleet_pb2.AttestAgentsResponse:
            try:
                outcome = await self._attester.attest(agent.agent_id)
            except UnknownAgentError:
                return fleet_pb2.AttestAgentsResponse(agent=agent.message(), status=gone(agent).status)
            return outcome.to_message(connected=self._client.is_connected(agent.agent_id))

        async with contextlib.aclosing(fan_out(agents, one, concurrency=self._settings.concurrency)) as answers:
            async for answer in answers:
                yield answer

    async def start_captures(
        self, request: fleet_pb2.StartCapturesRequest, context: Context
    ) -> AsyncGenerator[fleet_pb2.CaptureOutcome, None]:
        """StartCaptures."""
        check_spec(request.spec)
        command = agent_pb2.StartCaptureRequest(spec=request.spec)
        outcomes = self._commands.run(request, _START, command, principal=self._principal(context))
        async with contextlib.aclosing(outcomes) as answers:
            async for answer in answers:
                yield answer

    async def stop_captures(
        self, request: fleet_pb2.StopCapturesRequest, context: Context
    ) -> AsyncGenerator[fleet_pb2.CaptureOutcome, None]:
        """StopCaptures."""
        command = agent_pb2.StopCaptureRequest(discard=request.discard)
        outcomes = self._commands.run(request, _STOP, command, principal=self._principal(context))
        async with contextlib.aclosing(outcomes) as answers:
            async for answer in answers:
                yield answer

    async def update_interfaces(
        self, request: fleet_pb2.FleetUpdateInterfacesRequest, context: Context
    ) -> AsyncGenerator[fleet_pb2.CaptureOutcome, None]:
        """UpdateInterfaces."""
        check_interface_changes(request.add, request.remove)
        command = agent_pb2.UpdateInterfacesRequest(add=request.add, remove=request.remove)
        outcomes = self._commands.run(request, _INTERFACES, command, principal=self._principal(context))
        async with contextlib.aclosing(outcomes) as answers:
            async for answer in answers:
                yield answer

    async def get_capture_statuses(
        self, request: fleet_pb2.GetCaptureStatusesRequest, _context: Context
    ) -> AsyncGenerator[fleet_pb2.CaptureOutcome, None]:
        """GetCaptureStatuses."""
        agents = await self._selected(request.selector)

        async def one(agent: AgentRecord) -> fleet_pb2.CaptureOutcome:
            try:
                proved, _ = await self._attester.ensure_lease(agent.agent_id)
                answer = await self._client.status(proved)
            except RpcError as error:
                return fleet_pb2.CaptureOutcome(agent_id=agent.agent_id, status=error.status)
            except UnknownAgentError:
                return fleet_pb2.CaptureOutcome(agent_id=agent.agent_id, status=gone(agent).status)
            return fleet_pb2.CaptureOutcome(agent_id=agent.agent_id, status=OK, capture=answer.capture)

        async with contextlib.aclosing(fan_out(agents, one, concurrency=self._settings.concurrency)) as answers:
            async for answer in answers:
                yield answer

    # -- what is measured --

    async def watch_metrics(
        self, request: fleet_pb2.WatchMetricsRequest, context: Context
    ) -> AsyncGenerator[fleet_pb2.WatchMetricsResponse, None]:
        """WatchMetrics."""
        agents = await self._selected(request.selector)
        if request.HasField("interval"):
            check_interval(request.interval)
        await self._reads(context, "WatchMetrics", agents, request)
        relay = MetricsRelay(
            commander=self._commander, principal=self._principal(context), concurrency=self._settings.concurrency
        )
        messages = relay.follow(agents, request, self._draining) if request.follow else relay.once(agents)
        async with contextlib.aclosing(messages) as answers:
            async for answer in answers:
                yield answer
        if request.follow:
            raise _stopping()

    async def list_flows(self, request: fleet_pb2.FleetListFlowsRequest, context: Context) -> AsyncGenerator[bytes, None]:
        """ListFlows: FleetListFlowsResponse bytes."""
        check_query(request.query)
        agents = await self._selected(request.selector)
        await self._reads(context, "ListFlows", agents, request)
        message = agent_pb2.ListFlowsRequest(query=request.query)
        command = Command(rpc="ListFlows", request=message, principal=self._principal(context))

        async def one(agent: AgentRecord) -> bytes:
            try:
                answer = await self._commander.call(agent.agent_id, command)
                if answer:
                    check_batch(answer)
            except RpcError as error:
                return fleet_pb2.FleetListFlowsResponse(agent_id=agent.agent_id, status=error.status).SerializeToString()
            except FlowWireError:
                return fleet_pb2.FleetListFlowsResponse(
                    agent_id=agent.agent_id, status=malformed_answer().status
                ).SerializeToString()
            return (answer or b"\x12\x00") + agent_id_suffix(agent.agent_id)

        async with contextlib.aclosing(fan_out(agents, one, concurrency=self._settings.concurrency)) as answers:
            async for answer in answers:
                yield answer

    async def watch_flows(self, request: fleet_pb2.WatchFlowsRequest, context: Context) -> AsyncGenerator[bytes, None]:
        """WatchFlows: WatchFlowsResponse bytes."""
        agents = await self._selected(request.selector)
        check_subscription(request.subscription, agents=len(agents))
        if request.slow_consumer_policy not in fleet_pb2.SlowConsumerPolicy.values():
            raise bad_field(
                "slow_consumer_policy", f"{request.slow_consumer_policy}: one of SlowConsumerPolicy's values is accepted"
            )
        await self._reads(context, "WatchFlows", agents, request)
        relay = FlowRelay(
            commander=self._commander,
            feed=self._feed,
            selector=read_selector(request.selector),
            request=request,
            principal=self._principal(context),
            limits=self._settings.relay_limits,
        )
        async with contextlib.aclosing(relay.messages(agents, self._draining)) as messages:
            async for message in messages:
                yield message
        if self._draining.is_set():
            raise _stopping()

    async def watch_events(
        self, request: fleet_pb2.WatchEventsRequest, _context: Context
    ) -> AsyncGenerator[fleet_pb2.WatchEventsResponse, None]:
        """WatchEvents."""
        watch = read_event_watch(request)
        select(watch.selector, await self._store.agents(), may_be_empty=watch.selector.is_everything, with_retired=True)
        async with contextlib.aclosing(EventRelay(self._store, watch).messages(self._draining)) as answers:
            async for answer in answers:
                yield answer
        if watch.follow:
            raise _stopping()

    # -- shared --

    def _principal(self, context: Context) -> str:
        return caller_of(context, self._settings.fleet).uri

    async def _selected(self, message: fleet_pb2.AgentSelector) -> list[AgentRecord]:
        return select(read_selector(message), await self._store.agents(), may_be_empty=False)

    async def _reads(self, context: Context, method: str, agents: Sequence[AgentRecord], request: Message) -> None:
        await self._access.read(self._principal(context), method, [agent.agent_id for agent in agents], request)

    async def _audit(self, context: Context, action: str, agents: Sequence[AgentRecord], detail: dict[str, object]) -> None:
        described = {"agents": [agent.agent_id for agent in agents], **detail}
        await self._store.audit(AuditEntry(principal=self._principal(context), action=action, detail=described))


def _stopping() -> RpcError:
    return refuse(code_pb2.UNAVAILABLE, "CONTROLLER_STOPPING", "the controller is stopping; come back later")
