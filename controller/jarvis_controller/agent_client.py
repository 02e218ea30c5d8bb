# SPDX-License-Identifier: Apache-2.0
"""Speaks to agents: an mTLS channel each, raw bytes, commands signed for one agent, process, lease and payload.

Direct carrier: the controller dials. TLS proves that the peer holds a certificate of the fleet for `<id>.agents.<fleet>`;
which key that is, gRPC does not tell its clients, so agents are shown as not bound to their channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2
from jarvis.capture.v1 import agent_pb2, trust_pb2
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY, CommandSigner
from jarvis_trust.identities import Identity, Role

from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.leases import ActiveLease, boottime_ns
from jarvis_controller.rpc_status import RpcError, refuse, status_of
from jarvis_controller.tls import ControllerCredentials

M = TypeVar("M", bound=Message)

_COMMAND_VALIDITY_NS = 60 * 10**9
"""How long a signed command may be under way. Streams are checked at their start; the lease bounds them after that."""
_MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Evidence holds an event log of up to 4 MiB; flow batches are much smaller."""

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    # Two agents behind one address must not share a connection, nor two generations of our certificate.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A leased method's request, and on whose behalf."""

    rpc: str
    """E.g. "StartCapture"."""
    request: Message
    principal: str
    """SPIFFE id."""
    request_id: str = ""
    """UUID; empty: a new one for each attempt."""
    timeout_s: float | None = None
    """Deadline of a unary call; None: the configuration's."""


@dataclass(slots=True, kw_only=True)
class _Connection:
    channel: grpc.aio.Channel
    address: str
    generation: int
    controller_spki: bytes

    def serves(self, address: str, generation: int) -> bool:
        """Whether it leads there with our certificate in force, and is not waiting out gRPC's own backoff after a failure.

        How often an agent is tried is the attestation loop's to say, and a command must not wait for it.
        """
        failed = self.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return not failed and (self.address, self.generation) == (address, generation)


class AgentClient:
    """Channels to all agents. Used from the event loop only."""

    def __init__(self, credentials: ControllerCredentials, signer: CommandSigner, *, fleet: str, timeout_s: float) -> None:
        self._credentials = credentials
        self._signer = signer
        self._fleet = fleet
        self._timeout_s = timeout_s
        self._connections: dict[str, _Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def attest(
        self, agent: AgentRecord, nonce: bytes, pcrs: tuple[int, ...], *, known_boot_log_sha256: bytes = b""
    ) -> tuple[trust_pb2.Evidence, bytes]:
        """Puts a challenge to an agent.

        Args:
            agent: whom.
            nonce: 32 bytes.
            pcrs: what is to be quoted.
            known_boot_log_sha256: a boot log that it need not send again; empty = none.

        Returns:
            The evidence, and the SHA-256 of the SubjectPublicKeyInfo that we showed on the channel it came through.

        Raises:
            RpcError: the call failed, or the answer was not an AttestResponse.
        """
        connection = self._connect(agent)
        request = agent_pb2.AttestRequest(nonce=nonce, pcrs=pcrs, known_boot_log_sha256=known_boot_log_sha256)
        answer = await self._unary(connection, "Attest", request.SerializeToString(), ())
        return _parse(agent_pb2.AttestResponse, answer).evidence, connection.controller_spki

    async def info(self, agent: AgentRecord) -> agent_pb2.GetAgentInfoResponse:
        """Who the agent says it is.

        Raises:
            RpcError: the call failed.
        """
        request = agent_pb2.GetAgentInfoRequest()
        return _parse(
            agent_pb2.GetAgentInfoResponse,
            await self._unary(self._connect(agent), "GetAgentInfo", request.SerializeToString(), ()),
        )

    async def renew_lease(self, agent: AgentRecord, lease: trust_pb2.SignedLease) -> None:
        """Hands a lease over.

        Raises:
            RpcError: the agent did not take it.
        """
        request = agent_pb2.RenewLeaseRequest(lease=lease)
        await self._unary(self._connect(agent), "RenewLease", request.SerializeToString(), ())

    async def status(self, agent: AgentRecord) -> agent_pb2.GetStatusResponse:
        """State of capture, lease and firmware.

        Raises:
            RpcError: the call failed.
        """
        request = agent_pb2.GetStatusRequest()
        return _parse(
            agent_pb2.GetStatusResponse, await self._unary(self._connect(agent), "GetStatus", request.SerializeToString(), ())
        )

    async def command(self, agent: AgentRecord, lease: ActiveLease, command: Command) -> bytes:
        """Sends a leased unary command; the response's bytes, not parsed.

        Raises:
            RpcError: it could not be signed, the call failed or the agent refused.
        """
        payload = command.request.SerializeToString(deterministic=True)
        metadata = self._authorize(agent, lease, command, payload)
        return await self._unary(self._connect(agent), command.rpc, payload, metadata, timeout_s=command.timeout_s)

    async def stream(self, agent: AgentRecord, lease: ActiveLease, command: Command) -> AsyncGenerator[bytes, None]:
        """Sends a leased command that a stream answers; yields the messages' bytes, not parsed. Closing it cancels the call.

        Raises:
            RpcError: it could not be signed, the call failed or the agent refused or ended it with an error.
        """
        payload = command.request.SerializeToString(deterministic=True)
        metadata = self._authorize(agent, lease, command, payload)
        async with contextlib.aclosing(self._stream(agent, command.rpc, payload, metadata)) as messages:
            async for message in messages:
                yield message

    async def events(self, agent: AgentRecord, source_id: str, sequence: int) -> AsyncGenerator[bytes, None]:
        """What happened at an agent after the event that is named; yields StreamEventsResponse bytes. Needs no lease.

        Raises:
            RpcError: the call failed, or the agent refused or ended it.
        """
        payload = agent_pb2.StreamEventsRequest(source_id=source_id, sequence=sequence).SerializeToString()
        async with contextlib.aclosing(self._stream(agent, "StreamEvents", payload, ())) as messages:
            async for message in messages:
                yield message

    async def _stream(
        self, agent: AgentRecord, rpc: str, payload: bytes, metadata: tuple[tuple[str, bytes], ...]
    ) -> AsyncGenerator[bytes, None]:
        method: Any = self._connect(agent).channel.unary_stream(
            AGENT_SERVICE + rpc, request_serializer=None, response_deserializer=None
        )
        call = method(payload, metadata=metadata)
        try:
            with _as_rpc_error():
                async for message in call:
                    yield message
        finally:
            call.cancel()

    async def forget(self, agent_id: str) -> None:
        """Closes the agent's channel and ends every call on it."""
        connection = self._connections.pop(agent_id, None)
        if connection is not None:
            await connection.channel.close(None)

    async def close(self) -> None:
        """Closes every channel."""
        await asyncio.gather(*(self.forget(agent_id) for agent_id in list(self._connections)), *self._closing)

    def _connect(self, agent: AgentRecord) -> _Connection:
        material = self._credentials.current
        connection = self._connections.get(agent.agent_id)
        if connection is not None and connection.serves(agent.address, material.generation):
            return connection
        if connection is not None:
            self._retire(connection)
        identity = Identity(fleet=self._fleet, role=Role.AGENT, name=agent.agent_id)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", identity.dns_names[0]))
        channel = grpc.aio.secure_channel(agent.address, material.channel_credentials(), options=options)
        made = _Connection(
            channel=channel, address=agent.address, generation=material.generation, controller_spki=material.spki_sha256
        )
        self._connections[agent.agent_id] = made
        return made

    def _retire(self, connection: _Connection) -> None:
        # Calls under way, a long stream above all, go on for a while on the certificate they began with.
        task = asyncio.get_running_loop().create_task(connection.channel.close(self._timeout_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _authorize(
        self, agent: AgentRecord, lease: ActiveLease, command: Command, payload: bytes
    ) -> tuple[tuple[str, bytes], ...]:
        authorization = self._signer.authorize(
            agent_id=agent.agent_id,
            method=AGENT_SERVICE + command.rpc,
            session_id=lease.session_id,
            lease_sequence=lease.sequence,
            request_id=command.request_id or str(uuid.uuid4()),
            principal=command.principal,
            expires_ns=lease.expires_after(boottime_ns(), _COMMAND_VALIDITY_NS),
            payload=payload,
        )
        return ((AUTHORIZATION_METADATA_KEY, authorization.SerializeToString()),)

    async def _unary(
        self,
        connection: _Connection,
        rpc: str,
        payload: bytes,
        metadata: tuple[tuple[str, bytes], ...],
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        method: Any = connection.channel.unary_unary(AGENT_SERVICE + rpc, request_serializer=None, response_deserializer=None)
        call = method(payload, metadata=metadata, timeout=timeout_s or self._timeout_s)
        try:
            with _as_rpc_error():
                answer: bytes = await call
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                call.cancel()
        return answer


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
        message = "the controller closed its connection to the agent"
        raise refuse(code_pb2.UNAVAILABLE, "CONNECTION_CLOSED", message) from None


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        message = f"the agent's answer is not a {kind.DESCRIPTOR.name}"
        raise refuse(code_pb2.INTERNAL, "AGENT_ANSWER_MALFORMED", message) from error
