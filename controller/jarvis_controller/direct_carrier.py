# SPDX-License-Identifier: Apache-2.0
"""The carrier in which the controller dials: an mTLS channel to each agent.

TLS proves that the peer holds a certificate of the fleet for `<id>.agents.<fleet>`; which key that is, gRPC does not tell its
clients, so agents are shown as not bound to their channel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from jarvis_trust.commands import AGENT_SERVICE
from jarvis_trust.identities import Identity, Role

from jarvis_controller.agent_carrier import Metadata, connection_closed
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.rpc_status import RpcError, status_of
from jarvis_controller.tls import ControllerCredentials

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Evidence holds an event log of up to 4 MiB; flow batches are much smaller."""

_OLD_CERTIFICATE_S = 86_400.0
"""How long a stream may go on over a connection that began with our certificate of before."""

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    # Two agents behind one address must not share a connection, nor two generations of our certificate.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


@dataclass(slots=True, kw_only=True)
class _Connection:
    """A channel to one agent."""

    channel: grpc.aio.Channel
    address: str
    generation: int
    controller_spki: bytes
    agent_spki: None = None

    def serves(self, address: str, generation: int) -> bool:
        """Whether it leads there with our certificate in force, and is not waiting out gRPC's own backoff after a failure.

        How often an agent is tried is the attestation loop's to say, and a command must not wait for it.
        """
        failed = self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return not failed and (self.address, self.generation) == (address, generation)

    async def unary(self, rpc: str, payload: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        method: Any = self.channel.unary_unary(AGENT_SERVICE + rpc, request_serializer=None, response_deserializer=None)
        call = method(payload, metadata=metadata, timeout=timeout_s)
        try:
            with _as_rpc_error():
                answer: bytes = await call
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                call.cancel()
        return answer

    async def stream(self, rpc: str, payload: bytes, metadata: Metadata) -> AsyncGenerator[bytes, None]:
        method: Any = self.channel.unary_stream(AGENT_SERVICE + rpc, request_serializer=None, response_deserializer=None)
        call = method(payload, metadata=metadata)
        try:
            with _as_rpc_error():
                async for message in call:
                    yield message
        finally:
            call.cancel()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Old:
    """A connection in whose place there is another one: it is closed once its calls have ended, or its grace is over."""

    connection: _Connection
    closing: asyncio.Task[None]


class DirectCarrier:
    """Channels to agents that serve a port of their own."""

    def __init__(self, credentials: ControllerCredentials, *, fleet: str, drain_s: float) -> None:
        """Args: drain_s: how long calls may go on over a channel to another address, or of another CA."""
        self._credentials = credentials
        self._fleet = fleet
        self._drain_s = drain_s
        self._connections: dict[str, _Connection] = {}
        self._old: dict[str, list[_Old]] = {}

    def connect(self, agent: AgentRecord) -> _Connection:
        """A channel, made anew where there is none with our certificate in force. Whether somebody answers, a call shows."""
        material = self._credentials.current
        connection = self._connections.get(agent.agent_id)
        if connection is not None and connection.serves(agent.address, material.generation):
            return connection
        if connection is not None:
            # Calls under way, a long stream above all, go on with the certificate that they began with.
            renewed = connection.serves(agent.address, connection.generation)
            self._retire(agent.agent_id, connection, _OLD_CERTIFICATE_S if renewed else self._drain_s)
        identity = Identity(fleet=self._fleet, role=Role.AGENT, name=agent.agent_id)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", identity.dns_names[0]))
        channel = grpc.aio.secure_channel(agent.address, material.channel_credentials(), options=options)
        made = _Connection(
            channel=channel, address=agent.address, generation=material.generation, controller_spki=material.spki_sha256
        )
        self._connections[agent.agent_id] = made
        return made

    def is_connected(self, _agent_id: str) -> bool:
        """No: it is the controller that dials here."""
        return False

    async def end_calls(self, agent_id: str) -> None:
        """Closes the agent's channel and with it every call; the next one dials again."""
        await self.hang_up(agent_id)

    async def hang_up(self, agent_id: str) -> None:
        """Closes the agent's channels."""
        connection = self._connections.pop(agent_id, None)
        if connection is not None:
            await connection.channel.close(None)
        for old in self._old.pop(agent_id, []):
            old.closing.cancel()
            await old.connection.channel.close(None)

    def reconnect(self) -> None:
        """Begins anew with every agent: streams under way are cut soon, and are taken up again by who reads them."""
        for agent_id in {*self._connections, *self._old}:
            connections = [old.connection for old in self._old.get(agent_id, [])]
            for old in self._old.pop(agent_id, []):
                old.closing.cancel()
            if agent_id in self._connections:
                connections.append(self._connections.pop(agent_id))
            for connection in connections:
                self._retire(agent_id, connection, self._drain_s)

    async def close(self) -> None:
        """Closes every channel."""
        await asyncio.gather(*(self.hang_up(agent_id) for agent_id in {*self._connections, *self._old}))

    def _retire(self, agent_id: str, connection: _Connection, grace_s: float) -> None:
        old = _Old(connection=connection, closing=asyncio.get_running_loop().create_task(connection.channel.close(grace_s)))
        kept = self._old.setdefault(agent_id, [])
        kept.append(old)

        def drop(_: asyncio.Task[None]) -> None:
            if old in kept:
                kept.remove(old)

        old.closing.add_done_callback(drop)


@contextlib.contextmanager
def _as_rpc_error() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise RpcError(status_of(error)) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody cancelled us: gRPC raises this as well in a call whose channel was closed under it (quarantine, new certificate).
        raise connection_closed() from None
