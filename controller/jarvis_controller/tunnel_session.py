# SPDX-License-Identifier: Apache-2.0
"""One agent's tunnel, seen from the controller: calls go down as frames, answers and streams come up and find their call.

    unary()   Call frame -> ... -> CallAnswer with the response's bytes
    stream()  Call frame -> ... -> messages put by SendMessages, bounded by HTTP/2 -> CallAnswer with the status
    a call that nobody waits for any more: CancelCall; its answer is still due, once

Knows frames, not gRPC: tunnel_service.py reads and writes them. Used from the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1 import tunnel_pb2
from jarvis_trust.commands import AGENT_SERVICE

from jarvis_controller.agent_carrier import Metadata, connection_closed
from jarvis_controller.rpc_status import RpcError, malformed_answer, refuse

MAX_REQUEST_BYTES = 256 * 1024
"""Of a call's request, as on an agent's own port."""
_MAX_WAITING_FRAMES = 1024
_MAX_ABANDONED = 1024
"""Calls that were given up and whose answer has not come: an agent that answers none is not one to keep."""
_MAX_STATUS_BYTES = 16 * 1024
_MESSAGES_AHEAD = 2
"""Messages of a stream that wait for their reader here; the rest waits in HTTP/2's window and at the agent."""


@dataclass(slots=True)
class _Unary:
    """A call that one answer ends."""

    answer: asyncio.Future[bytes]

    def end(self, error: RpcError | None, payload: bytes = b"") -> None:
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(payload)


@dataclass(slots=True)
class StreamCall:
    """A call that a stream answers."""

    is_attached: bool = False
    """A SendMessages has come for it."""
    _messages: deque[bytes] = field(default_factory=deque)
    _has_ended: bool = False
    _error: RpcError | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _room: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, message: bytes) -> bool:
        """Hands a message over, waiting for room; False when nobody reads any more."""
        while len(self._messages) >= _MESSAGES_AHEAD and not self._has_ended:
            self._room.clear()
            await self._room.wait()
        if self._has_ended:
            return False
        self._messages.append(message)
        self._changed.set()
        return True

    async def next(self) -> bytes | None:
        """The next message; None at the end.

        Raises:
            RpcError: it ended with an error.
        """
        while True:
            if self._messages:
                self._room.set()
                return self._messages.popleft()
            if self._error is not None:
                raise self._error
            if self._has_ended:
                return None
            self._changed.clear()
            await self._changed.wait()

    def end(self, error: RpcError | None, _payload: bytes = b"") -> None:
        """No message comes after those that are here."""
        if not self._has_ended:
            self._has_ended, self._error = True, error
        self._changed.set()
        self._room.set()


class TunnelSession:
    """A tunnel from its hello to its end: the AgentConnection of an agent that dials."""

    def __init__(
        self,
        *,
        agent_id: str,
        process_id: bytes,
        agent_spki: bytes,
        controller_spki: bytes,
        not_after_s: float,
        ids: Iterator[int],
    ) -> None:
        """Open at once.

        Args:
            agent_id: of the client certificate.
            process_id: the hello's session_id: random per agent process.
            agent_spki: SHA-256 of the SubjectPublicKeyInfo of the leaf on this connection.
            controller_spki: what the agent is told to be ours.
            not_after_s: end of the leaf's life, Unix epoch.
            ids: of calls, never given twice while this controller runs: a late stream of an older tunnel finds nothing.
        """
        self.agent_id = agent_id
        self.process_id = process_id
        self.agent_spki: bytes = agent_spki
        self.controller_spki: bytes = controller_spki
        self.not_after_s = not_after_s
        self._ids = ids
        self._calls: dict[int, _Unary | StreamCall] = {}
        self._abandoned: set[int] = set()
        self._frames: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._is_draining = False
        self._ended: RpcError | None = None

    # -- for those who call

    async def unary(self, rpc: str, payload: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """See AgentConnection."""
        call = _Unary(asyncio.get_running_loop().create_future())
        call_id = self._open(call, rpc, payload, metadata, int(timeout_s * 1e9))
        try:
            async with asyncio.timeout(timeout_s):
                return await call.answer
        except TimeoutError:
            raise RpcError(status_pb2.Status(code=code_pb2.DEADLINE_EXCEEDED, message="Deadline Exceeded")) from None
        finally:
            self._close(call_id)

    async def stream(self, rpc: str, payload: bytes, metadata: Metadata) -> AsyncGenerator[bytes, None]:
        """See AgentConnection."""
        call = StreamCall()
        call_id = self._open(call, rpc, payload, metadata, 0)
        try:
            while (message := await call.next()) is not None:
                yield message
        finally:
            call.end(None)
            self._close(call_id)

    def end_calls(self, error: RpcError) -> None:
        """Ends every call; the tunnel stays."""
        for call_id in list(self._calls):
            call = self._calls[call_id]
            self._close(call_id)
            call.end(error)

    # -- for the connection

    async def next_frame(self) -> bytes | None:
        """OpenTunnelResponse to send next; None once the tunnel has ended."""
        while not self._frames:
            if self._ended is not None:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._frames.popleft()

    def answered(self, answer: tunnel_pb2.CallAnswer) -> None:
        """A call has ended at the agent.

        Raises:
            RpcError: INVALID_ARGUMENT for an answer to nothing that was asked, or to what was answered already.
        """
        call_id = answer.call_id
        if call_id in self._abandoned:
            self._abandoned.discard(call_id)
            return
        call = self._calls.pop(call_id, None)
        if call is None:
            message = f"answer.call_id: {call_id}: no call with this id is waiting in this tunnel"
            raise refuse(code_pb2.INVALID_ARGUMENT, "TUNNEL_ANSWER_UNKNOWN", message)
        call.end(_error(answer.status), answer.payload)
        self._end_if_drained()

    def attach(self, call_id: int) -> StreamCall:
        """The call that a SendMessages is for.

        Raises:
            RpcError: NOT_FOUND, ALREADY_EXISTS.
        """
        call = self._calls.get(call_id)
        if not isinstance(call, StreamCall):
            message = f"jarvis-call-id: {call_id}: no call with this id that a stream answers is under way in this agent's tunnel"
            raise refuse(code_pb2.NOT_FOUND, "CALL_UNKNOWN", message)
        if call.is_attached:
            raise refuse(code_pb2.ALREADY_EXISTS, "CALL_ATTACHED", f"jarvis-call-id: {call_id}: it has its stream already")
        call.is_attached = True
        return call

    def drain(self, error: RpcError) -> None:
        """The same agent process has a newer tunnel: streams end and begin there again; unary calls are answered here first."""
        self._is_draining = True
        for call in list(self._calls.values()):
            if isinstance(call, StreamCall):
                call.end(error)
        self._end_if_drained()

    def end(self, error: RpcError) -> None:
        """Ends the tunnel and every call in it. The first error counts."""
        if self._ended is None:
            self._ended = error
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.end(error)
            self._frames.clear()
        self._changed.set()

    @property
    def ended(self) -> RpcError | None:
        """Why it ended; None while it is open."""
        return self._ended

    @property
    def drained(self) -> bool:
        """Whether it ended because a newer one of the same process took over."""
        return self._is_draining

    def _open(self, call: _Unary | StreamCall, rpc: str, payload: bytes, metadata: Metadata, timeout_ns: int) -> int:
        if self._ended is not None:
            raise self._ended
        if len(payload) > MAX_REQUEST_BYTES:
            message = f"Received message larger than max ({len(payload)} vs. {MAX_REQUEST_BYTES})"
            raise RpcError(status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=message))
        call_id = next(self._ids)
        frame = tunnel_pb2.Call(
            call_id=call_id, method=AGENT_SERVICE + rpc, payload=payload, metadata=dict(metadata), timeout_ns=timeout_ns
        )
        self._calls[call_id] = call
        self._send(tunnel_pb2.OpenTunnelResponse(call=frame))
        return call_id

    def _close(self, call_id: int) -> None:
        """Nobody waits for the call any more; one that is under way is cancelled, and its answer will be thrown away."""
        if self._calls.pop(call_id, None) is None:
            return
        self._abandoned.add(call_id)
        if len(self._abandoned) > _MAX_ABANDONED:
            self._stall(f"{_MAX_ABANDONED} calls were given up that the agent did not answer")
            return
        self._send(tunnel_pb2.OpenTunnelResponse(cancel=tunnel_pb2.CancelCall(call_id=call_id)))
        self._end_if_drained()

    def _send(self, frame: tunnel_pb2.OpenTunnelResponse) -> None:
        if len(self._frames) >= _MAX_WAITING_FRAMES:
            self._stall(f"{_MAX_WAITING_FRAMES} frames wait: the agent does not read")
            return
        self._frames.append(frame.SerializeToString())
        self._changed.set()

    def _stall(self, message: str) -> None:
        self.end(refuse(code_pb2.UNAVAILABLE, "TUNNEL_STALLED", message))

    def _end_if_drained(self) -> None:
        if self._is_draining and not self._calls:
            self.end(connection_closed())


def _error(status: status_pb2.Status) -> RpcError | None:
    """What an agent says that a call ended with; in another call it would have had to fit into trailing metadata."""
    if not status.code:
        return None
    if status.code not in code_pb2.Code.values() or status.ByteSize() > _MAX_STATUS_BYTES:
        return malformed_answer()
    copy = status_pb2.Status()
    copy.CopyFrom(status)
    return RpcError(copy)


@contextlib.contextmanager
def ending_stream(call: StreamCall) -> Iterator[None]:
    """Ends a call whose stream broke in the middle: its agent may not be able to say so."""
    try:
        yield
    except RpcError:
        call.end(malformed_answer())  # unless it has ended already: then nobody reads any more, and that is all
        raise
    except BaseException:
        lost = refuse(code_pb2.UNAVAILABLE, "AGENT_NOT_CONNECTED", "the connection broke in the middle of the stream")
        call.end(lost)
        raise
