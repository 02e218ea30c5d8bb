# SPDX-License-Identifier: Apache-2.0
"""Judges evidence: a pure function of what is stored of the agent, the challenge, the evidence and the policy.

    record, challenge, evidence, policy -> every check in its order, each with its own reason -> report with a verdict

All checks run and all failures are collected; a check that needs what cannot be read or what an earlier one refused fails as
NOT_EVALUATED, and one that raises anything unforeseen fails as VERIFIER_ERROR. Nothing passes by default.

The readings are case.py's, the checks checks.py's; here they are run and what follows from them is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from jarvis.capture.v1 import fleet_pb2, trust_pb2
from jarvis_trust.errors import AttestationError, Finding, TrustError
from jarvis_trust.ima_log import IMA_PCR
from jarvis_trust.tpm_structures import QuoteAttest

from jarvis_controller.agent_record import AgentRecord, TpmMoment
from jarvis_controller.boot_checks import BOOT_CHECKS, check_digest, check_replay
from jarvis_controller.case import Case, NotEvaluatedError, VerifierPolicy
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.checks import CHECKS
from jarvis_controller.ima_checks import IMA_CHECKS
from jarvis_controller.readings import ReadingCache
from jarvis_controller.records import BootEvidence, PassedAttestation
from jarvis_controller.software_checks import SOFTWARE_CHECKS

NOT_EVALUATED = "NOT_EVALUATED"
VERIFIER_ERROR = "VERIFIER_ERROR"

_EXPIRED_REASONS = frozenset({"FIRMWARE_EXPIRED", "RELEASE_ROOT_EXPIRED", "REVOCATIONS_EXPIRED"})
"""Time has passed: that is no sign of an attack, and heals with a new signature."""

REPORTABLE: Mapping[str, frozenset[str]] = {
    "tpm-reset": frozenset({"TPM_RESET_WITHOUT_REBOOT"}),
    "tpm-firmware": frozenset({"TPM_FIRMWARE_CHANGED"}),
    "boot-log": frozenset({"BOOT_LOG_MISSING", "BOOT_LOG_MISMATCH", "BOOT_LOG_INVALID"}),
    "boot-events": frozenset({"BOOT_EVENT_INVALID", "SECURE_BOOT_OFF"}),
    "firmware-expiry": _EXPIRED_REASONS,
    "firmware-floor": frozenset({"FIRMWARE_BELOW_FLOOR"}),
    "firmware-version": frozenset({"FIRMWARE_VERSION_NOT_ACCEPTED"}),
    "boot-reference": frozenset({"BOOT_REFERENCE_MISMATCH"}),
    "ima-log": frozenset({"IMA_LOG_MISSING", "IMA_LOG_MISMATCH", "IMA_LOG_INVALID", "IMA_SHA1_EXTENDED"}),
    "ima-boot": frozenset({"IMA_BOOT_MISMATCH", "IMA_DIGEST_ALGORITHM"}),
    "ima-agent": frozenset(
        {"IMA_FILE_UNTRUSTED", "IMA_AGENT_NOT_MEASURED", "IMA_VIOLATION", "IMA_DIGEST_ALGORITHM", "IMA_TOO_MANY_FILES"}
    ),
}
"""Check -> its reasons that a policy may have reported only. Every other check proves the quote itself, whose it is, or that the
firmware is genuine: nobody can choose to look away from those, whatever a policy says."""

_CHALLENGE_REASONS = frozenset(
    {"CHALLENGE_UNKNOWN", "CHALLENGE_USED", "CHALLENGE_OF_ANOTHER_AGENT", "CHALLENGE_EXPIRED", "NONCE_MISMATCH"}
)
"""They speak of the challenge alone: the agent may have answered another one."""


class Verdict(StrEnum):
    """What follows from a report."""

    PASSED = "passed"
    EXPIRED = "expired"
    """Nothing is wrong but the time it took: STALE."""
    CHALLENGE_MISMATCH = "challenge-mismatch"
    """It answers another challenge: one fresh one is due."""
    FAILED = "failed"
    """QUARANTINED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check's outcome."""

    name: str
    reason: str
    """UPPER_SNAKE; empty when it passed."""
    message: str
    finding: Finding | None = None
    reported: bool = False
    """It failed, and the policy has that reported only."""

    @property
    def passed(self) -> bool:
        """Whether it held."""
        return not self.reason

    def to_message(self) -> fleet_pb2.AttestationCheck:
        """As operators see it."""
        found = self.finding or Finding()
        return fleet_pb2.AttestationCheck(
            name=self.name,
            passed=self.passed,
            reason=self.reason,
            message=self.message,
            pcr=found.pcr,
            event=found.event,
            component=found.component,
            expected=found.expected,
            reference=found.reference,
            reported=self.reported,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every check in its order, and what was proved when all passed."""

    checks: tuple[Check, ...]
    verdict: Verdict
    proved: PassedAttestation | None
    """Set exactly when the verdict is PASSED."""
    boot: BootEvidence | None = None
    """What the host's firmware measured, whatever the verdict; None when no such log came or it does not replay."""

    @property
    def reason(self) -> str:
        """Every failed check in one line: why there is no trust, or, after a pass, what is only reported."""
        return _failures(self.checks)


def verify(
    record: AgentRecord,
    challenge: ConsumedChallenge,
    evidence: trust_pb2.Evidence,
    policy: VerifierPolicy,
    *,
    checks: Sequence[tuple[str, Callable[[Case], None]]] | None = None,
    readings: ReadingCache | None = None,
) -> Report:
    """Runs every check. Never raises.

    Args:
        record: the agent that the channel was dialled to, as stored.
        challenge: the one it was sent, already consumed.
        evidence: as received; judged for nothing but what it says.
        policy: what the fleet demands.
        checks: the checks to run; those that the policy demands when not given.
        readings: of earlier evidence.
    """
    case = Case(record=record, challenge=challenge, evidence=evidence, policy=policy, readings=readings or ReadingCache(0))
    if checks is None:
        checks = checks_for(policy, has_tpm=record.has_tpm)
    done = tuple(_run(name, check, case) for name, check in checks)
    verdict = _verdict(done)
    proved = None
    if verdict is Verdict.PASSED:
        try:
            proved = _proved(case, done)
        except Exception as error:  # noqa: BLE001 - fail closed whatever it is
            done = (*done, Check(name="result", reason=VERIFIER_ERROR, message=f"{type(error).__name__}: {error}"))
            verdict = Verdict.FAILED
    return Report(checks=done, verdict=verdict, proved=proved, boot=_boot(case, done))


def checks_for(policy: VerifierPolicy, *, has_tpm: bool = True) -> tuple[tuple[str, Callable[[Case], None]], ...]:
    """Every check that the policy demands, in order. An agent that enrolled with a TPM is never judged as one without."""
    if not has_tpm:
        return SOFTWARE_CHECKS
    ima = () if policy.ima is None else IMA_CHECKS
    if policy.boot is None:
        return CHECKS + ima
    at = [name for name, _ in CHECKS].index("tpm-firmware") + 1
    return CHECKS[:at] + BOOT_CHECKS[:-1] + CHECKS[at:] + BOOT_CHECKS[-1:] + ima


def _boot(case: Case, done: Sequence[Check]) -> BootEvidence | None:
    """For people, also after a failure: only what this TPM has quoted just now, and a log that gives it."""
    quoted = {"challenge", "signature", "magic", "type", "qualified-signer", "qualifying-data", "pcr-selection", "pcr-values"}
    if quoted - {check.name for check in done if check.passed} or not case.evidence.boot_log:
        return None
    # What later stages extend is not in the firmware's log.
    others = {case.policy.pcr} | (set() if case.policy.ima is None else {IMA_PCR})
    values = {pcr: value for pcr, value in case.pcr_values.items() if pcr not in others}
    try:
        check_digest(case)
        check_replay(case, values)
    except AttestationError:
        return None  # where it matters, the check of the same name has said why
    facts = case.boot_facts
    return BootEvidence(
        log=case.evidence.boot_log,
        pcrs=values,
        reference=case.reference,
        secure_boot=facts.secure_boot,
        key_digests={name: bytes.fromhex(digest) for name, digest in facts.key_digests.items()},
        kernel_command_line=facts.kernel_command_line or "" if {8, 12} & values.keys() else "",
    )


def _run(name: str, check: Callable[[Case], None], case: Case) -> Check:
    outcome = _outcome(name, check, case)
    if outcome.passed:
        return outcome
    case.failed.add(name)
    return dataclasses.replace(outcome, reported=_is_only_reported(outcome, case.policy))


def _is_only_reported(check: Check, policy: VerifierPolicy) -> bool:
    permitted = REPORTABLE.get(check.name, frozenset())
    return (check.name, check.reason) in policy.reported and check.reason in {*permitted, NOT_EVALUATED} and bool(permitted)


def _outcome(name: str, check: Callable[[Case], None], case: Case) -> Check:
    try:
        check(case)
    except NotEvaluatedError as error:
        return Check(name=name, reason=NOT_EVALUATED, message=str(error))
    except TrustError as error:
        finding = error.finding if isinstance(error, AttestationError) else None
        return Check(name=name, reason=error.reason, message=error.message, finding=finding)
    except Exception as error:  # noqa: BLE001 - fail closed whatever it is
        return Check(name=name, reason=VERIFIER_ERROR, message=f"{type(error).__name__}: {error}")
    return Check(name=name, reason="", message="")


def _failures(checks: Sequence[Check]) -> str:
    failed = [check for check in checks if not check.passed and check.reason != NOT_EVALUATED]
    return "; ".join(f"{check.reason}: {check.message}" for check in failed)


def _verdict(checks: Sequence[Check]) -> Verdict:
    failed = {(check.name, check.reason) for check in checks if not check.passed and not check.reported}
    if not failed:
        return Verdict.PASSED
    if failed == {("challenge", "CHALLENGE_EXPIRED")}:
        return Verdict.EXPIRED
    if {reason for _, reason in failed} <= _EXPIRED_REASONS:
        return Verdict.EXPIRED
    # What could not be evaluated is for want of something that failed by itself.
    causes = {reason for _, reason in failed if reason != NOT_EVALUATED}
    if causes and causes <= _CHALLENGE_REASONS:
        return Verdict.CHALLENGE_MISMATCH
    return Verdict.FAILED


def _proved(case: Case, done: Sequence[Check]) -> PassedAttestation:
    """What every check has let pass, read once more; what cannot be read ends the judgement as VERIFIER_ERROR."""
    manifest, loaded, has_tpm = case.manifest, case.last_load, case.record.has_tpm
    if loaded is None:
        raise NotEvaluatedError("no measurement of the firmware")
    has_ima = has_tpm and case.policy.ima is not None and not case.failed & {name for name, _ in IMA_CHECKS}
    return PassedAttestation(
        ak_name=case.record.ak_name,
        tpm=_moment(case.quote) if has_tpm else None,
        boot_id=case.evidence.boot_id,
        session_id=case.evidence.session_id,
        # Check qualifying-data (software-signature) has found the one that is bound.
        tls_spki=(case.bound_spki if has_tpm else case.software_spki) or case.record.tls_spkis[0],
        firmware_sha256=loaded.sha256,
        firmware_version=manifest.version,
        security_version=manifest.security_version,
        objects=dict(manifest.objects),
        lease_ns=case.policy.lease_ns,
        assurance=_level(case) if has_tpm else "L0",
        reported=_failures(done),
        channel_bound=has_tpm and case.policy.agent_spki is not None and "channel" not in case.failed,
        ima=case.ima_now if has_ima else None,
        ima_unquoted=len(case.ima_entries) - (case.ima_quoted or 0) if has_ima else 0,
    )


def _moment(quote: QuoteAttest) -> TpmMoment:
    return TpmMoment(
        clock=quote.clock,
        reset_count=quote.reset_count,
        restart_count=quote.restart_count,
        firmware_version=quote.firmware_version,
    )


def _level(case: Case) -> str:
    """What was proved. What is only reported proves nothing: each level needs all of its checks, and the level below."""
    if case.policy.boot is None or case.failed & {name for name, _ in BOOT_CHECKS}:
        return "L1"
    return "L2" if case.policy.ima is None or case.failed & {name for name, _ in IMA_CHECKS} else "L3"
