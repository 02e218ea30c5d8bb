# SPDX-License-Identifier: Apache-2.0
"""Commands agents that are proved, and only those; fans a request out and gives every agent's answer as it comes.

An agent without a lease is attested first. One that restarted in the meantime refuses the command: it is attested at once and
commanded once more. Whatever fails is that agent's own status, never the whole request's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from google.rpc import code_pb2, status_pb2
from jarvis_trust.errors import TrustError
from jarvis_trust.status import reason_of

from jarvis_controller.agent_client import AgentClient, Command
from jarvis_controller.attestation import Attester, UnknownAgentError
from jarvis_controller.leases import ActiveLease
from jarvis_controller.rpc_status import RpcError, refuse, refuse_trust

K = TypeVar("K")
T = TypeVar("T")

# The agent runs another process, or counts another lease, than the one the command was signed for.
_ATTEST_AGAIN = frozenset(
    {"AGENT_UNATTESTED", "LEASE_EXPIRED", "LEASE_STALE", "LEASE_INVALID", "COMMAND_SIGNATURE_INVALID", "COMMAND_EXPIRED",
     "AGENT_NOT_CONNECTED", "TUNNEL_REPLACED"}
)  # fmt: skip


class Commander:
    """Sends leased methods to agents, for one event loop."""

    def __init__(self, *, client: AgentClient, attester: Attester) -> None:
        self._client = client
        self._attester = attester

    async def call(self, agent_id: str, command: Command) -> bytes:
        """Sends a unary command; the response's bytes.

        Raises:
            RpcError: with the status that is the agent's outcome.
        """
        with _as_status(agent_id):
            agent, lease = await self._attester.ensure_lease(agent_id)
            try:
                return await self._client.command(agent, lease, command)
            except RpcError as error:
                if not _calls_for_attestation(error.status):
                    raise
            agent, lease = await self._attester.ensure_lease(agent_id, instead_of=lease.sequence)
            return await self._client.command(agent, lease, command)

    async def stream(
        self, agent_id: str, command: Command, *, on_lease: Callable[[ActiveLease], None] = lambda _: None
    ) -> AsyncGenerator[bytes, None]:
        """Sends a command that a stream answers; yields its messages' bytes. Closing it ends the call.

        Args:
            agent_id: a full id.
            command: what to send.
            on_lease: told, before each attempt, the lease that it is made under: a message that follows is from its session.

        Raises:
            RpcError: with the status that is the agent's outcome.
        """
        with _as_status(agent_id):
            agent, lease = await self._attester.ensure_lease(agent_id)
            begun = False
            on_lease(lease)
            try:
                async with contextlib.aclosing(self._client.stream(agent, lease, command)) as messages:
                    async for message in messages:
                        begun = True
                        yield message
            except RpcError as error:
                if begun or not _calls_for_attestation(error.status):
                    raise
            else:
                return
            agent, lease = await self._attester.ensure_lease(agent_id, instead_of=lease.sequence)
            on_lease(lease)
            async with contextlib.aclosing(self._client.stream(agent, lease, command)) as messages:
                async for message in messages:
                    yield message


def _calls_for_attestation(status: status_pb2.Status) -> bool:
    """Whether the agent may be another process than it was, or gone: then it is attested, and with that found or made STALE.

    Commanding once more is safe: the request id is the same, and an agent carries it out once.
    """
    reason = reason_of(status)
    return reason in _ATTEST_AGAIN or (not reason and status.code == code_pb2.UNAVAILABLE)


@contextlib.contextmanager
def _as_status(agent_id: str) -> Iterator[None]:
    try:
        yield
    except UnknownAgentError as error:
        raise refuse(code_pb2.NOT_FOUND, "AGENT_NOT_FOUND", f"agent {agent_id} is not enrolled") from error
    except TrustError as error:
        raise refuse_trust(code_pb2.INVALID_ARGUMENT, error) from error


async def fan_out(items: Iterable[K], work: Callable[[K], Awaitable[T]], *, concurrency: int) -> AsyncGenerator[T, None]:
    """Runs `work` on every item, `concurrency` at a time, and yields the results as they come. Closing it cancels the rest."""
    slots = asyncio.Semaphore(concurrency)

    async def one(item: K) -> T:
        async with slots:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
