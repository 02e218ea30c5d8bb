# SPDX-License-Identifier: Apache-2.0
"""Who is calling: only a controller of our fleet, over TLS 1.3, is heard; whatever service it calls.

TLS has checked the chain to the fleet CA. Here the SPIFFE id decides, never another name in the certificate, and the TLS
version is checked by hand because grpcio cannot demand one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from jarvis_trust.ca import spki_sha256
from jarvis_trust.errors import CommandError, IdentityError
from jarvis_trust.identities import Identity, Role

from jarvis_agent.aborts import abort_with

_TLS_VERSION = b"TLSv1.3"
TUNNEL_CONTROLLER_SPKI = "jarvis_controller_spki_sha256"
"""In the auth context of a call through the tunnel, which names no certificate: gRPC's clients do not see it (tunnel.proto)."""
TUNNEL_AGENT_SPKI = "jarvis_agent_spki_sha256"
"""Likewise: of the certificate that we opened the tunnel with; while a renewed one is taken over there are two tunnels."""

if TYPE_CHECKING:
    _ServerInterceptor = grpc.aio.ServerInterceptor[Any, Any]
else:  # generic in the stubs only
    _ServerInterceptor = grpc.aio.ServerInterceptor


def controller_of(context: grpc.aio.ServicerContext[Any, Any], fleet: str) -> Identity:
    """The caller, if it is a controller of `fleet` on TLS 1.3.

    Raises:
        CommandError: TLS_VERSION, PEER_DENIED.
    """
    facts = context.auth_context()
    versions = list(facts.get("ssl_tls_version", ()))
    if versions != [_TLS_VERSION]:
        found = b",".join(versions).decode("ascii", "replace") or "no TLS"
        raise CommandError("TLS_VERSION", f"the connection uses {found}; TLSv1.3 is accepted")
    names = list(facts.get("peer_spiffe_id", ()))
    if len(names) != 1:
        raise CommandError("PEER_DENIED", f"the client certificate has {len(names)} SPIFFE ids; exactly one is accepted")
    uri = names[0].decode("utf-8", "replace")
    try:
        peer = Identity.parse(uri)
    except IdentityError as error:
        raise CommandError("PEER_DENIED", f"the client certificate: {error.message}") from error
    if peer.role is not Role.CONTROLLER or peer.fleet != fleet:
        raise CommandError("PEER_DENIED", f"{uri} may not call an agent; spiffe://{fleet}/controller/<name> is accepted")
    return peer


def own_spki_sha256(context: grpc.aio.ServicerContext[Any, Any]) -> bytes | None:
    """SHA-256 of the SubjectPublicKeyInfo that we showed on this connection; None on our own port: what is served now."""
    shown = list(context.auth_context().get(TUNNEL_AGENT_SPKI, ()))
    return bytes(shown[0]) if shown else None


def controller_spki_sha256(context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo that the caller showed on this connection.

    Raises:
        IdentityError: CERTIFICATE_INVALID.
    """
    told = list(context.auth_context().get(TUNNEL_CONTROLLER_SPKI, ()))
    if told:
        return bytes(told[0])
    certificates = list(context.auth_context().get("x509_pem_cert", ()))
    return spki_sha256(certificates[0] if certificates else b"")


class ControllerOnly(_ServerInterceptor):
    """Puts the check before every handler of every service, health and reflection included: default deny."""

    def __init__(self, fleet: str) -> None:
        """For controllers of this fleet."""
        self._fleet = fleet

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler, behind the check. Unknown methods stay unknown."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        factory = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        guarded = self._guard_stream(behaviour) if handler.response_streaming else self._guard_unary(behaviour)
        return factory(guarded, handler.request_deserializer, handler.response_serializer)

    def _guard_unary(self, behaviour: Any) -> Any:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await self._check(context)
            return await behaviour(request, context)

        return guarded

    def _guard_stream(self, behaviour: Any) -> Any:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await self._check(context)
            answer = behaviour(request, context)
            if hasattr(answer, "__aiter__"):
                async for message in answer:
                    yield message
            else:  # a coroutine that writes by itself, as the health service's Watch does
                await answer

        return guarded

    async def _check(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            controller_of(context, self._fleet)
        except CommandError as error:
            await abort_with(context, error)
