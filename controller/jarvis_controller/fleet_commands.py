# SPDX-License-Identifier: Apache-2.0
"""A command that changes something, to every selected agent, once per request id, with an audit entry for each.

request, CommandKind -> known outcomes of this request id given again, the others commanded -> outcome stored, audited -> caller
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2
from jarvis.capture.v1 import fleet_pb2

from jarvis_controller.agent_client import Command
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.audit_log import AuditEntry
from jarvis_controller.capture_request import check_request_id
from jarvis_controller.commander import Commander, fan_out
from jarvis_controller.records import RequestConflictError
from jarvis_controller.rpc_status import OK, RpcError, bad_field, malformed_answer
from jarvis_controller.selection import read_selector, select
from jarvis_controller.store import Store

Mutation = (
    fleet_pb2.StartCapturesRequest
    | fleet_pb2.StopCapturesRequest
    | fleet_pb2.FleetUpdateInterfacesRequest
    | fleet_pb2.EnableExportsRequest
    | fleet_pb2.DisableExportsRequest
)
O = TypeVar("O", fleet_pb2.CaptureOutcome, fleet_pb2.ExportOutcome)  # noqa: E741 - an outcome


@dataclass(frozen=True, slots=True)
class CommandKind(Generic[O]):
    """One of AgentService's methods, as operators have it."""

    rpc: str
    action: str
    """What the audit chain calls it."""
    outcome: type[O]
    read: Callable[[bytes], O]
    """The outcome of a success, without agent and status, from the response's bytes; raises DecodeError."""


class FleetCommands:
    """Sends them. One instance per controller."""

    def __init__(self, *, store: Store, commander: Commander, concurrency: int) -> None:
        """Args: concurrency: agents commanded at once by one request."""
        self._store = store
        self._commander = commander
        self._concurrency = concurrency
        self._under_way: set[asyncio.Future[Any]] = set()

    async def settle(self) -> None:
        """Waits for the commands under way and their audit entries."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def run(self, request: Mutation, kind: CommandKind[O], message: Message, *, principal: str) -> AsyncGenerator[O, None]:
        """An outcome for every selected agent, as they come.

        Args:
            request: of the operator: its selector and its request id; the rest was checked.
            kind: what is commanded.
            message: what each agent is sent.
            principal: SPIFFE id of the operator.

        Raises:
            RpcError: the selector means nobody; the request id was used for something else.
        """
        request_id = check_request_id(request.request_id)
        agents = select(read_selector(request.selector), await self._store.agents(), may_be_empty=False)
        asked = type(request).FromString(request.SerializeToString())
        asked.ClearField("request_id")
        payload = asked.SerializeToString(deterministic=True)
        try:
            known = await self._store.begin_request(request_id, principal=principal, method=kind.rpc, payload=payload)
        except RequestConflictError as error:
            raise bad_field("request_id", f"{error}; a new UUID is accepted") from error
        command = Command(rpc=kind.rpc, request=message, principal=principal, request_id=request_id)

        async def one(agent: AgentRecord) -> O:
            if agent.agent_id in known:
                return kind.outcome.FromString(known[agent.agent_id])
            outcome = await self._command(agent, command, kind)
            await self._store.record_outcome(_entry(agent, command, kind.action, outcome), outcome)
            return outcome

        async def to_the_end(agent: AgentRecord) -> O:
            # Once an agent was commanded its outcome is audited, even when the operator goes away in the middle.
            task = asyncio.ensure_future(one(agent))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            return await asyncio.shield(task)

        async with contextlib.aclosing(fan_out(agents, to_the_end, concurrency=self._concurrency)) as answers:
            async for answer in answers:
                yield answer

    async def _command(self, agent: AgentRecord, command: Command, kind: CommandKind[O]) -> O:
        try:
            outcome = kind.read(await self._commander.call(agent.agent_id, command))
        except RpcError as error:
            return kind.outcome(agent_id=agent.agent_id, status=error.status)
        except DecodeError:
            return kind.outcome(agent_id=agent.agent_id, status=malformed_answer().status)
        outcome.agent_id = agent.agent_id
        outcome.status.CopyFrom(OK)
        return outcome


def _entry(
    agent: AgentRecord, command: Command, action: str, outcome: fleet_pb2.CaptureOutcome | fleet_pb2.ExportOutcome
) -> AuditEntry:
    detail = {
        "code": code_pb2.Code.Name(code_pb2.Code.ValueType(outcome.status.code)),
        "message": outcome.status.message,
        "request": MessageToDict(command.request, preserving_proto_field_name=True),
    }
    return AuditEntry(
        principal=command.principal, action=action, agent_id=agent.agent_id, detail=detail, request_id=command.request_id
    )
