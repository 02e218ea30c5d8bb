# SPDX-License-Identifier: Apache-2.0
"""The carrier in which agents dial: the newest tunnel of each agent.

A newer tunnel replaces the older one. Where both are of one agent process (its certificate was renewed), the older's streams end
with TUNNEL_REPLACED and are resumed over the newer by their tokens, while what was asked is still answered over the older; else
all of the older's calls end at once. A quarantine ends every call and leaves the tunnel: the agent has to be told that its lease
is over, and can be attested when it is released. A retired agent is hung up on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from google.rpc import code_pb2

from jarvis_controller.agent_carrier import connection_closed
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.rpc_status import RpcError, refuse
from jarvis_controller.tunnel_session import TunnelSession

_DRAIN_S = 60.0
"""Longest time for which unary calls may go on over a tunnel that was replaced."""


class TunnelCarrier:
    """The tunnels of all agents by agent id. Used from the event loop only."""

    def __init__(self) -> None:
        self._sessions: dict[str, TunnelSession] = {}
        self._draining: set[TunnelSession] = set()

    def connect(self, agent: AgentRecord) -> TunnelSession:
        """The agent's tunnel.

        Raises:
            RpcError: AGENT_NOT_CONNECTED.
        """
        session = self._sessions.get(agent.agent_id)
        if session is None:
            raise refuse(code_pb2.UNAVAILABLE, "AGENT_NOT_CONNECTED", "the agent has no tunnel to this controller now")
        return session

    def is_connected(self, agent_id: str) -> bool:
        """Whether there is a tunnel."""
        return agent_id in self._sessions

    def with_key(self, agent_id: str, agent_spki: bytes) -> list[TunnelSession]:
        """The tunnels of an agent that were opened with this TLS key, the newest first."""
        found = [session for session in self._draining if session.agent_id == agent_id]
        newest = self._sessions.get(agent_id)
        return [session for session in (newest, *found) if session is not None and session.agent_spki == agent_spki]

    def open(self) -> Iterable[TunnelSession]:
        """Every tunnel that is connected."""
        return [*self._sessions.values(), *self._draining]

    def put(self, session: TunnelSession) -> None:
        """A new tunnel, in place of the one that the agent had."""
        older = self._sessions.get(session.agent_id)
        self._sessions[session.agent_id] = session
        if older is None:
            return
        replaced = refuse(code_pb2.UNAVAILABLE, "TUNNEL_REPLACED", "the agent has opened a newer tunnel")
        if older.process_id != session.process_id or older.agent_spki != session.agent_spki:
            older.end(replaced)
            return
        self._draining.add(older)
        older.drain(replaced)
        asyncio.get_running_loop().call_later(_DRAIN_S, older.end, replaced)

    def remove(self, session: TunnelSession, error: RpcError) -> None:
        """A tunnel's connection is over."""
        session.end(error)
        self._draining.discard(session)
        if self._sessions.get(session.agent_id) is session:
            del self._sessions[session.agent_id]

    async def end_calls(self, agent_id: str) -> None:
        """Ends the agent's calls; its tunnel stays."""
        for session in self._of(agent_id):
            session.end_calls(connection_closed())

    async def hang_up(self, agent_id: str) -> None:
        """Ends the agent's tunnel."""
        for session in self._of(agent_id):
            self.remove(session, connection_closed())

    async def close(self) -> None:
        """Ends every tunnel: their agents come back later."""
        for session in self.open():
            self.remove(
                session, refuse(code_pb2.UNAVAILABLE, "CONTROLLER_STOPPING", "the controller is stopping; come back later")
            )

    def _of(self, agent_id: str) -> list[TunnelSession]:
        return [session for session in self.open() if session.agent_id == agent_id]
