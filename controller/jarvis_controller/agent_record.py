# SPDX-License-Identifier: Apache-2.0
"""What is known of one agent, frozen: what leaves the store, and what evidence is judged against. Needs no database.

Times are ns since the Unix epoch; digests and keys are raw bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from jarvis.capture.v1 import enrollment_pb2, fleet_pb2

from jarvis_controller.ima_state import ImaState
from jarvis_controller.states import State


class Carrier(StrEnum):
    """How an agent is reached."""

    DIRECT = "direct"
    """The controller dials it."""
    TUNNEL = "tunnel"
    """It dials TunnelService."""

    @property
    def wire(self) -> enrollment_pb2.Carrier.ValueType:
        """As messages say it."""
        return enrollment_pb2.CARRIER_TUNNEL if self is Carrier.TUNNEL else enrollment_pb2.CARRIER_DIRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmMoment:
    """Where a TPM stood at its last accepted quote."""

    clock: int
    """Milliseconds the TPM was powered."""
    reset_count: int
    restart_count: int
    firmware_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """All that is known of one agent."""

    agent_id: str
    state: State
    reason: str
    """Why it is in this state; for QUARANTINED every failed check."""
    state_time_ns: int
    labels: Mapping[str, str]
    address: str
    """host:port where it is dialled; empty where it dials."""
    hostname: str
    version: str
    enroll_time_ns: int
    ek_certificate: bytes
    ek_public: bytes
    ak_public: bytes
    """TPMT_PUBLIC."""
    ak_name: bytes
    tls_spkis: tuple[bytes, ...]
    """SHA-256 of the SubjectPublicKeyInfo of its last issued certificates that can still be valid, newest first (at most two)."""
    certificate_expire_ns: int
    verify_time_ns: int | None
    """Of the last passed attestation."""
    tpm: TpmMoment | None
    """None until the first attestation passed."""
    boot_id: bytes
    session_id: bytes
    firmware_sha256: bytes
    firmware_version: str
    lease_sequence: int
    lease_expire_ns: int | None
    assurance: str = ""
    """"L0" to "L3" of the last passed attestation; empty before the first."""
    has_tpm: bool = True
    """False: it enrolled with a software key, which is `ak_public` as SubjectPublicKeyInfo (DER); level L0."""
    ima: ImaState | None = None
    """What is kept of its IMA list; only for an attestation that asks for it."""

    def _shown_assurance(self) -> str:
        if not self.has_tpm:
            return "L0"  # whatever its state: it can never be more
        return self.assurance if self.state is State.VERIFIED else ""

    carrier: Carrier = Carrier.DIRECT
    channel_bound: bool = False
    """At the last passed attestation the connection itself showed the TLS key that the quote binds."""

    def message(self, *, connected: bool = False) -> fleet_pb2.Agent:
        """As operators see it.

        Args:
            connected: of an agent that dials, whether it is there now.
        """
        agent = fleet_pb2.Agent(
            agent_id=self.agent_id,
            state=self.state.wire,
            reason=self.reason,
            labels=self.labels,
            address=self.address,
            hostname=self.hostname,
            version=self.version,
            firmware_sha256=self.firmware_sha256,
            firmware_version=self.firmware_version,
            assurance=self._shown_assurance(),
            has_tpm=self.has_tpm,
            channel_bound=self.channel_bound and self.state is State.VERIFIED,
            carrier=self.carrier.wire,
            connected=connected,
        )
        agent.enroll_time.FromNanoseconds(self.enroll_time_ns)
        agent.state_time.FromNanoseconds(self.state_time_ns)
        agent.certificate_expire_time.FromNanoseconds(self.certificate_expire_ns)
        if self.verify_time_ns is not None:
            agent.verify_time.FromNanoseconds(self.verify_time_ns)
        if self.lease_expire_ns is not None and self.state is State.VERIFIED:
            agent.lease_expire_time.FromNanoseconds(self.lease_expire_ns)
        return agent
