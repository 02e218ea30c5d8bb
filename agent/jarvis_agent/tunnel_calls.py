# SPDX-License-Identifier: Apache-2.0
"""A call that came through the tunnel, carried out by the very handlers that serve a port.

    Call -> handler of the method's full name -> behaviour(request, TunnelContext) -> answer bytes, messages, or a status

TunnelContext offers what the handlers use of grpc.aio.ServicerContext, so that a call ends here with the same google.rpc.Status
as over a port. Knows nothing of connections; tunnel_link.py sends what comes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from jarvis.capture.v1.tunnel_pb2 import Call

from jarvis_agent.peer import TUNNEL_AGENT_SPKI, TUNNEL_CONTROLLER_SPKI

_LOG = logging.getLogger(__name__)
_DETAILS_KEY = "grpc-status-details-bin"

MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""Of one message, as a controller that dials accepts it."""

Send = Callable[[bytes], Awaitable[None]]


class StreamEndedError(Exception):
    """The controller has ended the stream of a call: nobody takes its messages any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Details:
    """What a generic handler is asked with."""

    method: str
    invocation_metadata: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelEnds:
    """Whose keys a tunnel is between: SHA-256 of the SubjectPublicKeyInfo."""

    controller_spki_sha256: bytes
    """As the controller says."""
    agent_spki_sha256: bytes
    """As we showed it."""


class TunnelContext:
    """One call's context, for the handlers of AgentService."""

    def __init__(self, call: Call, ends: TunnelEnds) -> None:
        self._metadata = tuple(call.metadata.items())
        self._facts = {TUNNEL_CONTROLLER_SPKI: (ends.controller_spki_sha256,), TUNNEL_AGENT_SPKI: (ends.agent_spki_sha256,)}
        self.status = Status()
        """What the call was aborted with."""

    def invocation_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """The call's metadata."""
        return self._metadata

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What is known of the caller."""
        return self._facts

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Ends the call.

        Raises:
            grpc.aio.AbortError: always.
        """
        self.status = Status(code=code.value[0], message=details)
        for key, value in trailing_metadata or ():
            if key == _DETAILS_KEY:
                with contextlib.suppress(DecodeError):
                    self.status = Status.FromString(value)
        raise grpc.aio.AbortError(details)


async def carry_out(handlers: grpc.GenericRpcHandler[Any, Any], call: Call, ends: TunnelEnds, send: Send) -> tuple[Status, bytes]:
    """Carries a call out to its end, within its deadline; how it ended, and the answer of a unary one.

    Args:
        handlers: as served on a port.
        call: as it came.
        ends: of the tunnel that it came through.
        send: takes each message of a method that answers with a stream, and waits for room.

    Raises:
        StreamEndedError: from `send`.
        asyncio.CancelledError: this task was cancelled.
    """
    details: Any = _Details(method=call.method, invocation_metadata=tuple(call.metadata.items()))
    handler: Any = handlers.service(details)
    if handler is None:
        return Status(code=Code.UNIMPLEMENTED, message="Method not found!"), b""
    context = TunnelContext(call, ends)
    deadline = asyncio.timeout(call.timeout_ns / 1e9 if call.timeout_ns else None)
    try:
        async with deadline:
            return Status(), await _perform(handler, call.payload, context, send)
    except grpc.aio.AbortError:
        return context.status, b""
    except StreamEndedError:
        raise
    except TimeoutError as error:
        if deadline.expired():
            return Status(code=Code.DEADLINE_EXCEEDED, message="Deadline Exceeded"), b""
        return _unexpected(error), b""
    except Exception as error:  # noqa: BLE001 - as a port does: the call ends, the agent goes on
        return _unexpected(error), b""


async def _perform(handler: Any, payload: bytes, context: TunnelContext, send: Send) -> bytes:
    request = payload if handler.request_deserializer is None else handler.request_deserializer(payload)
    serialise = handler.response_serializer or bytes
    if not handler.response_streaming:
        return _sized(serialise(await handler.unary_unary(request, context)))
    messages: AsyncGenerator[Any, None] = handler.unary_stream(request, context)
    async with contextlib.aclosing(messages):
        async for message in messages:
            await send(_sized(serialise(message)))
    return b""


class _TooLargeError(Exception):
    """An answer that no controller would take."""


def _sized(message: bytes) -> bytes:
    if len(message) > MAX_ANSWER_BYTES:
        raise _TooLargeError(f"Sent message larger than max ({len(message)} vs. {MAX_ANSWER_BYTES})")
    return message


def _unexpected(error: Exception) -> Status:
    if isinstance(error, _TooLargeError):
        return Status(code=Code.RESOURCE_EXHAUSTED, message=str(error))
    _LOG.error("unexpected error in a call", exc_info=error)
    return Status(code=Code.UNKNOWN, message=f"Unexpected {type(error)}: {error}")
