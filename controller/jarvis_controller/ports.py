# SPDX-License-Identifier: Apache-2.0
"""One port of the controller: gRPC over TLS with a table of services, health, and reflection where it is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer  # what `health.aio` is; the package's types do not say so
from grpc_reflection.v1alpha import reflection

from jarvis_controller.config import ConfigError
from jarvis_controller.handlers import Services

Options = tuple[tuple[str, int], ...]

_OPTIONS: Options = (
    ("grpc.so_reuseport", 0),  # a second controller on the port is a mistake that must show
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)
OPERATOR_OPTIONS: Options = (*_OPTIONS, ("grpc.max_receive_message_length", 1 << 20))
ENROLLMENT_OPTIONS: Options = (
    *_OPTIONS,
    ("grpc.max_receive_message_length", 128 << 10),
    ("grpc.max_connection_age_ms", 300_000),
)
"""An EK certificate chain and a CSR; and connections of strangers do not stay."""

TUNNEL_OPTIONS: Options = (
    *_OPTIONS,
    ("grpc.max_receive_message_length", 9 << 20),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.server_handshake_timeout_ms", 20_000),
)
"""An agent's answer is at most 8 MiB, as over its own port; it has one tunnel and fewer than 80 streams; idle ones go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port that is bound; `await start()`, and at the end `await drain()` before `await stop(...)`."""

    server: grpc.aio.Server
    number: int
    """TCP port."""
    health: Any

    async def start(self) -> None:
        """Serves from now on."""
        await self.server.start()

    async def drain(self) -> None:
        """Tells who asks for its health that it is about to stop."""
        await self.health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, and cuts those under way after `grace_s` seconds."""
        await self.server.stop(grace_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPlan:
    """What a port is to be."""

    field: str
    """The configuration's word for its address, for errors."""
    address: str
    """host:port; port 0: any that is free."""
    services: Services
    options: Options
    reflects: bool = False
    """Whether it describes its services to who may call them."""


def open_port(plan: PortPlan, credentials: grpc.ServerCredentials, interceptor: grpc.aio.ServerInterceptor[Any, Any]) -> Port:
    """Binds a port; it serves once it is started.

    Raises:
        ConfigError: the address cannot be bound.
    """
    server = grpc.aio.server(interceptors=(interceptor,), options=plan.options)
    servicer = HealthServicer()
    for name, handlers in plan.services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, dict(handlers)),))
        servicer._server_status[name] = health_pb2.HealthCheckResponse.SERVING  # noqa: SLF001 - `set` is a coroutine, and nobody listens yet
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if plan.reflects:
        reflection.enable_server_reflection((*plan.services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return Port(server=server, number=_bind(server, plan, credentials), health=servicer)


def _bind(server: grpc.aio.Server, plan: PortPlan, credentials: grpc.ServerCredentials) -> int:
    refused = ConfigError(f"{plan.field} = {plan.address!r} cannot be bound: is it in use, or of another host?")
    try:
        port = server.add_secure_port(plan.address, credentials)
    except RuntimeError as error:
        raise refused from error
    if port == 0:
        raise refused
    return port
