# SPDX-License-Identifier: Apache-2.0
"""FleetService's exports: enabled, disabled and listed over a selector, with one answer per agent as it comes.

Where flow records may go is the policy's to say. Roles are checked before a handler runs (authorization.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError
from jarvis.capture.v1 import agent_pb2, fleet_pb2
from jarvis_trust.collector_allow_list import AllowList

from jarvis_controller.access_log import AccessLog
from jarvis_controller.agent_client import Command
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.authorization import caller_of
from jarvis_controller.commander import Commander, fan_out
from jarvis_controller.export_request import check_allowed, check_export, check_export_id
from jarvis_controller.fleet_commands import CommandKind, FleetCommands
from jarvis_controller.rpc_status import OK, RpcError, malformed_answer
from jarvis_controller.selection import read_selector, select
from jarvis_controller.store import Store

Context = grpc.aio.ServicerContext[Any, Any]


def _enabled(payload: bytes) -> fleet_pb2.ExportOutcome:
    return fleet_pb2.ExportOutcome(exports=[agent_pb2.EnableExportResponse.FromString(payload).status])


def _disabled(payload: bytes) -> fleet_pb2.ExportOutcome:
    return fleet_pb2.ExportOutcome(exports=[agent_pb2.DisableExportResponse.FromString(payload).status])


_ENABLE = CommandKind("EnableExport", "export.enable", fleet_pb2.ExportOutcome, _enabled)
_DISABLE = CommandKind("DisableExport", "export.disable", fleet_pb2.ExportOutcome, _disabled)


class ExportService:
    """The handlers. One instance per controller."""

    def __init__(
        self,
        *,
        fleet: str,
        concurrency: int,
        store: Store,
        commander: Commander,
        commands: FleetCommands,
        access: AccessLog,
        collectors: Callable[[], AllowList],
    ) -> None:
        """For one event loop.

        Args:
            fleet: whose operators may call.
            concurrency: agents asked at once by one request.
            store: the agents.
            commander: asks proved agents.
            commands: changes something at them.
            access: told of who looks.
            collectors: what the policy in force admits.
        """
        self._fleet = fleet
        self._concurrency = concurrency
        self._store = store
        self._commander = commander
        self._commands = commands
        self._access = access
        self._collectors = collectors

    async def enable_exports(
        self, request: fleet_pb2.EnableExportsRequest, context: Context
    ) -> AsyncGenerator[fleet_pb2.ExportOutcome, None]:
        """EnableExports."""
        check_export(request.spec)
        check_allowed(request.spec, self._collectors())
        command = agent_pb2.EnableExportRequest(spec=request.spec)
        outcomes = self._commands.run(request, _ENABLE, command, principal=self._principal(context))
        async with contextlib.aclosing(outcomes) as answers:
            async for answer in answers:
                yield answer

    async def disable_exports(
        self, request: fleet_pb2.DisableExportsRequest, context: Context
    ) -> AsyncGenerator[fleet_pb2.ExportOutcome, None]:
        """DisableExports."""
        check_export_id("export_id", request.export_id)
        command = agent_pb2.DisableExportRequest(export_id=request.export_id, discard=request.discard)
        outcomes = self._commands.run(request, _DISABLE, command, principal=self._principal(context))
        async with contextlib.aclosing(outcomes) as answers:
            async for answer in answers:
                yield answer

    async def list_exports(
        self, request: fleet_pb2.FleetListExportsRequest, context: Context
    ) -> AsyncGenerator[fleet_pb2.ExportOutcome, None]:
        """ListExports."""
        agents = select(read_selector(request.selector), await self._store.agents(), may_be_empty=False)
        principal = self._principal(context)
        await self._access.read(principal, "ListExports", [agent.agent_id for agent in agents], request)
        command = Command(rpc="ListExports", request=agent_pb2.ListExportsRequest(), principal=principal)

        async def one(agent: AgentRecord) -> fleet_pb2.ExportOutcome:
            try:
                answer = agent_pb2.ListExportsResponse.FromString(await self._commander.call(agent.agent_id, command))
            except RpcError as error:
                return fleet_pb2.ExportOutcome(agent_id=agent.agent_id, status=error.status)
            except DecodeError:
                return fleet_pb2.ExportOutcome(agent_id=agent.agent_id, status=malformed_answer().status)
            return fleet_pb2.ExportOutcome(agent_id=agent.agent_id, status=OK, exports=answer.exports)

        async with contextlib.aclosing(fan_out(agents, one, concurrency=self._concurrency)) as answers:
            async for answer in answers:
                yield answer

    def _principal(self, context: Context) -> str:
        return caller_of(context, self._fleet).uri
