# SPDX-License-Identifier: Apache-2.0
"""The parts of AgentService put together from what start-up established."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from jarvis.capture.v1.event_pb2 import (
    EVENT_SEVERITY_CRITICAL,
    EVENT_SEVERITY_ERROR,
    EVENT_SEVERITY_INFO,
    EVENT_TYPE_AGENT_STARTED,
    EVENT_TYPE_FIRMWARE_REFUSED,
    EVENT_TYPE_RELEASE_ACTIVATED,
    EVENT_TYPE_RELEASE_ROLLED_BACK,
)
from jarvis_native import Authority, Firmware
from jarvis_trust.commands import command_public_raw
from jarvis_trust.software_identity import SoftwareSigner

from jarvis_agent import __version__
from jarvis_agent.attest import Attester
from jarvis_agent.authorization import CommandGate
from jarvis_agent.boot_log import BootLogFile
from jarvis_agent.captures import CaptureManager
from jarvis_agent.config import AgentConfig
from jarvis_agent.establish import Trusted
from jarvis_agent.event_file import EventFile
from jarvis_agent.events import EventJournal
from jarvis_agent.export.assembly import build_exports
from jarvis_agent.export.manager import ExportManager
from jarvis_agent.export_service import ExportVerbs
from jarvis_agent.happenings import LeaseWatch
from jarvis_agent.ima_log import ImaLogFile
from jarvis_agent.lease import ActiveLease, LeaseKeeper, LeaseSubject, boottime_ns, read_high_water
from jarvis_agent.releases import Releases
from jarvis_agent.service import AgentService
from jarvis_agent.software_identity import AbsentStoreKey, AbsentTpm
from jarvis_agent.store_key import StoreKey, StorePolicy
from jarvis_agent.tpm import TpmWorker
from jarvis_agent.tpm_watch import TpmWatch

_LOG = logging.getLogger(__name__)


def build_service(
    trusted: Trusted,
    start_time_ns: int,
    request_restart: Callable[[], None],
    on_trust: Callable[[bytes], None] = lambda _: None,
) -> AgentService:
    """The service and everything behind it."""
    loaded = trusted.firmware.firmware
    journal = _open_journal(trusted)
    authority = None if loaded is None else _core_authority(trusted, loaded)
    exports: ExportManager | None = None

    def tell_exports(lease: ActiveLease | None) -> None:
        if exports is not None:
            exports.lease_changed(lease)

    leases = _lease_keeper(trusted, journal, authority, tell_exports)
    captures = None
    if loaded is not None and authority is not None:
        captures = _captures(trusted.config, loaded, journal, authority)
        exports = build_exports(
            trusted,
            firmware=loaded,
            captures=captures,
            journal=journal,
            authority=authority,
            leases=leases,
            start_time_ns=start_time_ns,
        )
    watch = _tpm_watch(trusted, journal, request_restart)
    return AgentService(
        agent_id=trusted.tpm.agent_id,
        firmware=trusted.firmware,
        attester=_attester(trusted, leases, watch),
        leases=leases,
        gate=_gate(trusted, leases, authority),
        captures=captures,
        exports=ExportVerbs(manager=exports, session_id=trusted.session_id),
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


def _lease_keeper(
    trusted: Trusted,
    journal: EventJournal,
    authority: Authority | None,
    tell_exports: Callable[[ActiveLease | None], None],
) -> LeaseKeeper:
    """What a lease proves of the firmware that it was given for is kept when it comes: the release, and the floor it sets."""
    loaded = trusted.firmware.firmware
    lease_watch = LeaseWatch(journal, clock=boottime_ns)

    def on_lease_change(end_ns: int) -> None:
        lease_watch.changed(leases.sequence, end_ns)
        tell_exports(leases.current)
        proved = leases.sequence and _confirm_release(trusted.releases, journal)
        if proved and loaded is not None and loaded.manifest is not None:
            trusted.floor.attested(loaded.manifest.minimum_security_version)

    leases = LeaseKeeper(
        subject=LeaseSubject(
            agent_id=trusted.tpm.agent_id,
            ak_name=trusted.tpm.ak_name,
            session_id=trusted.session_id,
            firmware_sha256=b"" if loaded is None else loaded.digest,
        ),
        command_public_pem=trusted.join.command_public_pem.encode(),
        state_path=_lease_state(trusted.config),
        on_change=on_lease_change,
        authority=authority,
    )
    return leases


def _captures(config: AgentConfig, loaded: Firmware, journal: EventJournal, authority: Authority) -> CaptureManager:
    return CaptureManager(
        firmware=loaded,
        replay_directory=config.replay_directory,
        worker_cpus=config.worker_cpus,
        dpdk_eal_args=config.dpdk_eal_args,
        flow_log_records=config.flow_log_records,
        journal=journal,
        authority=authority,
    )


def _attester(trusted: Trusted, leases: LeaseKeeper, watch: TpmWatch | AbsentTpm) -> Attester:
    config = trusted.config
    return Attester(
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


def _gate(trusted: Trusted, leases: LeaseKeeper, authority: Authority | None) -> CommandGate:
    return CommandGate(
        fleet=trusted.config.fleet,
        agent_id=trusted.tpm.agent_id,
        session_id=trusted.session_id,
        command_public_pem=trusted.join.command_public_pem.encode(),
        leases=leases,
        authority=authority,
    )


def _tpm_watch(trusted: Trusted, journal: EventJournal, on_reset: Callable[[], None]) -> TpmWatch | AbsentTpm:
    if not isinstance(trusted.worker, TpmWorker):
        return AbsentTpm()
    return TpmWatch(trusted.worker, trusted.event_log, counts=trusted.tpm_counts, journal=journal, on_reset=on_reset)


def _lease_state(config: AgentConfig) -> Path:
    return config.state_directory / "lease.json"


def _core_authority(trusted: Trusted, loaded: Firmware) -> Authority:
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


def _store_key(trusted: Trusted) -> StoreKey | AbsentStoreKey:
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


def _open_journal(trusted: Trusted) -> EventJournal:
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
