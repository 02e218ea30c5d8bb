# SPDX-License-Identifier: Apache-2.0
"""Speaks to agents: raw bytes, commands signed for one agent, process, lease and payload, over whichever carrier reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2
from jarvis.capture.v1 import agent_pb2, trust_pb2
from jarvis_trust.commands import AGENT_SERVICE, AUTHORIZATION_METADATA_KEY, CommandSigner

from jarvis_controller.agent_carrier import AgentCarrier, AgentConnection, Metadata
from jarvis_controller.agent_record import AgentRecord, Carrier
from jarvis_controller.leases import ActiveLease, boottime_ns
from jarvis_controller.rpc_status import refuse

M = TypeVar("M", bound=Message)

_COMMAND_VALIDITY_NS = 60 * 10**9
"""How long a signed command may be under way. Streams are checked at their start; the lease bounds them after that."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """An answer to a challenge, and whose keys the connection showed that it came over."""

    evidence: trust_pb2.Evidence
    controller_spki: bytes
    """SHA-256 of our SubjectPublicKeyInfo."""
    agent_spki: bytes | None
    """The same of the agent; None: the carrier cannot see it."""


class AgentClient:
    """Calls to all agents. Used from the event loop only."""

    def __init__(
        self,
        carriers: Mapping[Carrier, AgentCarrier],
        signer: CommandSigner,
        *,
        timeout_s: float,
        check_agent: Callable[[str], None] = lambda _: None,
    ) -> None:
        """For one event loop.

        Args:
            carriers: how agents are reached.
            signer: signs commands.
            timeout_s: deadline of one unary call.
            check_agent: refuses (RpcError) to speak to an agent, by its id.
        """
        self._carriers = carriers
        self._signer = signer
        self._timeout_s = timeout_s
        self._check_agent = check_agent

    async def attest(
        self, agent: AgentRecord, nonce: bytes, pcrs: tuple[int, ...], *, known_boot_log_sha256: bytes = b""
    ) -> Attested:
        """Puts a challenge to an agent.

        Args:
            agent: whom; what it says of an IMA list is not sent again.
            nonce: 32 bytes.
            pcrs: what is to be quoted.
            known_boot_log_sha256: a boot log that it need not send again; empty = none.

        Raises:
            RpcError: the call failed, or the answer was not an AttestResponse.
        """
        connection = self._connect(agent)
        request = agent_pb2.AttestRequest(nonce=nonce, pcrs=pcrs, known_boot_log_sha256=known_boot_log_sha256)
        if agent.ima is not None:
            request.known_ima_entries, request.known_ima_boot_id = agent.ima.entries, agent.ima.boot_id
        answer = await self._unary(connection, "Attest", request.SerializeToString(), ())
        return Attested(
            evidence=_parse(agent_pb2.AttestResponse, answer).evidence,
            controller_spki=connection.controller_spki,
            agent_spki=connection.agent_spki,
        )

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

    async def renew_lease(
        self,
        agent: AgentRecord,
        lease: trust_pb2.SignedLease,
        *,
        approval: trust_pb2.StoreApproval | None = None,
        ends: bool = False,
    ) -> None:
        """Hands a lease over, with an approval of the boot state that was proved.

        With `ends`, one that ends what the agent holds, which a revoked agent is told too.

        Raises:
            RpcError: the agent did not take it.
        """
        request = agent_pb2.RenewLeaseRequest(lease=lease, store_approval=approval)
        await self._unary(self._connect(agent, even_revoked=ends), "RenewLease", request.SerializeToString(), ())

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
        async with contextlib.aclosing(self._connect(agent).stream(command.rpc, payload, metadata)) as messages:
            async for message in messages:
                yield message

    async def events(self, agent: AgentRecord, source_id: str, sequence: int) -> AsyncGenerator[bytes, None]:
        """What happened at an agent after the event that is named; yields StreamEventsResponse bytes. Needs no lease.

        Raises:
            RpcError: the call failed, or the agent refused or ended it.
        """
        payload = agent_pb2.StreamEventsRequest(source_id=source_id, sequence=sequence).SerializeToString()
        async with contextlib.aclosing(self._connect(agent).stream("StreamEvents", payload, ())) as messages:
            async for message in messages:
                yield message

    def is_connected(self, agent_id: str) -> bool:
        """Whether an agent that dials by itself is there now."""
        return any(carrier.is_connected(agent_id) for carrier in self._carriers.values())

    async def forget(self, agent_id: str) -> None:
        """Ends every call to the agent that is under way."""
        await asyncio.gather(*(carrier.end_calls(agent_id) for carrier in self._carriers.values()))

    async def hang_up(self, agent_id: str) -> None:
        """Ends the connection to an agent that is none of ours any more."""
        await asyncio.gather(*(carrier.hang_up(agent_id) for carrier in self._carriers.values()))

    async def close(self) -> None:
        """Ends every connection."""
        await asyncio.gather(*(carrier.close() for carrier in self._carriers.values()))

    def _connect(self, agent: AgentRecord, *, even_revoked: bool = False) -> AgentConnection:
        if not even_revoked:
            self._check_agent(agent.agent_id)
        return self._carriers[agent.carrier].connect(agent)

    def _authorize(self, agent: AgentRecord, lease: ActiveLease, command: Command, payload: bytes) -> Metadata:
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
        connection: AgentConnection,
        rpc: str,
        payload: bytes,
        metadata: Metadata,
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        return await connection.unary(rpc, payload, metadata, timeout_s or self._timeout_s)


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        message = f"the agent's answer is not a {kind.DESCRIPTOR.name}"
        raise refuse(code_pb2.INTERNAL, "AGENT_ANSWER_MALFORMED", message) from error
