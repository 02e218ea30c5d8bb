# SPDX-License-Identifier: Apache-2.0
"""The controller as one process: builds the parts, serves two ports, drains, stops.

    listen          operators: client certificate needed; FleetService, health, reflection
    enroll_listen   hosts that join: no client certificate; EnrollmentService, health

One event loop, one thread for the database. `Controller` may be started inside another program (tests do).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from cryptography import x509
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer  # what `health.aio` is; the package's types do not say so
from grpc_reflection.v1alpha import reflection
from jarvis.capture.v1 import enrollment_pb2, fleet_pb2
from jarvis_trust.boot_reference import verify_reference
from jarvis_trust.ca import FleetCA
from jarvis_trust.commands import CommandSigner
from jarvis_trust.errors import AuditError, TrustError
from jarvis_trust.firmware import load_release_public_key
from jarvis_trust.keyfiles import load_private_key
from jarvis_trust.status import reason_of

from jarvis_controller.access_log import AccessLog
from jarvis_controller.agent_client import AgentClient
from jarvis_controller.agent_record import AgentRecord
from jarvis_controller.attestation import AttestationPolicy, Attester
from jarvis_controller.attestation_loop import AttestationLoop
from jarvis_controller.audit_checkpoints import Checkpointer, audit_signer
from jarvis_controller.audit_export import AuditExporter
from jarvis_controller.authorization import AuthorizationInterceptor, caller_of, enrollment_check, operator_check
from jarvis_controller.case import BootPolicy
from jarvis_controller.commander import Commander
from jarvis_controller.config import ConfigError, ControllerConfig
from jarvis_controller.enrollment_service import EnrollmentPolicy, EnrollmentService
from jarvis_controller.event_collector import EventCollector
from jarvis_controller.evidence_rows import EvidenceLimits
from jarvis_controller.fleet_service import FleetService, FleetSettings
from jarvis_controller.flow_relay import RelayLimits
from jarvis_controller.leases import LeaseBook
from jarvis_controller.registry_service import RegistryService, RegistrySettings
from jarvis_controller.rpc_status import RpcError, parse_request
from jarvis_controller.state_feed import StateFeed
from jarvis_controller.store import Store
from jarvis_controller.syslog_sender import SyslogTarget
from jarvis_controller.tls import ControllerCredentials, controller_identity

_log = structlog.get_logger()

CA_DIRECTORY = "ca"
COMMAND_KEY_FILE = "command.key"
_FLEET = "jarvis.capture.v1.FleetService"
_ENROLLMENT = "jarvis.capture.v1.EnrollmentService"
_DRAIN_S = 5.0
_RENEW_CHECK_S = 3600.0
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # a second controller on the port is a mistake that must show
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)
_OPERATOR_OPTIONS = (*_OPTIONS, ("grpc.max_receive_message_length", 1 << 20))
# An EK certificate chain and a CSR; and connections of strangers do not stay.
_ENROLLMENT_OPTIONS = (*_OPTIONS, ("grpc.max_receive_message_length", 128 << 10), ("grpc.max_connection_age_ms", 300_000))


class Controller:
    """All parts of one controller. Build it, then `async with controller.running():`."""

    def __init__(self, config: ControllerConfig) -> None:
        """Reads keys and certificates.

        Raises:
            ConfigError: a file that the configuration names cannot be used.
        """
        self.config = config
        directory = config.state_directory
        with _as_config_error():
            ca = FleetCA.load(directory / CA_DIRECTORY)
            if ca.fleet != config.fleet:
                raise ConfigError(f"fleet = {config.fleet!r}: the CA in {directory / CA_DIRECTORY} is of {ca.fleet!r}")
            signer = CommandSigner(load_private_key(directory / COMMAND_KEY_FILE))
            audit_key = audit_signer(directory, ca, config.name)
            release_key = config.release_key.read_bytes()
            load_release_public_key(release_key)
            ek_roots = [_read_certificates("ek_roots", path) for path in config.ek_roots]
            self.credentials = ControllerCredentials(directory, ca, controller_identity(config.fleet, config.name))
        self.checkpointer = Checkpointer(
            signer=audit_key, ca_pem=ca.certificate_pem, directory=directory, every_entries=config.audit_checkpoint_entries
        )
        self._ca = ca
        evidence = EvidenceLimits(age_ns=config.evidence_days * 86400 * 10**9, octets=config.evidence_mib << 20)
        self.store = Store(config.database, checkpointer=self.checkpointer, evidence=evidence, kept_events=config.kept_events)
        self.feed = StateFeed()
        self.leases = LeaseBook()
        self.client = AgentClient(self.credentials, signer, fleet=config.fleet, timeout_s=config.agent_timeout_s)
        policy = AttestationPolicy(
            release_key=release_key,
            firmware_floor=config.firmware_floor,
            pcr=config.pcr,
            lease_ns=int(config.lease_s * 1e9),
            concurrency=config.attest_concurrency,
            boot_pcrs=config.boot_pcrs,
            boot=_boot_policy(config, release_key),
        )
        self.attester = Attester(
            store=self.store, client=self.client, signer=signer, leases=self.leases, feed=self.feed, policy=policy
        )
        self.loop = AttestationLoop(store=self.store, attester=self.attester, feed=self.feed, interval_s=config.attest_interval_s)
        self.collector = EventCollector(store=self.store, client=self.client, feed=self.feed)
        self.commander = Commander(client=self.client, attester=self.attester)
        self.access = AccessLog(self.store.audit)
        self.exporter = _exporter(config, self.store)
        self.fleet_service = FleetService(
            settings=FleetSettings(
                fleet=config.fleet,
                concurrency=config.command_concurrency,
                relay_limits=RelayLimits(max_messages=config.subscriber_queue_messages, max_bytes=config.subscriber_queue_bytes),
            ),
            store=self.store,
            client=self.client,
            attester=self.attester,
            commander=self.commander,
            feed=self.feed,
            access=self.access,
        )
        self.registry_service = RegistryService(
            settings=RegistrySettings(
                fleet=config.fleet,
                ca_pem=ca.certificate_pem,
                command_public_pem=signer.public_pem,
                advertise_enroll=config.advertise_enroll,
            ),
            store=self.store,
            attester=self.attester,
            loop=self.loop,
            feed=self.feed,
            access=self.access,
        )
        self.enrollment_service = EnrollmentService(
            policy=EnrollmentPolicy(
                fleet=config.fleet, ek_roots=ek_roots, certificate_lifetime=timedelta(hours=config.agent_certificate_h)
            ),
            ca=ca,
            store=self.store,
            on_enrolled=self._enrolled,
        )
        self.operator_port = 0
        self.enroll_port = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Serves while the block runs; `operator_port` and `enroll_port` say where. Drains at its end.

        Raises:
            ConfigError: an address cannot be bound.
        """
        await self.store.open()
        await self._check_audit()
        operators, operator_health = self._operator_server()
        joiners, joiner_health = self._enrollment_server()
        await operators.start()
        await joiners.start()
        running = [self.loop.run(), self.collector.run(), self._renew_certificate(), self._sign_audit(), self.access.run()]
        if self.exporter is not None:
            running.append(self.exporter.run())
        tasks = [asyncio.ensure_future(task) for task in running]
        _log.info("controller runs", fleet=self.config.fleet, operators=self.operator_port, enrolment=self.enroll_port)
        try:
            yield
        finally:
            await operator_health.enter_graceful_shutdown()
            await joiner_health.enter_graceful_shutdown()
            self.fleet_service.drain()
            for task in tasks:
                task.cancel()
            await asyncio.gather(operators.stop(_DRAIN_S), joiners.stop(_DRAIN_S), *tasks, return_exceptions=True)
            await self.fleet_service.settle()
            await self.client.close()
            await self.access.flush()
            await self.store.checkpoint()
            await self.store.close()
            _log.info("controller stopped")

    def _enrolled(self, record: AgentRecord) -> None:
        self.feed.publish(record)
        self.loop.attest_soon(record.agent_id)

    async def _check_audit(self) -> None:
        try:
            await self.store.verify_audit()
        except AuditError as error:
            # It goes on: the log is evidence now, and refusing to run would only hide it from `jarvisctl audit verify`.
            _log.error("the audit log was edited", sequence=error.sequence, reason=error.reason, message=error.message)

    async def _sign_audit(self) -> None:
        while True:
            try:
                await self.store.checkpoint()
            except Exception:  # noqa: BLE001 - logged with its trace; the next turn tries again
                _log.exception("the audit chain could not be signed")
            await asyncio.sleep(self.config.audit_checkpoint_s)

    async def _renew_certificate(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_CHECK_S)
            try:
                if self.credentials.renew_if_due():
                    _log.info("own certificate renewed", not_after=self.credentials.current.not_after.isoformat())
                self.checkpointer.signer = audit_signer(self.config.state_directory, self._ca, self.config.name)
            except (OSError, TrustError) as error:
                _log.error("own certificate could not be renewed; trying again in an hour", error=str(error))

    async def _refused(self, context: Any, method: str, error: RpcError) -> None:
        try:
            principal = caller_of(context, self.config.fleet).uri
        except RpcError:
            principal = ""
        await self.access.refused(principal, method, reason_of(error.status), error.status.message, context.peer())

    def _operator_server(self) -> tuple[grpc.aio.Server, Any]:
        interceptor = AuthorizationInterceptor(operator_check(self.config.fleet), self._refused)
        server = grpc.aio.server(interceptors=(interceptor,), options=_OPERATOR_OPTIONS)
        handlers = fleet_handlers(self.fleet_service, self.registry_service)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_FLEET, handlers),))
        servicer = _add_health(server, _FLEET)
        reflection.enable_server_reflection((_FLEET, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        credentials = self.credentials.server_credentials(clients_need_certificates=True)
        self.operator_port = _bind("listen", self.config.listen, lambda address: server.add_secure_port(address, credentials))
        return server, servicer

    def _enrollment_server(self) -> tuple[grpc.aio.Server, Any]:
        interceptor = AuthorizationInterceptor(enrollment_check, self._refused)
        server = grpc.aio.server(interceptors=(interceptor,), options=_ENROLLMENT_OPTIONS)
        handler = _enroll_handler(self.enrollment_service.enroll)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_ENROLLMENT, {"Enroll": handler}),))
        servicer = _add_health(server, _ENROLLMENT)
        credentials = self.credentials.server_credentials(clients_need_certificates=False)
        self.enroll_port = _bind(
            "enroll_listen", self.config.enroll_listen, lambda address: server.add_secure_port(address, credentials)
        )
        return server, servicer


def fleet_handlers(service: FleetService, registry: RegistryService) -> dict[str, Any]:
    """The table of FleetService; ListFlows and WatchFlows answer with finished bytes."""
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    pb = fleet_pb2
    return {
        "ListAgents": _handler(unary, registry.list_agents, pb.ListAgentsRequest, pb.ListAgentsResponse),
        "GetBootReport": _handler(unary, registry.get_boot_report, pb.GetBootReportRequest, pb.GetBootReportResponse),
        "AttestAgents": _handler(stream, service.attest_agents, pb.AttestAgentsRequest, pb.AttestAgentsResponse),
        "StartCaptures": _handler(stream, service.start_captures, pb.StartCapturesRequest, pb.CaptureOutcome),
        "StopCaptures": _handler(stream, service.stop_captures, pb.StopCapturesRequest, pb.CaptureOutcome),
        "UpdateInterfaces": _handler(stream, service.update_interfaces, pb.FleetUpdateInterfacesRequest, pb.CaptureOutcome),
        "GetCaptureStatuses": _handler(stream, service.get_capture_statuses, pb.GetCaptureStatusesRequest, pb.CaptureOutcome),
        "WatchMetrics": _handler(stream, service.watch_metrics, pb.WatchMetricsRequest, pb.WatchMetricsResponse),
        "ListFlows": _handler(stream, service.list_flows, pb.FleetListFlowsRequest, None),
        "WatchFlows": _handler(stream, service.watch_flows, pb.WatchFlowsRequest, None),
        "WatchEvents": _handler(stream, service.watch_events, pb.WatchEventsRequest, pb.WatchEventsResponse),
        "CreateJoinToken": _handler(unary, registry.create_join_token, pb.CreateJoinTokenRequest, pb.CreateJoinTokenResponse),
        "QuarantineAgent": _handler(unary, registry.quarantine_agent, pb.QuarantineAgentRequest, pb.QuarantineAgentResponse),
        "ReleaseAgent": _handler(unary, registry.release_agent, pb.ReleaseAgentRequest, pb.ReleaseAgentResponse),
        "RetireAgent": _handler(unary, registry.retire_agent, pb.RetireAgentRequest, pb.RetireAgentResponse),
        "ListAuditEvents": _handler(unary, registry.list_audit_events, pb.ListAuditEventsRequest, pb.ListAuditEventsResponse),
        "ListAuditCheckpoints": _handler(
            unary, registry.list_audit_checkpoints, pb.ListAuditCheckpointsRequest, pb.ListAuditCheckpointsResponse
        ),
        "GetAttestationCase": _handler(
            unary, registry.get_attestation_case, pb.GetAttestationCaseRequest, pb.GetAttestationCaseResponse
        ),
    }


def _handler(make: Callable[..., Any], behaviour: Any, request: Any, response: Any) -> Any:
    """Requests come as bytes: they are parsed behind the authorization, and what is no message is refused as bad input."""

    async def single(payload: bytes, context: Any) -> Any:
        return await behaviour(parse_request(request, payload), context)

    async def streaming(payload: bytes, context: Any) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(behaviour(parse_request(request, payload), context)) as answers:
            async for answer in answers:
                yield answer

    serializer = None if response is None else response.SerializeToString
    handler = single if make is grpc.unary_unary_rpc_method_handler else streaming
    return make(handler, request_deserializer=None, response_serializer=serializer)


def _enroll_handler(behaviour: Any) -> Any:
    """The same for a stream of requests."""

    async def parsed(payloads: AsyncIterator[bytes]) -> AsyncGenerator[enrollment_pb2.EnrollRequest, None]:
        async for payload in payloads:
            yield parse_request(enrollment_pb2.EnrollRequest, payload)

    async def enroll(payloads: AsyncIterator[bytes], context: Any) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(behaviour(parsed(payloads), context)) as answers:
            async for answer in answers:
                yield answer

    return grpc.stream_stream_rpc_method_handler(
        enroll, request_deserializer=None, response_serializer=enrollment_pb2.EnrollResponse.SerializeToString
    )


def _add_health(server: grpc.aio.Server, service: str) -> Any:
    servicer = HealthServicer()
    servicer._server_status[service] = health_pb2.HealthCheckResponse.SERVING  # noqa: SLF001 - `set` is a coroutine, and nobody listens yet
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def _read_certificates(field: str, path: Path) -> bytes:
    pem = path.read_bytes()
    try:
        x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"{field}: {path} holds no certificates in PEM: {error}") from error
    return pem


def _boot_policy(config: ControllerConfig, release_key: bytes) -> BootPolicy | None:
    if not config.boot_references:
        return None
    references = []
    for path in config.boot_references:
        try:
            signature = path.with_name(path.name + ".sig").read_bytes()
            references.append(verify_reference(path.read_bytes(), signature, release_key))
        except TrustError as error:
            raise ConfigError(f"boot_references: {path}: {error.reason}: {error.message}") from error
    return BootPolicy(references=tuple(references), pcrs=config.boot_pcrs, require_secure_boot=config.require_secure_boot)


def _exporter(config: ControllerConfig, store: Store) -> AuditExporter | None:
    if not config.audit_syslog:
        return None
    host, port = config.syslog_address()
    with _as_config_error():
        if config.audit_syslog_ca is not None:
            _read_certificates("audit_syslog_ca", config.audit_syslog_ca)
        if config.audit_syslog_certificate is not None:
            load_private_key(config.audit_syslog_certificate)
    target = SyslogTarget(
        host=host,
        port=port,
        ca=config.audit_syslog_ca,
        certificate=config.audit_syslog_certificate,
        sd_id=config.audit_syslog_sd_id,
        hostname=controller_identity(config.fleet, config.name).dns_names[0],
    )
    return AuditExporter(store, target)


def _bind(field: str, address: str, bind: Callable[[str], int]) -> int:
    try:
        port = bind(address)
    except RuntimeError as error:
        raise ConfigError(f"{field} = {address!r} cannot be bound: is it in use, or of another host?") from error
    if port == 0:
        raise ConfigError(f"{field} = {address!r} cannot be bound: is it in use, or of another host?")
    return port


@contextlib.contextmanager
def _as_config_error() -> Any:
    try:
        yield
    except TrustError as error:
        raise ConfigError(f"{error.reason}: {error.message}") from error
    except OSError as error:
        raise ConfigError(f"{Path(str(error.filename))}: {error.strerror}") from error


async def serve(config: ControllerConfig) -> None:
    """Runs a controller until SIGTERM or SIGINT.

    Raises:
        ConfigError: something that the configuration names cannot be used.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Controller(config).running():
        await stop.wait()
