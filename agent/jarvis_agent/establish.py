# SPDX-License-Identifier: Apache-2.0
"""What an agent establishes before it enrols: who it is, the event log, the firmware, in the order that trust demands.

join file → TPM identity (or the key in its place) → event log → rollback floor → firmware (measure, judge, load) → TLS key
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from dataclasses import dataclass, replace

from jarvis_trust.errors import TrustError
from jarvis_trust.identities import Identity, Role, agent_id_from_ek
from jarvis_trust.joinfile import JoinFile
from jarvis_trust.software_identity import SoftwareSigner
from jarvis_trust.tpm_structures import parse_public

from jarvis_agent import firmware as firmware_module
from jarvis_agent.config import AgentConfig
from jarvis_agent.enroll import TpmIdentity
from jarvis_agent.errors import ConfigError
from jarvis_agent.event_log import EventLog
from jarvis_agent.firmware import FirmwareState, MeasurementContext
from jarvis_agent.floor import FloorKeeper
from jarvis_agent.releases import Releases
from jarvis_agent.software_identity import (
    NO_TPM,
    ConfiguredFloor,
    SoftwareEventLog,
    SoftwareWorker,
    load_identity,
)
from jarvis_agent.tls_key import TpmTlsKey
from jarvis_agent.tls_state import TlsState
from jarvis_agent.tpm import TpmPriority, TpmWorker
from jarvis_agent.tpm_device import TpmDevice
from jarvis_agent.tpm_handles import KeyHandles
from jarvis_agent.tunnel_address import TunnelAddress

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
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


def open_worker(config: AgentConfig) -> TpmWorker | SoftwareWorker:
    """The TPM that the configuration names, or what takes its place.

    Raises:
        TrustError: the TPM is not there.
    """
    return SoftwareWorker() if config.tcti == NO_TPM else TpmWorker.for_tcti(config.tcti, KeyHandles.of(config))


async def establish(config: AgentConfig, worker: TpmWorker | SoftwareWorker) -> Trusted:
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
    return Trusted(
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
