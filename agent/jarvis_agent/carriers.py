# SPDX-License-Identifier: Apache-2.0
"""How the controller reaches this agent: the one service behind a port of its own, or behind a tunnel that the agent dials.

DirectServing   gRPC server, mTLS, only controllers are heard; health and reflection beside AgentService
TunnelServing   a client of TunnelService; nothing listens, so that there is nothing to firewall
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from jarvis.capture.v1 import agent_pb2
from jarvis.capture.v1.tunnel_pb2 import TunnelHello
from jarvis_trust.identities import controller_dns_name

from jarvis_agent import __version__
from jarvis_agent.config import AgentConfig
from jarvis_agent.errors import ConfigError
from jarvis_agent.peer import ControllerOnly
from jarvis_agent.tls_key import SoftwareTlsKey
from jarvis_agent.tls_state import TlsIdentity, TlsState
from jarvis_agent.tunnel import Tunnel, TunnelRetry
from jarvis_agent.tunnel_link import CHANNEL_OPTIONS, Dialled

_LOG = logging.getLogger(__name__)

SERVICE_NAME = agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # a second agent on the same port must fail, not share
    ("grpc.max_receive_message_length", 256 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_idle_ms", 3_600_000),
]


class Serving(Protocol):
    """A carrier at work."""

    async def start(self) -> None:
        """Calls are carried out from now on.

        Raises:
            OSError: it cannot be.
        """

    async def announce_end(self) -> None:
        """Tells whoever looks that it is about to stop."""

    async def stop(self, grace_s: float) -> None:
        """Ends it; calls under way have `grace_s` seconds."""


class DirectServing:
    """A port that the controller dials."""

    def __init__(self, config: AgentConfig, handlers: grpc.GenericRpcHandler[Any, Any], tls: TlsState) -> None:
        """Nothing is bound yet.

        Raises:
            ConfigError: the TLS key is in the TPM.
        """
        self._listen = config.listen
        self._credentials = server_credentials(tls)
        self._server = grpc.aio.server(interceptors=[ControllerOnly(config.fleet)], options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers((handlers,))
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # absent from the stubs
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """See Serving."""
        try:
            port = self._server.add_secure_port(self._listen, self._credentials)
        except RuntimeError as error:
            raise OSError(f"listen: {self._listen}: cannot be bound ({error}); a free host:port is accepted") from error
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        _LOG.info("serving on %s (port %d)", self._listen, port)

    async def announce_end(self) -> None:
        """See Serving."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """See Serving."""
        await self._server.stop(grace_s)


class TunnelServing:
    """A tunnel that this agent keeps."""

    def __init__(
        self,
        config: AgentConfig,
        handlers: grpc.GenericRpcHandler[Any, Any],
        tls: TlsState,
        *,
        session_id: bytes,
        address: Callable[[], str],
    ) -> None:
        """Nothing is dialled yet.

        Args:
            config: for the fleet's name and the waits.
            handlers: AgentService's.
            tls: key, certificate, and the CAs that must have certified the controller.
            session_id: random, of this process.
            address: host:port of TunnelService; asked before each attempt.
        """
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", controller_dns_name(config.fleet)))

        def dial() -> Dialled:
            current = tls.require()
            credentials = tls.key.channel_credentials(root_certificates=tls.trust.pem, certificate_chain=current.certificate_pem)
            channel = grpc.aio.secure_channel(address(), credentials, options=options)
            return Dialled(channel=channel, certificate_pem=current.certificate_pem)

        self._tunnel = Tunnel(
            dial=dial,
            certificate=lambda: tls.require().certificate_pem,
            handlers=handlers,
            hello=TunnelHello(session_id=session_id, version=__version__),
            retry=TunnelRetry(first_s=config.tunnel_retry_s, longest_s=config.tunnel_retry_max_s),
        )
        self._address = address
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See Serving."""
        self._running = asyncio.ensure_future(self._tunnel.run())
        _LOG.info("dialling the controller at %s; no port is open here", self._address())

    async def announce_end(self) -> None:
        """The tunnel itself says so, by its end."""

    async def stop(self, grace_s: float) -> None:
        """See Serving."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        await self._tunnel.stop(grace_s)


def server_credentials(tls: TlsState) -> grpc.ServerCredentials:
    """Credentials that serve the newest certificate: asked for on each new connection, so that a renewal needs no restart.

    gRPC replaces its handshaker by whatever it is given while other connections use the old one: under many at once that ends
    the process (grpcio 1.85). So a certificate is handed over once, when it is new; else the answer is "as before".

    Raises:
        ConfigError: the key is in the TPM: servers of gRPC take none from there.
    """
    key = tls.key
    if not isinstance(key, SoftwareTlsKey):
        raise ConfigError("listen: the TLS key is in the TPM, and an agent that is dialled needs one in a file")
    key_pem = key.key_pem

    def configuration(identity: TlsIdentity) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(key_pem, identity.certificate_pem)], root_certificates=tls.trust.pem)

    first = tls.require()
    served, lock = first.certificate_pem, threading.Lock()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        with lock:
            current = tls.current
            if current is None or current.certificate_pem == served:
                return None
            served = current.certificate_pem
        return configuration(current)

    # None is documented as "keep what was served"; the stubs do not know it.
    fetcher: Any = fetch
    return grpc.dynamic_ssl_server_credentials(configuration(first), fetcher, require_client_authentication=True)
