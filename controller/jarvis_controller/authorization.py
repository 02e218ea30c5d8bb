# SPDX-License-Identifier: Apache-2.0
"""Who may call what: one table over every method that the two ports serve, everything else denied.

The caller is whom the SPIFFE id of its client certificate names, over TLS 1.3, of this fleet. DNS names, subjects and anything
in the request say nothing about it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import structlog
from google.rpc import code_pb2
from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import Identity, Role

from jarvis_controller.deny_list import DenyList, Peer, Watch
from jarvis_controller.rpc_status import RpcError, abort, refuse

_log = structlog.get_logger()

FLEET_SERVICE = "/jarvis.capture.v1.FleetService/"
POLICY_SERVICE = "/jarvis.capture.v1.PolicyService/"
RELEASE_SERVICE = "/jarvis.capture.v1.ReleaseService/"
CERTIFICATE_SERVICE = "/jarvis.capture.v1.CertificateService/"
ENROLLMENT_SERVICE = "/jarvis.capture.v1.EnrollmentService/"
TUNNEL_SERVICE = "/jarvis.capture.v1.TunnelService/"
_HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch")
_REFLECTION = (
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
)

OPERATOR_METHODS: Mapping[str, Role] = {
    FLEET_SERVICE + "ListAgents": Role.VIEWER,
    FLEET_SERVICE + "AttestAgents": Role.OPERATOR,
    FLEET_SERVICE + "StartCaptures": Role.OPERATOR,
    FLEET_SERVICE + "StopCaptures": Role.OPERATOR,
    FLEET_SERVICE + "UpdateInterfaces": Role.OPERATOR,
    FLEET_SERVICE + "GetCaptureStatuses": Role.VIEWER,
    FLEET_SERVICE + "EnableExports": Role.OPERATOR,
    FLEET_SERVICE + "DisableExports": Role.OPERATOR,
    FLEET_SERVICE + "ListExports": Role.VIEWER,
    FLEET_SERVICE + "WatchMetrics": Role.VIEWER,
    FLEET_SERVICE + "ListFlows": Role.VIEWER,
    FLEET_SERVICE + "WatchFlows": Role.VIEWER,
    FLEET_SERVICE + "GetBootReport": Role.VIEWER,
    FLEET_SERVICE + "WatchEvents": Role.VIEWER,
    FLEET_SERVICE + "CreateJoinToken": Role.ADMIN,
    FLEET_SERVICE + "QuarantineAgent": Role.OPERATOR,
    FLEET_SERVICE + "ReleaseAgent": Role.ADMIN,
    FLEET_SERVICE + "RetireAgent": Role.ADMIN,
    FLEET_SERVICE + "ListAuditEvents": Role.VIEWER,
    FLEET_SERVICE + "ListAuditCheckpoints": Role.VIEWER,
    FLEET_SERVICE + "GetAttestationCase": Role.VIEWER,
    POLICY_SERVICE + "GetPolicy": Role.VIEWER,
    POLICY_SERVICE + "ApplyPolicy": Role.ADMIN,
    POLICY_SERVICE + "SimulatePolicy": Role.OPERATOR,
    RELEASE_SERVICE + "AddRelease": Role.ADMIN,
    RELEASE_SERVICE + "ListReleases": Role.VIEWER,
    RELEASE_SERVICE + "RemoveRelease": Role.ADMIN,
    RELEASE_SERVICE + "RollOutRelease": Role.OPERATOR,
    CERTIFICATE_SERVICE + "ListCertificates": Role.VIEWER,
    CERTIFICATE_SERVICE + "RevokeCertificate": Role.ADMIN,
    CERTIFICATE_SERVICE + "IssueOperatorCertificate": Role.ADMIN,
    CERTIFICATE_SERVICE + "RenewOperatorCertificate": Role.VIEWER,
    CERTIFICATE_SERVICE + "GetAuthorities": Role.VIEWER,
    CERTIFICATE_SERVICE + "RotateAuthority": Role.ADMIN,
    **dict.fromkeys(_HEALTH, Role.VIEWER),
    **dict.fromkeys(_REFLECTION, Role.VIEWER),
}
"""The operators' port: method -> least role."""

ENROLLMENT_METHODS: Mapping[str, None] = dict.fromkeys((ENROLLMENT_SERVICE + "Enroll", *_HEALTH))
"""The enrolment port: nobody there has shown who it is."""

TUNNEL_METHODS: Mapping[str, Role] = dict.fromkeys(
    (TUNNEL_SERVICE + "OpenTunnel", TUNNEL_SERVICE + "SendMessages", *_HEALTH), Role.AGENT
)
"""The tunnel port: agents, each for itself."""


def caller_of(context: grpc.aio.ServicerContext[Any, Any], fleet: str) -> Identity:
    """Whom the client certificate names.

    Raises:
        RpcError: UNAUTHENTICATED without TLS 1.3 and exactly one SPIFFE id of this fleet.
    """
    facts: Mapping[str, Any] = context.auth_context()
    require_tls13(context)
    ids = list(facts.get("peer_spiffe_id", ()))
    if len(ids) != 1:
        raise refuse(
            code_pb2.UNAUTHENTICATED, "IDENTITY_MISSING", f"the client certificate has {len(ids)} SPIFFE ids; one is accepted"
        )
    try:
        identity = Identity.parse(ids[0].decode("ascii", "replace"))
    except IdentityError as error:
        raise refuse(code_pb2.UNAUTHENTICATED, error.reason, error.message) from error
    if identity.fleet != fleet:
        raise refuse(code_pb2.UNAUTHENTICATED, "IDENTITY_INVALID", f"{identity.uri} is of another fleet; {fleet} is accepted")
    return identity


def require_tls13(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """GRPC cannot be told a least version, so it is checked on every call.

    Raises:
        RpcError: UNAUTHENTICATED.
    """
    facts: Mapping[str, Any] = context.auth_context()
    version = list(facts.get("ssl_tls_version", ()))
    if version != [b"TLSv1.3"]:
        found = version[0].decode("ascii", "replace") if version else "no TLS"
        raise refuse(code_pb2.UNAUTHENTICATED, "TLS_VERSION", f"the connection uses {found}; TLSv1.3 is accepted")


def require_role(identity: Identity, method: str, methods: Mapping[str, Role] = OPERATOR_METHODS) -> None:
    """Refuses a caller whose role is below what the method needs, and every method that is not in the port's table.

    Raises:
        RpcError: PERMISSION_DENIED, ROLE_DENIED.
    """
    required = methods.get(method)
    if required is None or not identity.role.permits(required):
        needed = "nobody" if required is None else f"at least the role {required}"
        message = f"{identity.uri} may not call {method}: {needed} is accepted"
        raise refuse(code_pb2.PERMISSION_DENIED, "ROLE_DENIED", message, metadata={"method": method, "role": str(identity.role)})


class AuthorizationInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Stands before every handler of a port, health and reflection included."""

    def __init__(
        self,
        check: Callable[[grpc.aio.ServicerContext[Any, Any], str], None],
        refused: Callable[[grpc.aio.ServicerContext[Any, Any], str, RpcError], Awaitable[None]],
        deny_list: DenyList,
        *,
        audits_handlers: bool = False,
    ) -> None:
        """For one port.

        Args:
            check: refuses a call.
            refused: told of every call that was refused before or under way.
            deny_list: refuses certificates, of calls under way too.
            audits_handlers: whether `refused` is told too of what a handler itself refuses: a release that nobody signed, a
                policy of before, a key that was revoked. Ports whose handlers tell it themselves do without.
        """
        self._audits_handlers = audits_handlers
        self._check = check
        self._refused = refused
        self._deny_list = deny_list

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wraps the handler: the peer is known only once the call runs."""
        handler: Any = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None:
            return None  # type: ignore[return-value]  # gRPC answers UNIMPLEMENTED; its types know only served methods
        if handler.response_streaming:
            behaviour = self._streaming(handler.unary_stream or handler.stream_stream, method)
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        else:
            behaviour = self._single(handler.unary_unary or handler.stream_unary, method, is_long=handler.request_streaming)
            make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(behaviour, handler.request_deserializer, handler.response_serializer)
        return wrapped

    async def _admit(self, context: grpc.aio.ServicerContext[Any, Any], method: str) -> Peer | None:
        try:
            peer = self._deny_list.admit(context)
            self._check(context, method)
        except RpcError as error:
            await self._refused(context, method, error)
            raise
        return peer

    def _single(self, behaviour: Any, method: str, *, is_long: bool) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                peer = await self._admit(context, method)
                if peer is None or not is_long:
                    return await self._told(behaviour(request, context), context, method)
                with self._deny_list.watching(peer) as watch:
                    return await self._handled(watch, context, method, lambda: behaviour(request, context))
            except RpcError as error:
                await abort(context, error.status)

        return call

    def _streaming(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                peer = await self._admit(context, method)
                answers = behaviour(request, context)
                if not hasattr(answers, "__aiter__"):  # handlers that write to the context themselves
                    answers = _without_answers(answers)
                if peer is None:
                    async for answer in answers:
                        yield answer
                    return
                with self._deny_list.watching(peer) as watch:
                    async with contextlib.aclosing(answers):
                        while True:
                            answer = await self._handled(
                                watch, context, method, lambda: self._told(anext(answers, _END), context, method)
                            )
                            if answer is _END:
                                return
                            yield answer
            except RpcError as error:
                await abort(context, error.status)

        return call

    async def _told(self, step: Awaitable[Any], context: grpc.aio.ServicerContext[Any, Any], method: str) -> Any:
        """A handler's step; what it refuses is told."""
        try:
            return await step
        except RpcError as error:
            if self._audits_handlers and error.status.code in _TOLD_CODES:
                await self._refused(context, method, error)
            raise

    async def _handled(
        self,
        watch: Watch,
        context: grpc.aio.ServicerContext[Any, Any],
        method: str,
        step: Callable[[], Awaitable[Any]],
    ) -> Any:
        """One step of a handler, ended by what its peer is denied for meanwhile."""
        try:
            watch.enter()
            return await step()
        except asyncio.CancelledError as error:
            converted = watch.convert(error)
            if isinstance(converted, RpcError):
                await self._refused(context, method, converted)
            raise converted from None
        finally:
            watch.leave()


_END = object()
_TOLD_CODES = frozenset({code_pb2.PERMISSION_DENIED, code_pb2.UNAUTHENTICATED, code_pb2.FAILED_PRECONDITION})
"""Who or what was not good enough; a request that is malformed has tried nothing."""


async def _without_answers(behaviour: Awaitable[Any]) -> AsyncGenerator[Any, None]:
    await behaviour
    return
    yield  # which makes it a generator


def operator_check(fleet: str) -> Callable[[grpc.aio.ServicerContext[Any, Any], str], None]:
    """The operators' port: TLS 1.3, a SPIFFE id of the fleet, a role that the method's row permits."""

    def check(context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
        require_role(caller_of(context, fleet), method)

    return check


def tunnel_check(fleet: str) -> Callable[[grpc.aio.ServicerContext[Any, Any], str], None]:
    """The tunnel port: TLS 1.3, the SPIFFE id of an agent of the fleet, a method that agents may call."""

    def check(context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
        require_role(caller_of(context, fleet), method, TUNNEL_METHODS)

    return check


def enrollment_check(context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
    """The enrolment port: TLS 1.3, and only the methods that are open.

    Raises:
        RpcError: UNAUTHENTICATED, PERMISSION_DENIED.
    """
    require_tls13(context)
    if method not in ENROLLMENT_METHODS:
        raise refuse(code_pb2.PERMISSION_DENIED, "ROLE_DENIED", f"{method} is not served on the enrolment port")
