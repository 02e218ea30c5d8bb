# SPDX-License-Identifier: Apache-2.0
"""Agent ids for the shell's TAB: asked of the controller, which has two seconds."""

import asyncio

import typer
from grpc import aio
from jarvis.capture.v1.fleet_pb2 import ListAgentsRequest
from jarvis.capture.v1.fleet_pb2_grpc import FleetServiceStub

from jarvisctl.client import open_channel
from jarvisctl.config import CtlConfig, load_config
from jarvisctl.credentials import load_credentials
from jarvisctl.errors import CtlError

_TIMEOUT_S = 2.0
_MOST = 1000


def complete_agent(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """(id, hostname) of the agents that begin so.

    Empty when the controller cannot be asked: a shell prompt is no place for an error, and the command itself will say it.
    """
    try:
        config = load_config(context.find_root().params.get("config"))
        return asyncio.run(_agents(config, incomplete))
    except (CtlError, aio.AioRpcError):
        return []


async def _agents(config: CtlConfig, incomplete: str) -> list[tuple[str, str]]:
    async with open_channel(config, load_credentials(config)) as channel:
        answer = await FleetServiceStub(channel).ListAgents(ListAgentsRequest(page_size=_MOST), timeout=_TIMEOUT_S)
    return [(agent.agent_id, agent.hostname) for agent in answer.agents if agent.agent_id.startswith(incomplete)]
