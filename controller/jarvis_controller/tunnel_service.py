# SPDX-License-Identifier: Apache-2.0
"""TunnelService: agents that dial. Who may have a tunnel, how many may begin at once, and what goes through them.

    OpenTunnel    admission (bounded) -> hello -> is it one of ours, with this very key? -> welcome -> calls down, answers up
    SendMessages  the call's id in this agent's own tunnel -> its messages, one HTTP/2 stream each

The caller is whom the client certificate names (authorization.py); the leaf's key is what the connection itself proves.
Refused before the hello is read: what is too much. After it: AGENT_NOT_FOUND, AGENT_RETIRED, CERTIFICATE_NOT_ON_RECORD.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2
from jarvis.capture.v1 import tunnel_pb2
from jarvis_trust.ca import certificate_not_after, spki_sha256
from jarvis_trust.status import error_status, reason_of

from jarvis_controller.agent_record import AgentRecord, Carrier
from jarvis_controller.authorization import caller_of
from jarvis_controller.rpc_status import RpcError, bad_field, parse_request, refuse
from jarvis_controller.states import State
from jarvis_controller.store import Store
from jarvis_controller.tunnel_admission import Admission, AdmissionPerKey
from jarvis_controller.tunnel_carrier import TunnelCarrier
from jarvis_controller.tunnel_session import TunnelSession, ending_stream

_log = structlog.get_logger()
Context = grpc.aio.ServicerContext[Any, Any]

CALL_ID_KEY = "jarvis-call-id"
_MAX_MESSAGE_BYTES = (8 << 20) + 64
"""One message as an agent's own port may send it, and its wrapping. Flow batches are at most 256 KiB."""
_HELLO_TIMEOUT_S = 10.0
_AT_ONCE = 64
_LONGEST_RETRY_S = 60.0
_OWN_PER_S, _OWN_BURST, _OWN_AT_ONCE = 1.0, 16.0, 4
"""The same for one TLS key: a tunnel, its renewal, and some that broke."""
_SWEEP_S = 10.0
_VERSION = re.compile(r"[!-~]{1,64}")
_CALL_ID = re.compile(r"[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """What stays the same."""

    fleet: str
    per_s: float
    """Tunnels that may begin in a second: as many of agents without a lease as of agents that hold one, which have their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peer:
    """Whom the connection shows."""

    agent_id: str
    uri: str
    spki: bytes
    not_after_s: float


class TunnelService:
    """The handlers. One instance per controller; `run` belongs among its tasks."""

    def __init__(
        self,
        *,
        settings: TunnelSettings,
        store: Store,
        carrier: TunnelCarrier,
        controller_spki: Callable[[], bytes],
        holds_lease: Callable[[str], bool],
        on_connected: Callable[[AgentRecord, bytes], None],
        refused: Callable[[str, str, str, str, str], Awaitable[None]],
    ) -> None:
        """Nobody is connected.

        Args:
            settings: see there.
            store: who is enrolled.
            carrier: where tunnels go.
            controller_spki: SHA-256 of the SubjectPublicKeyInfo that is served now.
            holds_lease: whether an agent was proved lately: it is let in whatever newcomers do.
            on_connected: told an agent that is there now, and the random id of its process.
            refused: told (principal, method, reason, message, peer) of every agent that may not have a tunnel.
        """
        self._settings = settings
        self._store = store
        self._carrier = carrier
        self._controller_spki = controller_spki
        self._holds_lease = holds_lease
        self._on_connected = on_connected
        self._refused = refused
        self._ids = itertools.count(1)
        self._newcomers, self._attested = _admission(settings.per_s), _admission(settings.per_s)
        self._by_key = AdmissionPerKey(_own_admission)

    async def run(self) -> None:
        """Ends tunnels whose certificates are over, until it is cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = time.time()
            for session in self._carrier.open():
                if session.not_after_s <= now_s:
                    over = "the certificate that the tunnel was opened with is over; a renewed one is accepted"
                    self._carrier.remove(session, refuse(code_pb2.UNAUTHENTICATED, "CERTIFICATE_EXPIRED", over))

    async def open_tunnel(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """OpenTunnel."""
        peer = self._peer(context)
        admissions = self._admit(peer)
        try:
            session, record = await self._begin(requests, context, peer)
        finally:
            for admission in admissions:
                admission.leave()
        reader = asyncio.ensure_future(self._read(requests, session))
        try:
            self._carrier.put(session)
            await self._check(peer, context)  # once more: it may have been retired just before the tunnel could be hung up
            self._on_connected(record, session.process_id)
            while (frame := await session.next_frame()) is not None:
                await context.write(frame)
        finally:
            reader.cancel()
            self._carrier.remove(session, _lost())
        if session.ended is not None and not session.drained and reason_of(session.ended.status) != _LEFT:
            raise session.ended

    async def send_messages(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """SendMessages."""
        peer = self._peer(context)
        call_id = _call_id(context)
        # A tunnel that drains keeps no streams, so that one session at most knows the id.
        found = self._carrier.with_key(peer.agent_id, peer.spki)
        if not found:
            raise refuse(code_pb2.FAILED_PRECONDITION, "TUNNEL_MISSING", "this agent has no tunnel that was opened with this key")
        call = found[0].attach(call_id)
        with ending_stream(call):
            async for payload in requests:
                message = parse_request(tunnel_pb2.SendMessagesRequest, payload, most=_MAX_MESSAGE_BYTES).message
                if not await call.put(message):
                    raise refuse(code_pb2.CANCELLED, "CALL_CANCELLED", f"call {call_id} has ended here")
        return b""  # SendMessagesResponse

    # -- beginning

    def _peer(self, context: Context) -> _Peer:
        identity = caller_of(context, self._settings.fleet)
        facts: Any = context.auth_context()
        leaf = facts["x509_pem_cert"][0]
        not_after_s = certificate_not_after(leaf).timestamp()
        return _Peer(agent_id=identity.name, uri=identity.uri, spki=spki_sha256(leaf), not_after_s=not_after_s)

    def _admit(self, peer: _Peer) -> tuple[Admission, Admission]:
        """Lets it in by its own bucket and then by everybody's: what one key asks for too often is not taken from the others."""
        now_s = time.monotonic()
        own = self._by_key.of(peer.spki)
        if wait_s := own.enter(now_s):
            raise _busy(f"this agent begins too many tunnels; its next one is expected in {wait_s:.1f} s", wait_s)
        shared = self._attested if self._holds_lease(peer.agent_id) else self._newcomers
        if wait_s := shared.enter(now_s):
            own.leave()
            raise _busy(f"too many agents come at once; this one is expected in {wait_s:.1f} s", wait_s)
        return own, shared

    async def _begin(self, requests: AsyncIterator[bytes], context: Context, peer: _Peer) -> tuple[TunnelSession, AgentRecord]:
        hello = await _hello(requests)
        record = await self._check(peer, context)
        session = TunnelSession(
            agent_id=peer.agent_id,
            process_id=hello.session_id,
            agent_spki=peer.spki,
            controller_spki=self._controller_spki(),
            not_after_s=peer.not_after_s,
            ids=self._ids,
        )
        welcome = tunnel_pb2.TunnelWelcome(controller_spki_sha256=session.controller_spki)
        await context.write(tunnel_pb2.OpenTunnelResponse(welcome=welcome).SerializeToString())
        return session, record

    async def _check(self, peer: _Peer, context: Context) -> AgentRecord:
        record = await self._store.agent(peer.agent_id)
        try:
            return _member(record, peer)
        except RpcError as error:
            method = "/jarvis.capture.v1.TunnelService/OpenTunnel"
            await self._refused(peer.uri, method, reason_of(error.status), error.status.message, context.peer())
            raise

    # -- what comes up

    async def _read(self, requests: AsyncIterator[bytes], session: TunnelSession) -> None:
        try:
            async for payload in requests:
                frame = _parse(payload)
                if frame.WhichOneof("frame") != "answer":
                    raise bad_field("frame", f"{frame.WhichOneof('frame')}: answer is accepted after the hello")
                session.answered(frame.answer)
        except RpcError as error:
            _log.warning("a tunnel is ended", agent_id=session.agent_id, reason=error.status.message)
            session.end(error)
        else:
            session.end(_lost())


def _admission(per_s: float) -> Admission:
    return Admission(per_s=per_s, burst=per_s, at_once=_AT_ONCE, longest_s=_LONGEST_RETRY_S)


def _own_admission() -> Admission:
    return Admission(per_s=_OWN_PER_S, burst=_OWN_BURST, at_once=_OWN_AT_ONCE, longest_s=_LONGEST_RETRY_S)


def _busy(message: str, wait_s: float) -> RpcError:
    status = error_status(code_pb2.RESOURCE_EXHAUSTED, "TUNNEL_BUSY", message, retry_after_ns=int(wait_s * 1e9))
    return RpcError(status)


_LEFT = "AGENT_NOT_CONNECTED"


def _lost() -> RpcError:
    return refuse(code_pb2.UNAVAILABLE, _LEFT, "the agent's tunnel has ended")


def _member(record: AgentRecord | None, peer: _Peer) -> AgentRecord:
    """The agent, if it may have a tunnel with this key. A quarantined one may: it is told of it there."""
    if record is None:
        raise refuse(code_pb2.PERMISSION_DENIED, "AGENT_NOT_FOUND", f"agent {peer.agent_id} is not enrolled")
    if record.state is State.RETIRED:
        raise refuse(
            code_pb2.PERMISSION_DENIED, "AGENT_RETIRED", f"agent {peer.agent_id} is retired; a new join token is accepted"
        )
    if peer.spki not in record.tls_spkis:
        message = f"the certificate's key {peer.spki.hex()} is not the one that agent {peer.agent_id} was given a certificate for"
        raise refuse(code_pb2.PERMISSION_DENIED, "CERTIFICATE_NOT_ON_RECORD", message)
    if record.carrier is not Carrier.TUNNEL:
        message = f"agent {peer.agent_id} enrolled with carrier {record.carrier}; tunnel is accepted (it says so when it renews)"
        raise refuse(code_pb2.FAILED_PRECONDITION, "CARRIER_MISMATCH", message)
    return record


async def _hello(requests: AsyncIterator[bytes]) -> tunnel_pb2.TunnelHello:
    try:
        async with asyncio.timeout(_HELLO_TIMEOUT_S):
            payload = await anext(requests)
    except TimeoutError:
        raise refuse(code_pb2.DEADLINE_EXCEEDED, "TUNNEL_HELLO_MISSING", f"no hello within {_HELLO_TIMEOUT_S:g} s") from None
    except StopAsyncIteration:
        raise bad_field("frame", "the stream ended; hello was due") from None
    frame = _parse(payload)
    if frame.WhichOneof("frame") != "hello":
        raise bad_field("frame", f"{frame.WhichOneof('frame')}: hello is accepted first")
    if len(frame.hello.session_id) != 16:
        raise bad_field("hello.session_id", f"{len(frame.hello.session_id)} bytes: 16 are accepted")
    if _VERSION.fullmatch(frame.hello.version) is None:
        raise bad_field("hello.version", f"{frame.hello.version[:60]!r}: 1 to 64 printable ASCII characters are accepted")
    return frame.hello


def _parse(payload: bytes) -> tunnel_pb2.OpenTunnelRequest:
    try:
        return tunnel_pb2.OpenTunnelRequest.FromString(payload)
    except DecodeError as error:
        raise bad_field("", f"{len(payload)} bytes that are no OpenTunnelRequest") from error


def _call_id(context: Context) -> int:
    metadata: Any = context.invocation_metadata() or ()
    values = [value for key, value in metadata if key == CALL_ID_KEY]
    text = values[0] if len(values) == 1 and isinstance(values[0], str) else ""
    if _CALL_ID.fullmatch(text) is None:
        raise bad_field(CALL_ID_KEY, f"metadata {values!r:.60}: one decimal number from 1 is accepted")
    return int(text)
