# SPDX-License-Identifier: Apache-2.0
"""Cases: a verdict is reached again from what was kept of it, and from nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from jarvis.capture.v1 import audit_pb2, trust_pb2
from jarvis_controller.agent_record import TpmMoment
from jarvis_controller.attestation_case import AttestedCase, Judged, Replay, replay
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.verifier import Verdict
from jarvis_trust.encoding import instant_ns
from jarvis_trust.errors import AttestationError
from jarvis_trust.revocations import Revocations

from testbed.boot import boot_log, uefi_boot
from tests.support import ReleaseKey
from tests.unit.controller.evidence_bench import Bench, measured_bench, record_of
from tests.unit.controller.releases import Release
from tests.unit.controller.software_tpm import SoftwareTpm

PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8)
NOW_NS = 1_795_000_000_000_000_000


@pytest.fixture
def bench(release_key: ReleaseKey, release: Release, keys: SoftwareTpm) -> Bench:
    bench = measured_bench(release_key, release, keys, pcrs=PCRS)
    moment = TpmMoment(clock=1, reset_count=0, restart_count=0, firmware_version=bench.tpm.firmware_version)
    bench.record_changes["tpm"] = moment
    return bench


def case_of(bench: Bench, evidence: trust_pb2.Evidence) -> tuple[Judged, AttestedCase]:
    judged = Judged(
        record=record_of(bench.tpm, **bench.record_changes),
        challenge=ConsumedChallenge(agent_id=bench.tpm.agent_id, nonce=bench.nonce, pcrs=bench.pcrs, problem=bench.problem),
        evidence=evidence,
        policy=bench.policy,
        report=bench.judge(evidence),
    )
    return judged, judged.to_case(NOW_NS)


def again(case: AttestedCase) -> Replay:
    return replay(case.data, case.boot_log, case_sha256=case.sha256)


def refusal(data: bytes, boot_log: bytes, digest: bytes) -> str:
    with pytest.raises(AttestationError) as refused:
        replay(data, boot_log, case_sha256=digest)
    return refused.value.reason


def test_a_passed_attestation_passes_again_check_by_check(bench: Bench) -> None:
    judged, case = case_of(bench, bench.evidence())
    assert judged.report.verdict is Verdict.PASSED, judged.report.reason
    result = again(case)
    assert result.same
    assert [check.name for check in result.checks] == [check.name for check in judged.report.checks]
    assert result.not_run == ()


def another_log(bench: Bench) -> trust_pb2.Evidence:
    evidence = bench.evidence()
    evidence.boot_log = boot_log(uefi_boot()[:-1])
    return evidence


def another_magic(bench: Bench) -> trust_pb2.Evidence:
    evidence = bench.evidence()
    evidence.attest = b"\x7f" + evidence.attest[1:]
    return evidence


def without_signature(bench: Bench) -> trust_pb2.Evidence:
    evidence = bench.evidence()
    evidence.signature = b""
    return evidence


def foreign_firmware(bench: Bench) -> trust_pb2.Evidence:
    bench.tpm.measure(b"\x13" * 32)
    return bench.evidence()


def below_the_floor(bench: Bench) -> trust_pb2.Evidence:
    bench.floor = 10**6
    return bench.evidence()


def too_late(bench: Bench) -> trust_pb2.Evidence:
    bench.problem = "CHALLENGE_EXPIRED"
    return bench.evidence()


def revoked(bench: Bench) -> trust_pb2.Evidence:
    digests = {bench.release.sha256.hex(): "CVE-2026-0001"}
    bench.revocations = Revocations(version=3, created="2026-11-22T10:00:00Z", expires="2027-11-22T10:00:00Z", digests=digests)
    return bench.evidence()


def expired(bench: Bench) -> trust_pb2.Evidence:
    bench.time_ns = instant_ns("2100-01-01T00:00:00Z")
    return bench.evidence()


SPOILT = [another_log, another_magic, without_signature, foreign_firmware, below_the_floor, revoked, expired, too_late]


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_did_not_pass_fails_again_for_the_same_reasons(bench: Bench, spoilt: Callable[[Bench], trust_pb2.Evidence]) -> None:
    judged, case = case_of(bench, spoilt(bench))
    assert judged.report.verdict is not Verdict.PASSED
    result = again(case)
    assert result.same
    assert {check.name: check.found for check in result.checks} == {check.name: check.reason for check in judged.report.checks}


def test_a_case_or_boot_log_that_was_edited_is_refused(bench: Bench) -> None:
    _, case = case_of(bench, bench.evidence())
    assert refusal(case.data + b"\0", case.boot_log, case.sha256) == "CASE_ALTERED"
    assert refusal(case.data, case.boot_log + b"\0", case.sha256) == "CASE_ALTERED"
    assert refusal(case.data, b"", case.sha256) == "CASE_ALTERED"


def test_bytes_that_are_no_case_are_refused() -> None:
    for data in (b"", b"\xff\xff", audit_pb2.AttestationCase(verdict="splendid").SerializeToString()):
        assert refusal(data, b"", hashlib.sha256(data).digest()) == "CASE_INVALID"


def changed(case: AttestedCase, change: Callable[[audit_pb2.AttestationCase], object]) -> Replay:
    """A case that a controller might have made and hashed like that."""
    message = audit_pb2.AttestationCase.FromString(case.data)
    change(message)
    return again(AttestedCase(data=message.SerializeToString(), boot_log=case.boot_log))


def test_a_verdict_that_does_not_follow_from_its_evidence_is_seen(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.signature = bench.tpm.sign(b"another")
    _, failed = case_of(bench, evidence)

    def claim(message: audit_pb2.AttestationCase) -> None:
        message.verdict = "passed"
        for check in message.checks:
            check.reason = check.message = ""

    result = changed(failed, claim)
    assert not result.same
    assert (result.verdict, result.case.verdict) == ("failed", "passed")
    assert [check.name for check in result.checks if not check.same] == ["signature"]


def test_a_case_that_leaves_a_check_out_is_seen(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.signature = bench.tpm.sign(b"another")
    _, failed = case_of(bench, evidence)

    def leave_out(message: audit_pb2.AttestationCase) -> None:
        message.verdict = "passed"
        kept = [check for check in message.checks if check.name != "signature"]
        del message.checks[:]
        message.checks.extend(kept)

    result = changed(failed, leave_out)
    assert result.not_run == ("signature",)
    assert not result.same


def test_a_check_that_this_version_does_not_know_is_said_and_is_a_difference(bench: Bench) -> None:
    _, case = case_of(bench, bench.evidence())
    result = changed(case, lambda message: message.checks.add(name="phase-of-the-moon"))
    assert [(check.name, check.found) for check in result.checks if not check.same] == [("phase-of-the-moon", "CHECK_UNKNOWN")]
    assert not result.same
