# SPDX-License-Identifier: Apache-2.0
"""The controller as one process: builds the parts, serves three ports, drains, stops.

    listen          operators: client certificate needed; FleetService, health, reflection
    enroll_listen   hosts that join: no client certificate; EnrollmentService, health
    tunnel_listen   agents that dial: client certificate of an agent needed; TunnelService, health

One event loop, one thread for the database. `Controller` may be started inside another program (tests do).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import structlog
from jarvis_trust.firmware import Manifest
from jarvis_trust.identities import Identity, Role
from jarvis_trust.status import reason_of

from jarvis_controller.access_log import AccessLog
from jarvis_controller.agent_carrier import AgentCarrier
from jarvis_controller.agent_client import AgentClient
from jarvis_controller.agent_record import AgentRecord, Carrier
from jarvis_controller.attestation import Attester
from jarvis_controller.attestation_loop import AttestationLoop
from jarvis_controller.audit_checkpoints import Checkpointer
from jarvis_controller.audit_log import CONTROLLER, AuditEntry
from jarvis_controller.authorization import AuthorizationInterceptor, caller_of, enrollment_check, operator_check, tunnel_check
from jarvis_controller.certificate_service import CertificateParts, CertificateService
from jarvis_controller.commander import Commander
from jarvis_controller.config import ControllerConfig
from jarvis_controller.config_files import audit_exporter
from jarvis_controller.deny_list import DenyList
from jarvis_controller.direct_carrier import DirectCarrier
from jarvis_controller.enrollment_service import EnrollmentPolicy, EnrollmentService
from jarvis_controller.event_collector import EventCollector
from jarvis_controller.evidence_rows import EvidenceLimits
from jarvis_controller.export_service import ExportService
from jarvis_controller.fleet_commands import FleetCommands
from jarvis_controller.fleet_service import FleetService, FleetSettings
from jarvis_controller.flow_relay import RelayLimits
from jarvis_controller.handlers import (
    CERTIFICATES,
    ENROLLMENT,
    FLEET,
    POLICY,
    RELEASE,
    TUNNEL,
    certificate_handlers,
    enrollment_handlers,
    fleet_handlers,
    policy_handlers,
    release_handlers,
    tunnel_handlers,
)
from jarvis_controller.leases import LeaseBook
from jarvis_controller.policy_service import PolicyService
from jarvis_controller.ports import ENROLLMENT_OPTIONS, OPERATOR_OPTIONS, TUNNEL_OPTIONS, Port, PortPlan, open_port
from jarvis_controller.registry_service import RegistryService, RegistrySettings
from jarvis_controller.release_service import ReleaseService
from jarvis_controller.release_store import ReleaseStore, verify_release
from jarvis_controller.rotation import Rotation
from jarvis_controller.rpc_status import RpcError
from jarvis_controller.state_feed import StateFeed
from jarvis_controller.state_files import StateFiles
from jarvis_controller.states import State
from jarvis_controller.store import Store
from jarvis_controller.tunnel_carrier import TunnelCarrier
from jarvis_controller.tunnel_service import TunnelService, TunnelSettings
from jarvis_controller.upkeep import Upkeep

_log = structlog.get_logger()

_DRAIN_S = 5.0


class Controller:
    """All parts of one controller. Build it, then `async with controller.running():`."""

    def __init__(self, config: ControllerConfig) -> None:
        """Reads keys and certificates.

        Raises:
            ConfigError: a file that the configuration names cannot be used.
        """
        self.config = config
        files = StateFiles.open(config)
        self.authorities, self.issuer, self.credentials = files.authorities, files.issuer, files.credentials
        self.releases, self.policies = files.releases, files.policies
        self.checkpointer = Checkpointer(
            signer=files.audit_key,
            ca_pem=self.authorities.known_pem,
            directory=config.state_directory,
            every_entries=config.audit_checkpoint_entries,
        )
        self.deny_list = DenyList(self.authorities.bundle.certificates)
        evidence = EvidenceLimits(age_ns=config.evidence_days * 86400 * 10**9, octets=config.evidence_mib << 20)
        self.store = Store(config.database, checkpointer=self.checkpointer, evidence=evidence, kept_events=config.kept_events)
        self.upkeep = Upkeep(
            config,
            authorities=self.authorities,
            issuer=self.issuer,
            credentials=self.credentials,
            checkpointer=self.checkpointer,
            deny_list=self.deny_list,
            store=self.store,
        )
        self.feed = StateFeed()
        self.leases = LeaseBook()
        self.tunnels = TunnelCarrier()
        direct = DirectCarrier(self.credentials, fleet=config.fleet, drain_s=config.agent_timeout_s)
        carriers: dict[Carrier, AgentCarrier] = {Carrier.DIRECT: direct, Carrier.TUNNEL: self.tunnels}
        self.client = AgentClient(
            carriers,
            files.signer,
            timeout_s=config.agent_timeout_s,
            check_agent=lambda agent_id: self.deny_list.check_agent(self._agent_uri(agent_id)),
        )
        self.attester = Attester(
            store=self.store,
            client=self.client,
            signer=files.signer,
            leases=self.leases,
            feed=self.feed,
            policies=self.policies,
            approvals=files.approvals,
            concurrency=config.attest_concurrency,
            ca_sha256=lambda: self.credentials.current.ca_sha256,
        )
        self.loop = AttestationLoop(store=self.store, attester=self.attester, feed=self.feed, policies=self.policies)
        self.collector = EventCollector(store=self.store, client=self.client, feed=self.feed)
        self.commander = Commander(client=self.client, attester=self.attester)
        self.access = AccessLog(self.store.audit)
        self.exporter = audit_exporter(config, self.store)
        self.fleet_commands = FleetCommands(store=self.store, commander=self.commander, concurrency=config.command_concurrency)
        self.fleet_service = self._fleet_service()
        self.export_service = self._export_service()
        self.registry_service = self._registry_service(files.signer.public_pem)
        self.tunnel_service = self._tunnel_service()
        self.enrollment_service = self._enrollment_service()
        self.policy_service = PolicyService(fleet=config.fleet, store=self.store, policies=self.policies)
        self.policies.on_applied = self.loop.attest_all_soon
        self.release_service = self._release_service()
        self.rotation = self._rotation(direct)
        self.certificate_service = CertificateService(
            CertificateParts(
                store=self.store,
                issuer=self.issuer,
                deny_list=self.deny_list,
                attester=self.attester,
                rotation=self.rotation,
            )
        )
        self.operator_port = 0
        self.enroll_port = 0
        self.tunnel_port = 0

    def _fleet_service(self) -> FleetService:
        config = self.config
        return FleetService(
            settings=FleetSettings(
                fleet=config.fleet,
                concurrency=config.command_concurrency,
                relay_limits=RelayLimits(max_messages=config.subscriber_queue_messages, max_bytes=config.subscriber_queue_bytes),
            ),
            store=self.store,
            client=self.client,
            attester=self.attester,
            commander=self.commander,
            commands=self.fleet_commands,
            feed=self.feed,
            access=self.access,
        )

    def _export_service(self) -> ExportService:
        return ExportService(
            fleet=self.config.fleet,
            concurrency=self.config.command_concurrency,
            store=self.store,
            commander=self.commander,
            commands=self.fleet_commands,
            access=self.access,
            collectors=lambda: self.policies.current.collectors,
        )

    def _registry_service(self, command_public_pem: bytes) -> RegistryService:
        config = self.config
        return RegistryService(
            settings=RegistrySettings(
                fleet=config.fleet,
                ca_pem=lambda: self.issuer.ca_pem,
                command_public_pem=command_public_pem,
                advertise_enroll=config.advertise_enroll,
            ),
            store=self.store,
            attester=self.attester,
            loop=self.loop,
            feed=self.feed,
            access=self.access,
            is_connected=self.client.is_connected,
        )

    def _tunnel_service(self) -> TunnelService:
        config = self.config
        return TunnelService(
            settings=TunnelSettings(fleet=config.fleet, per_s=config.tunnel_hellos_per_s),
            store=self.store,
            carrier=self.tunnels,
            controller_spki=lambda: self.credentials.current.spki_sha256,
            holds_lease=lambda agent_id: self.leases.get(agent_id) is not None,
            on_connected=self._connected,
            refused=self.access.refused,
        )

    def _enrollment_service(self) -> EnrollmentService:
        config = self.config
        return EnrollmentService(
            policy=EnrollmentPolicy(
                fleet=config.fleet,
                vendors=lambda: self.policies.current.vendors,
                without_tpm=lambda agent_id, labels: self.policies.current.for_agent(agent_id, labels).without_tpm,
                certificate_lifetime=timedelta(hours=config.agent_certificate_h),
                tunnel_address=config.tunnel_address,
            ),
            issuer=self.issuer,
            store=self.store,
            on_enrolled=self._enrolled,
        )

    def _release_service(self) -> ReleaseService:
        return ReleaseService(
            fleet=self.config.fleet,
            releases=ReleaseStore(self.config.state_directory / "releases", self._judge_release),
            store=self.store,
            client=self.client,
            attester=self.attester,
            commander=self.commander,
        )

    def _rotation(self, direct: DirectCarrier) -> Rotation:
        return Rotation(
            authorities=self.authorities,
            issuer=self.issuer,
            credentials=self.credentials,
            deny_list=self.deny_list,
            store=self.store,
            client=self.client,
            reconnect=direct.reconnect,
            on_change=self.upkeep.renew_audit_key,
            attest_all_soon=self.loop.attest_all_soon,
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Serves while the block runs; `operator_port` and `enroll_port` say where. Drains at its end.

        Raises:
            ConfigError: an address cannot be bound.
        """
        await self.store.open()
        await self.upkeep.check_database()
        await self.upkeep.check_audit()
        await self.upkeep.record_issued()
        await self.policies.start(self.store)
        ports = (self._open_operator_port(), self._open_enrollment_port(), self._open_tunnel_port())
        self.operator_port, self.enroll_port, self.tunnel_port = (port.number for port in ports)
        for port in ports:
            await port.start()
        running = [
            self.loop.run(),
            self.collector.run(),
            self.upkeep.renew_certificate(),
            self.upkeep.sign_audit(),
            self.access.run(),
            self.tunnel_service.run(),
            self.releases.watch(self._releases_changed),
        ]
        if self.exporter is not None:
            running.append(self.exporter.run())
        tasks = [asyncio.ensure_future(task) for task in running]
        _log.info(
            "controller runs",
            fleet=self.config.fleet,
            operators=self.operator_port,
            enrolment=self.enroll_port,
            tunnel=self.tunnel_port,
        )
        try:
            yield
        finally:
            for port in ports:
                await port.drain()
            self.fleet_service.drain()
            for task in tasks:
                task.cancel()
            await self.tunnels.close()
            await asyncio.gather(*(port.stop(_DRAIN_S) for port in ports), *tasks, return_exceptions=True)
            await self.fleet_commands.settle()
            await self.release_service.settle()
            await self.client.close()
            await self.access.flush()
            await self.store.checkpoint()
            await self.store.close()
            _log.info("controller stopped")

    def _judge_release(self, manifest: bytes, signature: bytes) -> Manifest:
        """By the policy of the moment: what is held already may be below its floor later."""
        policy = self.policies.current
        floor, versions = policy.firmware_floor, policy.firmware_versions
        return verify_release(manifest, signature, trust=self.releases.now(), floor=floor, versions=versions)

    def _agent_uri(self, agent_id: str) -> str:
        return Identity(fleet=self.config.fleet, role=Role.AGENT, name=agent_id).uri

    def _enrolled(self, record: AgentRecord) -> None:
        self.deny_list.admitted(self._agent_uri(record.agent_id))
        self.feed.publish(record)
        self.loop.attest_soon(record)

    def _connected(self, record: AgentRecord, process_id: bytes) -> None:
        if record.state not in {State.QUARANTINED, State.RETIRED}:
            self.loop.connected(record, process_id)

    async def _releases_changed(self) -> None:
        root, revocations = self.releases.root.current, self.releases.revocations
        detail = {"root": root.version, "revocations": 0 if revocations is None else revocations.version}
        await self.store.audit(AuditEntry(principal=CONTROLLER, action="releases.changed", detail=detail))
        self.loop.attest_all_soon()

    async def _refused(self, context: Any, method: str, error: RpcError) -> None:
        try:
            principal = caller_of(context, self.config.fleet).uri
        except RpcError:
            principal = ""
        await self.access.refused(principal, method, reason_of(error.status), error.status.message, context.peer())

    def _open_operator_port(self) -> Port:
        services = {
            FLEET: fleet_handlers(self.fleet_service, self.registry_service, self.export_service),
            POLICY: policy_handlers(self.policy_service),
            RELEASE: release_handlers(self.release_service),
            CERTIFICATES: certificate_handlers(self.certificate_service),
        }
        plan = PortPlan(field="listen", address=self.config.listen, services=services, options=OPERATOR_OPTIONS, reflects=True)
        interceptor = AuthorizationInterceptor(
            operator_check(self.config.fleet), self._refused, self.deny_list, audits_handlers=True
        )
        return open_port(plan, self.credentials.server_credentials(clients_need_certificates=True), interceptor)

    def _open_enrollment_port(self) -> Port:
        services = {ENROLLMENT: enrollment_handlers(self.enrollment_service)}
        plan = PortPlan(field="enroll_listen", address=self.config.enroll_listen, services=services, options=ENROLLMENT_OPTIONS)
        interceptor = AuthorizationInterceptor(enrollment_check, self._refused, self.deny_list)
        return open_port(plan, self.credentials.server_credentials(clients_need_certificates=False), interceptor)

    def _open_tunnel_port(self) -> Port:
        services = {TUNNEL: tunnel_handlers(self.tunnel_service)}
        plan = PortPlan(field="tunnel_listen", address=self.config.tunnel_listen, services=services, options=TUNNEL_OPTIONS)
        interceptor = AuthorizationInterceptor(tunnel_check(self.config.fleet), self._refused, self.deny_list)
        return open_port(plan, self.credentials.server_credentials(clients_need_certificates=True), interceptor)


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
