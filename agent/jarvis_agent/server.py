# SPDX-License-Identifier: Apache-2.0
"""`jarvis-agent run`: the parts put together in the order that trust demands, and taken apart in the order that loses nothing.

    start:  TPM identity → event log → firmware (measure, judge, load) → enrolment → serve
    stop:   capture stopped gracefully → streams read to the end → they end with UNAVAILABLE → server, TPM closed

One event loop; everything that blocks runs on the TPM's thread, the capture's thread or in a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jarvis.capture.v1.event_pb2 import (
    EVENT_SEVERITY_CRITICAL,
    EVENT_SEVERITY_ERROR,
    EVENT_SEVERITY_INFO,
    EVENT_TYPE_AGENT_STARTED,
    EVENT_TYPE_AGENT_STOPPED,
    EVENT_TYPE_FIRMWARE_REFUSED,
    EVENT_TYPE_RELEASE_ACTIVATED,
    EVENT_TYPE_RELEASE_ROLLED_BACK,
)
from jarvis_native import Authority, Firmware
from jarvis_trust.commands import command_public_raw
from jarvis_trust.errors import TrustError
from jarvis_trust.identities import Identity, Role, agent_id_from_ek
from jarvis_trust.joinfile import JoinFile
from jarvis_trust.software_identity import SoftwareSigner
from jarvis_trust.tpm_structures import parse_public

from jarvis_agent import __version__
from jarvis_agent import firmware as firmware_module
from jarvis_agent.attest import Attester
from jarvis_agent.authorization import CommandGate
from jarvis_agent.boot_log import BootLogFile
from jarvis_agent.captures import CaptureManager
from jarvis_agent.carriers import DirectServing, Serving, TunnelServing
from jarvis_agent.config import AgentConfig
from jarvis_agent.enroll import Enroller, TpmIdentity
from jarvis_agent.errors import ConfigError
from jarvis_agent.event_file import EventFile
from jarvis_agent.event_log import EventLog
from jarvis_agent.events import EventJournal
from jarvis_agent.firmware import FirmwareState, MeasurementContext
from jarvis_agent.floor import FloorKeeper
from jarvis_agent.happenings import LeaseWatch
from jarvis_agent.ima_log import ImaLogFile
from jarvis_agent.lease import LeaseKeeper, LeaseSubject, boottime_ns, read_high_water
from jarvis_agent.log import configure_logging
from jarvis_agent.releases import Releases, restart_process
from jarvis_agent.service import AgentService
from jarvis_agent.software_identity import (
    NO_TPM,
    AbsentStoreKey,
    AbsentTpm,
    ConfiguredFloor,
    SoftwareEventLog,
    SoftwareWorker,
    load_identity,
)
from jarvis_agent.store_key import StoreKey, StorePolicy
from jarvis_agent.tls_key import TpmTlsKey
from jarvis_agent.tls_state import TlsState
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice
from jarvis_agent.tpm_handles import KeyHandles
from jarvis_agent.tpm_watch import TpmWatch
from jarvis_agent.tunnel_address import TunnelAddress

_LOG = logging.getLogger(__name__)

DRAIN_S = 5.0
"""How long streams may take to give what is left."""
STOP_GRACE_S = 1.0


class _Stop(asyncio.Event):
    """Set when the process is to end, or to be started anew."""

    is_restart = False

    def restart(self) -> None:
        """Sets it: a new process follows."""
        self.is_restart = True
        self.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trusted:
    """What start-up established, step by step."""

    config: AgentConfig
    join: JoinFile
    worker: TpmWorker | SoftwareWorker
    tpm: TpmIdentity | SoftwareSigner
    event_log: EventLog
    tpm_counts: tuple[int, int]
    """resetCount and restartCount of the boot that is measured in."""
    firmware: FirmwareState
    floor: FloorKeeper | ConfiguredFloor
    releases: Releases
    context: MeasurementContext
    boot_id: bytes
    session_id: bytes
    tls: TlsState
    tunnel: TunnelAddress


def run_agent(config_path: Path) -> None:
    """Runs until SIGTERM or SIGINT. Blocks; owns the process's event loop and signal handlers.

    Raises:
        ConfigError: configuration or join file are not acceptable.
        TrustError: the TPM is not there, or a private file is exposed.
        OSError: a directory cannot be written or the port not be bound.
    """
    config = AgentConfig.load(config_path)
    configure_logging("json" if config.log_format == "json" else "console")
    # The TPM library prints to stderr by itself; its return codes reach our log as exceptions.
    os.environ.setdefault("TSS2_LOG", "all+none")
    if asyncio.run(_run(config)):
        restart_process()


async def _run(config: AgentConfig) -> bool:
    """Until it is told to stop; whether the process is to be started anew, for another release."""
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    start_time_ns = time.time_ns()
    worker = SoftwareWorker() if config.tcti == NO_TPM else TpmWorker.for_tcti(config.tcti, KeyHandles.of(config))
    try:
        trusted = await _establish(config, worker)
        if trusted.releases.is_on_trial and trusted.firmware.firmware is None:
            trusted.releases.roll_back(trusted.firmware.reason, trusted.firmware.message)
            return True
        enroller = _enroller(trusted)
        if not await _unless(stop, enroller.ensure):
            return False
        await _serve(trusted, enroller, stop, start_time_ns)
        return stop.is_restart
    finally:
        await asyncio.to_thread(worker.close)


async def _establish(config: AgentConfig, worker: TpmWorker | SoftwareWorker) -> _Trusted:
    """Identity, event log and firmware, in this order."""
    join = _load_join_file(config)
    boot_id = firmware_module.read_boot_id()
    tpm: TpmIdentity | SoftwareSigner
    event_log: EventLog
    if isinstance(worker, TpmWorker):
        tpm = await worker.run(TpmPriority.CREDENTIAL, read_tpm_identity)
        event_log = EventLog(config.state_directory, config.pcr)
        clock = await worker.run(TpmPriority.MEASUREMENT, TpmDevice.clock)
        counts = clock.reset_count, clock.restart_count
    else:
        tpm = load_identity(config.state_directory)
        event_log = SoftwareEventLog(config.state_directory, config.pcr, boot_id=boot_id)
        counts = (0, 0)
        _LOG.warning("this agent has no TPM (tcti = %r): it proves nothing of this host, level L0", NO_TPM)
    _LOG.info("this agent is %s of fleet %s", tpm.agent_id, config.fleet)
    await worker.run(TpmPriority.MEASUREMENT, event_log.open)
    context = MeasurementContext(
        worker=worker,
        event_log=event_log,
        boot_id=boot_id,
        session_id=firmware_module.new_session_id(),
    )
    floor = _floor(config, worker)
    releases = Releases(
        config.state_directory,
        firmware_directory=config.firmware_directory,
        boot_id=context.boot_id,
        judge=functools.partial(firmware_module.judge_release, config, floor.in_force),
        try_out=functools.partial(firmware_module.try_release, config, floor.in_force),
    )
    chosen = replace(config, firmware_directory=releases.begin_process())
    firmware = await asyncio.to_thread(firmware_module.load, chosen, context, floor.in_force)
    if firmware.firmware is not None:
        releases.loaded(hashlib.sha256(firmware.manifest).digest())
    identity = Identity(fleet=config.fleet, role=Role.AGENT, name=tpm.agent_id)
    tunnel = TunnelAddress(config.state_directory, is_wanted=config.carrier == "tunnel")
    # A port needs a key in a file; whoever dials has one that never leaves the TPM.
    in_tpm = worker if isinstance(worker, TpmWorker) and tunnel.is_wanted else None
    key = None if in_tpm is None else await TpmTlsKey.open(in_tpm, config.state_directory / "tls")
    tls = TlsState(config.state_directory / "tls", identity=identity, ca_pem=join.ca_pem.encode(), key=key)
    tls.joins_with(join.token, join.ca_pem.encode())
    return _Trusted(
        config=config,
        join=join,
        worker=worker,
        tpm=tpm,
        event_log=event_log,
        tpm_counts=counts,
        firmware=firmware,
        floor=floor,
        releases=releases,
        context=context,
        boot_id=context.boot_id,
        session_id=context.session_id,
        tls=tls,
        tunnel=tunnel,
    )


def _floor(config: AgentConfig, worker: TpmWorker | SoftwareWorker) -> FloorKeeper | ConfiguredFloor:
    if not isinstance(worker, TpmWorker):
        return ConfiguredFloor(config.firmware_floor)
    return FloorKeeper(worker, index=config.floor_nv_index, configured=config.firmware_floor)


def read_tpm_identity(device: TpmDevice) -> TpmIdentity:
    """EK, its certificates, and the AK, as enrolment and leases name them."""
    endorsement = device.endorsement_identity()
    ak_public = device.attestation_public()
    return TpmIdentity(
        endorsement=endorsement,
        ak_public=ak_public,
        ak_name=parse_public(ak_public).name,
        agent_id=agent_id_from_ek(parse_public(endorsement.public).spki_der),
    )


def _load_join_file(config: AgentConfig) -> JoinFile:
    try:
        join = JoinFile.load(config.join_file)
    except (OSError, TrustError) as error:
        raise ConfigError(f"join_file: {config.join_file}: {error}; what `jarvisctl enroll token` wrote is accepted") from error
    if join.fleet != config.fleet:
        raise ConfigError(f"fleet: {config.fleet!r}; the join file {config.join_file} is for {join.fleet!r}")
    return join


def _enroller(trusted: _Trusted) -> Enroller:
    config = trusted.config
    return Enroller(
        join=trusted.join,
        address=config.enroll_address or trusted.join.address,
        advertise=config.advertise,
        tunnel=trusted.tunnel,
        tpm=trusted.tpm,
        worker=trusted.worker,
        tls=trusted.tls,
        first_retry_s=config.enroll_retry_s,
    )


async def _unless(stop: asyncio.Event, step: Callable[[], Awaitable[object]]) -> bool:
    """Runs `step` until it is done or the agent is told to stop; False in the latter case."""
    task = asyncio.ensure_future(step())
    waiter = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task in done:
        task.result()
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


def build_service(
    trusted: _Trusted,
    start_time_ns: int,
    request_restart: Callable[[], None],
    on_trust: Callable[[bytes], None] = lambda _: None,
) -> AgentService:
    """The service and everything behind it."""
    config, loaded = trusted.config, trusted.firmware.firmware
    captures: CaptureManager | None = None
    journal = _open_journal(trusted)
    lease_watch = LeaseWatch(journal, clock=boottime_ns)

    def on_lease_change(end_ns: int) -> None:
        lease_watch.changed(leases.sequence, end_ns)
        proved = leases.sequence and _confirm_release(trusted.releases, journal)
        if proved and loaded is not None and loaded.manifest is not None:
            trusted.floor.attested(loaded.manifest.minimum_security_version)

    authority = None if loaded is None else _core_authority(trusted, loaded)
    leases = LeaseKeeper(
        subject=LeaseSubject(
            agent_id=trusted.tpm.agent_id,
            ak_name=trusted.tpm.ak_name,
            session_id=trusted.session_id,
            firmware_sha256=b"" if loaded is None else loaded.digest,
        ),
        command_public_pem=trusted.join.command_public_pem.encode(),
        state_path=_lease_state(config),
        on_change=on_lease_change,
        authority=authority,
    )
    if loaded is not None and authority is not None:
        captures = CaptureManager(
            firmware=loaded,
            replay_directory=config.replay_directory,
            worker_cpus=config.worker_cpus,
            dpdk_eal_args=config.dpdk_eal_args,
            flow_log_records=config.flow_log_records,
            journal=journal,
            authority=authority,
        )
    watch = _tpm_watch(trusted, journal, request_restart)
    attester = Attester(
        tpm=watch,
        event_log=trusted.event_log,
        firmware=trusted.firmware,
        leases=leases,
        agent_id=trusted.tpm.agent_id,
        boot_id=trusted.boot_id,
        session_id=trusted.session_id,
        agent_spki_sha256=lambda: trusted.tls.require().spki_sha256,
        boot_log=BootLogFile(path=config.boot_log),
        ima_log=ImaLogFile(path=config.ima_log),
        software=trusted.tpm if isinstance(trusted.tpm, SoftwareSigner) else None,
    )
    gate = CommandGate(
        fleet=config.fleet,
        agent_id=trusted.tpm.agent_id,
        session_id=trusted.session_id,
        command_public_pem=trusted.join.command_public_pem.encode(),
        leases=leases,
        authority=authority,
    )
    return AgentService(
        agent_id=trusted.tpm.agent_id,
        firmware=trusted.firmware,
        attester=attester,
        leases=leases,
        gate=gate,
        captures=captures,
        journal=journal,
        releases=trusted.releases,
        measure_trial=trusted.context.record_trial,
        request_restart=request_restart,
        start_time_ns=start_time_ns,
        tpm_status=watch.status,
        ca_bundle_sha256=lambda: trusted.tls.trust.sha256,
        on_trust=on_trust,
        store_key=_store_key(trusted),
    )


def _tpm_watch(trusted: _Trusted, journal: EventJournal, on_reset: Callable[[], None]) -> TpmWatch | AbsentTpm:
    if not isinstance(trusted.worker, TpmWorker):
        return AbsentTpm()
    return TpmWatch(trusted.worker, trusted.event_log, counts=trusted.tpm_counts, journal=journal, on_reset=on_reset)


def _lease_state(config: AgentConfig) -> Path:
    return config.state_directory / "lease.json"


def _core_authority(trusted: _Trusted, loaded: Firmware) -> Authority:
    """The core's own judge of leases and commands; it goes on where earlier processes were."""
    high = read_high_water(_lease_state(trusted.config))
    return Authority(
        loaded,
        agent_id=trusted.tpm.agent_id,
        command_public_key=command_public_raw(trusted.join.command_public_pem.encode()),
        session_id=trusted.session_id,
        ak_name=trusted.tpm.ak_name,
        firmware_sha256=loaded.digest,
        lease_sequence=high.sequence,
        audit_sequence=high.audit_sequence,
        audit_head=high.audit_head,
    )


def _store_key(trusted: _Trusted) -> StoreKey | AbsentStoreKey:
    if not isinstance(trusted.worker, TpmWorker):
        return AbsentStoreKey()
    policy = StorePolicy(
        agent_id=trusted.tpm.agent_id,
        command_public_pem=trusted.join.command_public_pem.encode(),
        pcrs=trusted.config.store_pcrs,
        firmware_pcr=trusted.config.pcr,
    )
    return StoreKey(trusted.worker, trusted.config.state_directory / "store", policy)


def _confirm_release(releases: Releases, journal: EventJournal) -> bool:
    """A lease came: a release on trial has proved itself. False: that could not be kept, the one before may come back."""
    try:
        activated = releases.confirm()
    except OSError as error:
        _LOG.error("the release pointer cannot be written (%s): the trial goes on, and back if no later lease helps", error)
        return False
    if activated is not None:
        version, manifest = activated
        detail = {"version": version, "manifest_sha256": manifest}
        journal.tell(EVENT_TYPE_RELEASE_ACTIVATED, EVENT_SEVERITY_INFO, f"release {version} is in force", detail=detail)
    return True


def _open_journal(trusted: _Trusted) -> EventJournal:
    """The journal, told of this start."""
    journal = EventJournal(EventFile(trusted.config.state_directory / "events.journal"), agent_id=trusted.tpm.agent_id)
    session = {"session_id": trusted.session_id.hex(), "version": __version__}
    journal.tell(EVENT_TYPE_AGENT_STARTED, EVENT_SEVERITY_INFO, f"jarvis-agent {__version__} started", detail=session)
    state = trusted.firmware
    if state.firmware is None:
        message = f"the capture firmware was refused ({state.reason}): {state.message}"
        refused = {"reason": state.reason, "sha256": state.sha256.hex()}
        journal.tell(EVENT_TYPE_FIRMWARE_REFUSED, EVENT_SEVERITY_CRITICAL, message, detail=refused)
    failed = trusted.releases.untold_failure()
    if failed is not None:
        message = f"release {failed.version} did not hold ({failed.reason}): {failed.message}; the one before goes on"
        detail = {"version": failed.version, "reason": failed.reason, "manifest_sha256": failed.sha256}
        journal.tell(EVENT_TYPE_RELEASE_ROLLED_BACK, EVENT_SEVERITY_ERROR, message, detail=detail)
        trusted.releases.told()
    return journal


async def _serve(trusted: _Trusted, enroller: Enroller, stop: _Stop, start_time_ns: int) -> None:
    service = build_service(trusted, start_time_ns, stop.restart, enroller.trust_is)
    await service.store_key.open()
    serving = _serving(trusted, service)
    await serving.start()
    renewal = asyncio.create_task(enroller.keep_renewed())
    keeper = asyncio.create_task(service.journal.keep())
    watcher = asyncio.create_task(service.attester.tpm.watch())
    try:
        if not await _unless(stop, lambda: renewal):
            _LOG.info("stopping: the capture ends, streams are read to the end")
    finally:
        renewal.cancel()
        watcher.cancel()
        await serving.announce_end()
        await _drain(service, serving)
        await keeper
        service.store_key.close()


def _serving(trusted: _Trusted, service: AgentService) -> Serving:
    config = trusted.config
    if not trusted.tunnel.is_wanted:
        return DirectServing(config, service.handler(), trusted.tls)
    return TunnelServing(
        config,
        service.handler(),
        trusted.tls,
        session_id=trusted.session_id,
        address=lambda: config.tunnel_address or trusted.tunnel.current,
    )


async def _drain(service: AgentService, serving: Serving) -> None:
    """Our own: grpc.aio.Server.stop alone cuts streams in the middle."""
    service.is_draining = True
    if service.captures is not None:
        await service.captures.shut_down()
    service.journal.tell(EVENT_TYPE_AGENT_STOPPED, EVENT_SEVERITY_INFO, "the agent is stopping")
    await service.journal.finish()
    try:
        await asyncio.wait_for(service.streams_ended.wait(), timeout=DRAIN_S)
    except TimeoutError:
        _LOG.warning("%d streams were not read to the end within %.0f s", service.streams, DRAIN_S)
    await serving.stop(STOP_GRACE_S)
