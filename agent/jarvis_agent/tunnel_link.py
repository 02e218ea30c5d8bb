# SPDX-License-Identifier: Apache-2.0
"""One connection of the tunnel: opened, welcomed, calls carried out, answers sent, until either side ends it.

    OpenTunnel (one stream)   hello ↑   welcome ↓   Call, CancelCall ↓   CallAnswer ↑
    SendMessages (one each)   the messages of a call that a stream answers ↑; HTTP/2 bounds it by itself

Every call is answered exactly once, cancelled ones too; the answer to a stream comes after the controller has taken its last
message. Used on the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from jarvis.capture.v1.tunnel_pb2 import (
    Call,
    CallAnswer,
    OpenTunnelRequest,
    OpenTunnelResponse,
    SendMessagesRequest,
    TunnelHello,
    TunnelWelcome,
)
from jarvis_trust.ca import spki_sha256
from jarvis_trust.status import reason_of

from jarvis_agent.tunnel_calls import StreamEndedError, TunnelEnds, carry_out

_LOG = logging.getLogger(__name__)

OPEN_TUNNEL = "/jarvis.capture.v1.TunnelService/OpenTunnel"
SEND_MESSAGES = "/jarvis.capture.v1.TunnelService/SendMessages"
CALL_ID_KEY = "jarvis-call-id"
OPEN_TIMEOUT_S = 20.0
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # absent from the stubs

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 512 * 1024),
    # Each link is a connection of its own: two must not share one, or a renewed certificate would never be shown.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


class TunnelRefusedError(Exception):
    """There is no tunnel.

    Attributes:
        status: why; google.rpc.Status.
        retry_after_s: how long the controller asks to wait; 0 = it does not say.
    """

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status
        self.retry_after_s = _retry_after_s(status)

    def __str__(self) -> str:
        name = Code.Name(self.status.code) if self.status.code in Code.values() else str(self.status.code)
        return f"{reason_of(self.status) or name}: {self.status.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """A channel that nothing was sent over yet."""

    channel: grpc.aio.Channel
    certificate_pem: bytes
    """What it shows of us."""


class TunnelLink:
    """One tunnel. `open`, then `ended` is set when it is over; `close` it in any case."""

    def __init__(self, dialled: Dialled, handlers: grpc.GenericRpcHandler[Any, Any], hello: TunnelHello) -> None:
        self.certificate_pem = dialled.certificate_pem
        self.ended = asyncio.Event()
        self.why = Status()
        """Set with `ended`; code 0: the controller ended it in order."""
        self._channel = dialled.channel
        self._handlers = handlers
        self._hello = hello
        self._ends = TunnelEnds(controller_spki_sha256=b"", agent_spki_sha256=b"")
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._writing = asyncio.Lock()
        self._is_closing = False
        self._reader: asyncio.Task[None] | None = None
        open_tunnel: Any = self._channel.stream_stream(OPEN_TUNNEL, request_serializer=None, response_deserializer=None)
        self._send_messages: Any = self._channel.stream_unary(SEND_MESSAGES, request_serializer=None, response_deserializer=None)
        self._call: Any = open_tunnel()

    async def open(self) -> None:
        """Says hello and waits for the welcome; from then on calls are carried out.

        Raises:
            TunnelRefusedError: the controller is not there, or will not have us.
        """
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # its status says more
                    await self._write(OpenTunnelRequest(hello=self._hello))
                welcome = await self._read_welcome()
        except TimeoutError:
            await self.close(0.0)
            message = f"no welcome within {OPEN_TIMEOUT_S:.0f} s"
            raise TunnelRefusedError(Status(code=Code.DEADLINE_EXCEEDED, message=message)) from None
        except TunnelRefusedError:
            await self.close(0.0)
            raise
        self._ends = TunnelEnds(
            controller_spki_sha256=welcome.controller_spki_sha256, agent_spki_sha256=spki_sha256(self.certificate_pem)
        )
        self._reader = asyncio.ensure_future(self._read())

    async def close(self, grace_s: float) -> None:
        """Gives the calls under way `grace_s` seconds to end and be answered, then ends the connection."""
        calls = [task for task in self._calls.values() if not task.done()]
        if calls and grace_s > 0:
            await asyncio.wait(calls, timeout=grace_s)
        self._is_closing = True
        for task in calls:
            task.cancel()
        if self._reader is not None:
            if grace_s > 0 and not self.ended.is_set():
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await self._call.done_writing()
                        await self.ended.wait()
            self._reader.cancel()
        self._call.cancel()
        await asyncio.gather(*calls, *filter(None, [self._reader]), return_exceptions=True)
        await self._channel.close(None)

    async def _read_welcome(self) -> TunnelWelcome:
        frame = await self._next()
        if frame is None:
            raise TunnelRefusedError(await self._status())
        if frame.WhichOneof("frame") != "welcome" or len(frame.welcome.controller_spki_sha256) != 32:
            message = f"the controller sent {frame.WhichOneof('frame')}; a welcome that names its key is accepted first"
            raise TunnelRefusedError(Status(code=Code.INTERNAL, message=message))
        return frame.welcome

    async def _next(self) -> OpenTunnelResponse | None:
        """None when the stream has ended."""
        try:
            payload = await self._call.read()
            return None if payload is _EOF else OpenTunnelResponse.FromString(payload)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return None
        except DecodeError as error:
            raise TunnelRefusedError(Status(code=Code.INTERNAL, message="the controller sent no OpenTunnelResponse")) from error

    async def _status(self) -> Status:
        try:
            status = await rpc_status.aio.from_call(self._call)  # type: ignore[attr-defined]  # absent from the stubs
        except (ValueError, DecodeError):
            status = None
        if status is not None:
            found: Status = status
            return found
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return Status(message="the controller has ended it")
        return Status(code=code.value[0], message=await self._call.details() or "")

    # -- calls

    async def _read(self) -> None:
        try:
            while (frame := await self._next()) is not None:
                match frame.WhichOneof("frame"):
                    case "call":
                        task = asyncio.ensure_future(self._serve(frame.call))
                        self._calls[frame.call.call_id] = task
                    case "cancel":
                        self._cancel(frame.cancel.call_id)
                    case _:
                        break  # nothing that a controller of this version sends
            self.why = await self._status()
        except TunnelRefusedError as error:
            self.why = error.status
        finally:
            self.ended.set()
            self._is_closing = True
            for task in self._calls.values():
                task.cancel()

    def _cancel(self, call_id: int) -> None:
        task = self._calls.get(call_id)
        if task is not None:
            task.cancel()

    async def _serve(self, call: Call) -> None:
        outgoing = _Outgoing(self._send_messages, call.call_id)
        try:
            status, payload = await self._carry_out(call, outgoing)
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader sees that it is over
                await self._write(OpenTunnelRequest(answer=CallAnswer(call_id=call.call_id, status=status, payload=payload)))
        finally:
            outgoing.cancel()
            self._calls.pop(call.call_id, None)

    async def _carry_out(self, call: Call, outgoing: _Outgoing) -> tuple[Status, bytes]:
        try:
            status, payload = await carry_out(self._handlers, call, self._ends, outgoing.send)
            await outgoing.finish()
        except StreamEndedError:
            return Status(code=Code.CANCELLED, message="the controller ended the stream"), b""
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_closing or task is None:
                raise
            task.uncancel()
            return Status(code=Code.CANCELLED, message="the controller cancelled the call"), b""
        return status, payload

    async def _write(self, frame: OpenTunnelRequest) -> None:
        async with self._writing:
            await self._call.write(frame.SerializeToString())


class _Outgoing:
    """The SendMessages of one call, begun with its first message."""

    def __init__(self, method: Any, call_id: int) -> None:
        self._method = method
        self._call_id = call_id
        self._call: Any = None

    async def send(self, message: bytes) -> None:
        """Sends one message, waiting for room.

        Raises:
            StreamEndedError: the controller ended it.
        """
        if self._call is None:
            self._call = self._method(metadata=((CALL_ID_KEY, str(self._call_id)),))
        try:
            await self._call.write(SendMessagesRequest(message=message).SerializeToString())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise StreamEndedError from error

    async def finish(self) -> None:
        """Waits until the controller has taken everything.

        Raises:
            StreamEndedError: it did not.
        """
        if self._call is None:
            return
        try:
            await self._call.done_writing()
            await self._call
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise StreamEndedError from error

    def cancel(self) -> None:
        """Ends it where it is not over."""
        if self._call is not None:
            self._call.cancel()


def _retry_after_s(status: Status) -> float:
    for detail in status.details:
        info = RetryInfo()
        with contextlib.suppress(DecodeError):
            if detail.Unpack(info):
                return float(info.retry_delay.ToTimedelta().total_seconds())
    return 0.0
