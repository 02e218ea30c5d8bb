# SPDX-License-Identifier: Apache-2.0
"""What carries calls to agents: the seam between who commands and how bytes travel. Nothing above it knows which carrier it is.

AgentClient (what is asked, signatures) -> AgentCarrier.connect(agent) -> AgentConnection: bytes in, bytes out
    direct_carrier.py   the controller dials
    tunnel_carrier.py   the agent dials, its calls travel inside the stream that it opened
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from google.rpc import code_pb2

from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.rpc_status import RpcError, refuse

Metadata = tuple[tuple[str, bytes], ...]
"""Entries whose keys end in -bin."""


class AgentConnection(Protocol):
    """A way to one agent. Used from the event loop only."""

    @property
    def controller_spki(self) -> bytes:
        """SHA-256 of the SubjectPublicKeyInfo that we show on it."""

    @property
    def agent_spki(self) -> bytes | None:
        """The same of the agent, as this very connection showed it; None: the carrier cannot see it."""

    async def unary(self, rpc: str, payload: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """One call; the answer's bytes.

        Args:
            rpc: a method of AgentService, e.g. "Attest".
            payload: the request's bytes.
            metadata: of the call.
            timeout_s: its deadline from now.

        Raises:
            RpcError: it failed, or the agent refused.
        """

    def stream(self, rpc: str, payload: bytes, metadata: Metadata) -> AsyncGenerator[bytes, None]:
        """One call that a stream answers; the messages' bytes as they come. Closing it cancels the call.

        Raises:
            RpcError: it failed, or the agent refused or ended it with an error.
        """


class AgentCarrier(Protocol):
    """Ways to all agents that use it. Used from the event loop only."""

    def connect(self, agent: AgentRecord) -> AgentConnection:
        """The way to an agent now; do not keep it over calls.

        Raises:
            RpcError: UNAVAILABLE, there is none.
        """

    def is_connected(self, agent_id: str) -> bool:
        """Whether an agent that dials by itself is there now."""

    async def end_calls(self, agent_id: str) -> None:
        """Ends every call to an agent that is under way; new ones may follow."""

    async def hang_up(self, agent_id: str) -> None:
        """Ends the way itself."""

    async def close(self) -> None:
        """Ends every way."""


def connection_closed() -> RpcError:
    """What a call ends with whose connection the controller has ended (quarantine, retirement, its own end)."""
    return refuse(code_pb2.UNAVAILABLE, "CONNECTION_CLOSED", "the controller closed its connection to the agent")
