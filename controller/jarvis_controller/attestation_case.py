# SPDX-License-Identifier: Apache-2.0
"""Cases: all that a verdict was reached on, as bytes that are kept by their hash, and the verdict reached again from them.

    controller:  record, challenge, evidence, policy -> verify -> Judged -> to_case -> (kept; its SHA-256 in the audit entry)
    operator:    case, boot log -> replay -> every check then and now, and where they differ

Needs no database, no network and no TPM: `jarvisctl audit replay` runs this same code.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from jarvis.capture.v1 import audit_pb2, trust_pb2
from jarvis_trust.boot_reference import BootReference
from jarvis_trust.errors import AttestationError, FirmwareError
from jarvis_trust.ima_policy import ImaPolicy, format_allow_list, parse_allow_list
from jarvis_trust.release_root import ReleaseRoot
from jarvis_trust.revocations import Revocations

from jarvis_controller import __version__
from jarvis_controller.agent_record import AgentRecord, TpmMoment
from jarvis_controller.case import BootPolicy, ReleaseTrust, VerifierPolicy
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.ima_state import ImaState
from jarvis_controller.states import State
from jarvis_controller.verifier import Report, Verdict, checks_for, verify

_VERDICTS = frozenset(str(verdict) for verdict in Verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedCase:
    """A case as it is kept."""

    data: bytes
    """AttestationCase."""
    boot_log: bytes
    """Kept once for all cases that name its digest; empty when there is none."""

    @property
    def sha256(self) -> bytes:
        """What names it."""
        return hashlib.sha256(self.data).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A report beside what it is of."""

    record: AgentRecord
    challenge: ConsumedChallenge
    evidence: trust_pb2.Evidence
    policy: VerifierPolicy
    report: Report

    def to_case(self, now_ns: int) -> AttestedCase:
        """Everything as one message; `now_ns` is of the wall clock."""
        evidence = trust_pb2.Evidence()
        evidence.CopyFrom(self.evidence)
        evidence.ClearField("boot_log")
        boot_log = self.evidence.boot_log
        case = audit_pb2.AttestationCase(
            version=__version__,
            agent=_agent(self.record),
            challenge=audit_pb2.CaseChallenge(
                agent_id=self.challenge.agent_id,
                nonce=self.challenge.nonce,
                pcrs=self.challenge.pcrs,
                problem=self.challenge.problem,
            ),
            evidence=evidence,
            boot_log_sha256=hashlib.sha256(boot_log).digest() if boot_log else b"",
            policy=_policy(self.policy),
            verdict=str(self.report.verdict),
            checks=[
                audit_pb2.CaseCheck(name=check.name, reason=check.reason, message=check.message) for check in self.report.checks
            ],
        )
        case.time.FromNanoseconds(now_ns)
        return AttestedCase(data=case.SerializeToString(deterministic=True), boot_log=boot_log)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCase:
    """A case, read: all that `verify` needs."""

    case: audit_pb2.AttestationCase
    record: AgentRecord
    challenge: ConsumedChallenge
    evidence: trust_pb2.Evidence
    """Its boot log filled in."""
    policy: VerifierPolicy
    """As of then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedCheck:
    """One check, then and now."""

    name: str
    recorded: str
    """Reason; empty: it passed."""
    found: str
    """The same, now."""
    message: str
    """Now."""

    @property
    def same(self) -> bool:
        """Whether it came out as it had."""
        return self.recorded == self.found


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A verdict reached again."""

    case: audit_pb2.AttestationCase
    checks: tuple[ReplayedCheck, ...]
    verdict: str
    """Now; the recorded one is the case's."""
    not_run: tuple[str, ...]
    """Checks of this version that were not run then."""

    @property
    def same(self) -> bool:
        """Whether verdict and checks are what was recorded; another version may have had fewer checks, this one may not."""
        complete = not self.not_run or self.case.version != __version__
        return complete and self.verdict == self.case.verdict and all(check.same for check in self.checks)


def replay(data: bytes, boot_log: bytes, *, case_sha256: bytes) -> Replay:
    """Reaches the verdict of a case again, from nothing but the case, by the checks that were run then.

    Args:
        data: AttestationCase.
        boot_log: the log that it names; empty when it names none.
        case_sha256: what the audit chain says that the case's hash is.

    Raises:
        AttestationError: CASE_ALTERED (a hash differs), CASE_INVALID (it is no case).
    """
    if not hmac.compare_digest(hashlib.sha256(data).digest(), case_sha256):
        raise AttestationError("CASE_ALTERED", "the case does not have the hash that the audit chain names")
    kept = read_case(data, boot_log)
    known = dict(checks_for(kept.policy, has_tpm=kept.record.has_tpm))
    recorded = [check.name for check in kept.case.checks]
    run = [(name, known[name]) for name in recorded if name in known]
    report = verify(kept.record, kept.challenge, kept.evidence, kept.policy, checks=run)
    not_run = tuple(name for name in known if name not in recorded)
    return Replay(case=kept.case, checks=_beside(kept.case, report), verdict=str(report.verdict), not_run=not_run)


def read_case(data: bytes, boot_log: bytes) -> KeptCase:
    """What a case holds, whatever its hash is.

    Raises:
        AttestationError: CASE_ALTERED (the boot log is not the one that it names), CASE_INVALID (it is no case).
    """
    try:
        case = audit_pb2.AttestationCase.FromString(data)
        agent, challenge, policy = _read_agent(case.agent), _read_challenge(case.challenge), _read_policy(case.policy)
    except (DecodeError, ValueError, FirmwareError) as error:
        raise AttestationError("CASE_INVALID", f"the case cannot be read: {error}") from error
    if case.verdict not in _VERDICTS:
        accepted = ", ".join(sorted(_VERDICTS))
        raise AttestationError("CASE_INVALID", f"verdict is {case.verdict[:40]!r}; one of {accepted} is accepted")
    digest = hashlib.sha256(boot_log).digest() if boot_log else b""
    if digest != case.boot_log_sha256:
        raise AttestationError("CASE_ALTERED", "the boot log does not have the hash that the case names")
    evidence = trust_pb2.Evidence()
    evidence.CopyFrom(case.evidence)
    evidence.boot_log = boot_log
    return KeptCase(case=case, record=agent, challenge=challenge, evidence=evidence, policy=policy)


def _beside(case: audit_pb2.AttestationCase, report: Report) -> tuple[ReplayedCheck, ...]:
    found = {check.name: check for check in report.checks}
    beside = []
    for check in case.checks:
        now = found.get(check.name)
        beside.append(
            ReplayedCheck(
                name=check.name,
                recorded=check.reason,
                found="CHECK_UNKNOWN" if now is None else now.reason,
                message=f"this version has no such check (version {case.version} had)" if now is None else now.message,
            )
        )
    return tuple(beside)


def _agent(record: AgentRecord) -> audit_pb2.CaseAgent:
    agent = audit_pb2.CaseAgent(
        agent_id=record.agent_id,
        ak_public=record.ak_public,
        ak_name=record.ak_name,
        tls_spkis=record.tls_spkis,
        boot_id=record.boot_id,
    )
    if record.tpm is not None:
        tpm = record.tpm
        agent.tpm.CopyFrom(
            audit_pb2.CaseTpm(
                clock=tpm.clock,
                reset_count=tpm.reset_count,
                restart_count=tpm.restart_count,
                firmware_version=tpm.firmware_version,
            )
        )
    agent.without_tpm = not record.has_tpm
    if record.ima is not None:
        agent.ima.CopyFrom(record.ima.to_message())
    return agent


def _read_agent(agent: audit_pb2.CaseAgent) -> AgentRecord:
    tpm = None
    if agent.HasField("tpm"):
        tpm = TpmMoment(
            clock=agent.tpm.clock,
            reset_count=agent.tpm.reset_count,
            restart_count=agent.tpm.restart_count,
            firmware_version=agent.tpm.firmware_version,
        )
    # What no check looks at is left empty.
    return AgentRecord(
        agent_id=agent.agent_id,
        state=State.UNKNOWN,
        reason="",
        state_time_ns=0,
        labels={},
        address="",
        hostname="",
        version="",
        enroll_time_ns=0,
        ek_certificate=b"",
        ek_public=b"",
        ak_public=agent.ak_public,
        ak_name=agent.ak_name,
        tls_spkis=tuple(agent.tls_spkis),
        certificate_expire_ns=0,
        verify_time_ns=None,
        tpm=tpm,
        boot_id=agent.boot_id,
        session_id=b"",
        firmware_sha256=b"",
        firmware_version="",
        lease_sequence=0,
        lease_expire_ns=None,
        has_tpm=not agent.without_tpm,
        ima=ImaState.from_message(agent.ima) if agent.HasField("ima") else None,
    )


def _read_challenge(challenge: audit_pb2.CaseChallenge) -> ConsumedChallenge:
    return ConsumedChallenge(
        agent_id=challenge.agent_id, nonce=challenge.nonce, pcrs=tuple(challenge.pcrs), problem=challenge.problem
    )


def _policy(policy: VerifierPolicy) -> audit_pb2.CasePolicy:
    message = audit_pb2.CasePolicy(
        release_root=policy.releases.root.data,
        time_ns=policy.releases.time_ns,
        revocations=b"" if policy.releases.revocations is None else policy.releases.revocations.to_bytes(),
        firmware_floor=policy.firmware_floor,
        pcr=policy.pcr,
        controller_spki_sha256=policy.controller_spki,
        known_firmware=[
            audit_pb2.CaseFirmware(object=name, sha256=bytes.fromhex(digest)) for name, digest in sorted(policy.known_firmware)
        ],
        lease_ns=policy.lease_ns,
        firmware_versions=sorted(policy.firmware_versions),
        reported=[audit_pb2.CaseReported(check=check, reason=reason) for check, reason in sorted(policy.reported)],
        agent_spki_sha256=policy.agent_spki or b"",
        without_tpm=policy.without_tpm,
    )
    if policy.boot is not None:
        message.boot.CopyFrom(
            audit_pb2.CaseBootPolicy(
                references=[reference.to_bytes() for reference in policy.boot.references],
                pcrs=policy.boot.pcrs,
                require_secure_boot=policy.boot.require_secure_boot,
            )
        )
    if policy.ima is not None:
        message.ima.CopyFrom(
            audit_pb2.CaseImaPolicy(
                paths=policy.ima.paths,
                allowed=format_allow_list(policy.ima.allowed),
                required=policy.ima.required,
                accept_violations=policy.ima.accept_violations,
            )
        )
    return message


def _read_policy(policy: audit_pb2.CasePolicy) -> VerifierPolicy:
    boot = None
    if policy.HasField("boot"):
        boot = BootPolicy(
            references=tuple(BootReference.from_bytes(data) for data in policy.boot.references),
            pcrs=tuple(policy.boot.pcrs),
            require_secure_boot=policy.boot.require_secure_boot,
        )
    return VerifierPolicy(
        releases=ReleaseTrust(
            root=ReleaseRoot.from_bytes(policy.release_root),
            revocations=Revocations.from_signed_bytes(policy.revocations) if policy.revocations else None,
            time_ns=policy.time_ns,
        ),
        firmware_floor=policy.firmware_floor,
        pcr=policy.pcr,
        controller_spki=policy.controller_spki_sha256,
        known_firmware=frozenset((firmware.object, firmware.sha256.hex()) for firmware in policy.known_firmware),
        lease_ns=policy.lease_ns,
        boot=boot,
        firmware_versions=frozenset(policy.firmware_versions),
        reported=frozenset((reported.check, reported.reason) for reported in policy.reported),
        agent_spki=policy.agent_spki_sha256 or None,
        ima=_read_ima(policy.ima) if policy.HasField("ima") else None,
        without_tpm=policy.without_tpm,
    )


def _read_ima(policy: audit_pb2.CaseImaPolicy) -> ImaPolicy:
    return ImaPolicy(
        paths=tuple(policy.paths),
        allowed=parse_allow_list(policy.allowed),
        required=tuple(policy.required),
        accept_violations=policy.accept_violations,
    )
