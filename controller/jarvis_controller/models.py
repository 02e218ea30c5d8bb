# SPDX-License-Identifier: Apache-2.0
"""The tables. Times are ns since the Unix epoch; digests and keys are raw bytes.

Rows never leave the store's thread: what the rest of the controller sees is AgentRecord, frozen.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jarvis_controller.agent_record import AgentRecord, Carrier, TpmMoment
from jarvis_controller.states import State


class Base(DeclarativeBase):
    """Declarative base of every table."""


class AgentRow(Base):
    """One enrolled TPM."""

    __tablename__ = "agents"

    agent_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    state_time_ns: Mapped[int] = mapped_column(BigInteger)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    address: Mapped[str]
    hostname: Mapped[str]
    version: Mapped[str]
    enroll_time_ns: Mapped[int] = mapped_column(BigInteger)
    ek_certificate: Mapped[bytes] = mapped_column(LargeBinary)
    ek_public: Mapped[bytes] = mapped_column(LargeBinary)
    ak_public: Mapped[bytes] = mapped_column(LargeBinary)
    ak_name: Mapped[bytes] = mapped_column(LargeBinary)
    tls_spki: Mapped[bytes] = mapped_column(LargeBinary)
    previous_tls_spki: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    certificate_expire_ns: Mapped[int] = mapped_column(BigInteger)
    verify_time_ns: Mapped[int | None] = mapped_column(BigInteger)
    # 64-bit unsigned in the TPM, one wider than BIGINT: kept as text.
    tpm_clock: Mapped[str | None]
    tpm_firmware_version: Mapped[str | None]
    reset_count: Mapped[int | None] = mapped_column(BigInteger)
    restart_count: Mapped[int | None] = mapped_column(BigInteger)
    boot_id: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    session_id: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    firmware_sha256: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    firmware_version: Mapped[str] = mapped_column(default="")
    lease_sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_expire_ns: Mapped[int | None] = mapped_column(BigInteger)
    assurance: Mapped[str] = mapped_column(String(2), default="")
    carrier: Mapped[str] = mapped_column(String(16), default=Carrier.DIRECT)
    channel_bound: Mapped[bool] = mapped_column(default=False)

    def record(self) -> AgentRecord:
        """A frozen copy."""
        return AgentRecord(
            agent_id=self.agent_id,
            state=State(self.state),
            reason=self.reason,
            state_time_ns=self.state_time_ns,
            labels=dict(self.labels),
            address=self.address,
            hostname=self.hostname,
            version=self.version,
            enroll_time_ns=self.enroll_time_ns,
            ek_certificate=self.ek_certificate,
            ek_public=self.ek_public,
            ak_public=self.ak_public,
            ak_name=self.ak_name,
            tls_spkis=tuple(spki for spki in (self.tls_spki, self.previous_tls_spki) if spki),
            certificate_expire_ns=self.certificate_expire_ns,
            verify_time_ns=self.verify_time_ns,
            tpm=self._moment(),
            boot_id=self.boot_id,
            session_id=self.session_id,
            firmware_sha256=self.firmware_sha256,
            firmware_version=self.firmware_version,
            lease_sequence=self.lease_sequence,
            lease_expire_ns=self.lease_expire_ns,
            assurance=self.assurance,
            carrier=Carrier(self.carrier),
            channel_bound=self.channel_bound,
            has_tpm=bool(self.ek_public),
        )

    def _moment(self) -> TpmMoment | None:
        if self.tpm_clock is None or self.tpm_firmware_version is None or self.reset_count is None or self.restart_count is None:
            return None
        return TpmMoment(
            clock=int(self.tpm_clock),
            reset_count=self.reset_count,
            restart_count=self.restart_count,
            firmware_version=int(self.tpm_firmware_version),
        )


class BootLogRow(Base):
    """A boot log, kept once however many hosts show it."""

    __tablename__ = "boot_logs"

    sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    log: Mapped[bytes] = mapped_column(LargeBinary)


class BootReportRow(Base):
    """What an agent's firmware had measured at its last attestation."""

    __tablename__ = "boot_reports"

    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.agent_id"), primary_key=True)
    time_ns: Mapped[int] = mapped_column(BigInteger)
    log_sha256: Mapped[bytes] = mapped_column(ForeignKey("boot_logs.sha256"))
    report: Mapped[bytes] = mapped_column(LargeBinary)
    """GetBootReportResponse without the log."""


class ImaRow(Base):
    """What is kept of an agent's IMA list, as of its last passed attestation."""

    __tablename__ = "ima_states"

    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.agent_id"), primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    """CaseIma."""


class JoinTokenRow(Base):
    """A join token; only its hash is known."""

    __tablename__ = "join_tokens"

    token_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    create_time_ns: Mapped[int] = mapped_column(BigInteger)
    expire_time_ns: Mapped[int] = mapped_column(BigInteger)
    used_by: Mapped[str | None] = mapped_column(ForeignKey("agents.agent_id"))


class SoftwareTokenRow(Base):
    """A join token that admits an agent without a TPM."""

    __tablename__ = "software_tokens"

    token_sha256: Mapped[bytes] = mapped_column(ForeignKey("join_tokens.token_sha256"), primary_key=True)


class FirmwareRow(Base):
    """A firmware object that a manifest with a good signature has named.

    A host that moved from one release to the next without a reboot still has the old one in its event log.
    """

    __tablename__ = "firmware"

    object: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    version: Mapped[str]
    security_version: Mapped[int] = mapped_column(BigInteger)


class RequestRow(Base):
    """A mutation's request id, so that a repeated one is recognised."""

    __tablename__ = "requests"

    request_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    principal: Mapped[str]
    method: Mapped[str]
    payload_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    time_ns: Mapped[int] = mapped_column(BigInteger, index=True)


class OutcomeRow(Base):
    """What one agent answered to a mutation: given again to a repeated request."""

    __tablename__ = "outcomes"

    request_id: Mapped[str] = mapped_column(ForeignKey("requests.request_id"), primary_key=True)
    agent_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    outcome: Mapped[bytes] = mapped_column(LargeBinary)
    """CaptureOutcome as sent."""


class AuditRow(Base):
    """One entry of the audit chain; never updated, never deleted."""

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    time_ns: Mapped[int] = mapped_column(BigInteger)
    principal: Mapped[str]
    action: Mapped[str]
    agent_id: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str]
    request_id: Mapped[str]
    previous_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    hash: Mapped[bytes] = mapped_column(LargeBinary(32))


class AuditSignerRow(Base):
    """The certificate of a key that has signed checkpoints."""

    __tablename__ = "audit_signers"

    sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    certificate: Mapped[bytes] = mapped_column(LargeBinary)
    """DER."""


class AuditCheckpointRow(Base):
    """A signed place in the audit chain; never updated, never deleted."""

    __tablename__ = "audit_checkpoints"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    time_ns: Mapped[int] = mapped_column(BigInteger)
    signer_sha256: Mapped[bytes] = mapped_column(ForeignKey("audit_signers.sha256"))
    signature: Mapped[bytes] = mapped_column(LargeBinary)


class EvidenceRow(Base):
    """A case, or a boot log that cases name."""

    __tablename__ = "evidence"
    __table_args__ = (Index("evidence_by_age", "time_ns", "size"),)

    sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    time_ns: Mapped[int] = mapped_column(BigInteger)
    """When it, or the last case that names it, was kept."""
    size: Mapped[int] = mapped_column(BigInteger)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class LastCaseRow(Base):
    """The last case of an agent that says something of it: that it passed, or failed."""

    __tablename__ = "last_cases"

    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.agent_id"), primary_key=True)
    sha256: Mapped[bytes] = mapped_column(LargeBinary(32))


class AuditExportRow(Base):
    """How far a collector has taken the audit chain."""

    __tablename__ = "audit_exports"

    target: Mapped[str] = mapped_column(String(300), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)


class EventRow(Base):
    """One event of the fleet, in the order in which they became known; the oldest are deleted."""

    __tablename__ = "events"

    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    agent_id: Mapped[str] = mapped_column(String(32))
    type: Mapped[int]
    severity: Mapped[int]
    receive_ns: Mapped[int] = mapped_column(BigInteger, index=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)
    """Event as sent to operators."""


class EventSourceRow(Base):
    """How far the events of one journal have come: an agent's, or, with an empty agent id, the controller's own."""

    __tablename__ = "event_sources"

    agent_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    source_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    time_ns: Mapped[int] = mapped_column(BigInteger)
    """When its last one became known."""


class CertificateRow(Base):
    """One certificate that the fleet CA issued."""

    __tablename__ = "certificates"

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """In the order in which they were recorded."""
    serial: Mapped[str] = mapped_column(String(40), unique=True)
    subject: Mapped[str] = mapped_column(String(512), index=True)
    role: Mapped[str] = mapped_column(String(16))
    spki_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    issuer: Mapped[str] = mapped_column(String(64))
    not_before_ns: Mapped[int] = mapped_column(BigInteger)
    not_after_ns: Mapped[int] = mapped_column(BigInteger, index=True)
    issue_time_ns: Mapped[int] = mapped_column(BigInteger)
    issued_by: Mapped[str]
    revoke_time_ns: Mapped[int | None] = mapped_column(BigInteger)
    revoke_reason: Mapped[str] = mapped_column(default="")
    revoked_by: Mapped[str] = mapped_column(default="")


class DenialRow(Base):
    """An id whose certificates of before a moment are refused."""

    __tablename__ = "denials"

    subject: Mapped[str] = mapped_column(String(512), primary_key=True)
    time_ns: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str]
    principal: Mapped[str]
    is_open: Mapped[bool]
    """Of an agent: nobody admitted it again since."""


class AuthorityRow(Base):
    """A CA that this database belongs to."""

    __tablename__ = "authorities"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    time_ns: Mapped[int] = mapped_column(BigInteger)
