# SPDX-License-Identifier: Apache-2.0
"""Failures that a policy only has reported: which they can be, what follows from them; and what is said of the place."""

from __future__ import annotations

import dataclasses

import pytest
from jarvis_controller.agent_record import TpmMoment
from jarvis_controller.attestation_case import Judged, replay
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.verifier import NOT_EVALUATED, REPORTABLE, VERIFIER_ERROR, Verdict, checks_for
from jarvis_trust.boot_log import parse_boot_log
from jarvis_trust.errors import Finding

from testbed.boot import boot_log, uefi_boot
from tests.support import ReleaseKey
from tests.unit.controller.evidence_bench import Bench, failed, measured_bench, record_of
from tests.unit.controller.releases import Release
from tests.unit.controller.software_tpm import SoftwareTpm

PCRS = tuple(range(9))
EVERYTHING = frozenset((check, reason) for check, own in REPORTABLE.items() for reason in (*own, NOT_EVALUATED))


@pytest.fixture
def bench(release_key: ReleaseKey, release: Release, keys: SoftwareTpm) -> Bench:
    return measured_bench(release_key, release, keys, pcrs=PCRS)


def test_a_reported_failure_leaves_the_trust_at_the_level_that_was_proved(bench: Bench) -> None:
    bench.tpm.boot(boot_log(uefi_boot(kernel=b"another kernel")))
    assert bench.judge(bench.evidence()).verdict is Verdict.FAILED
    bench.reported = frozenset({("boot-reference", "BOOT_REFERENCE_MISMATCH")})
    report = bench.judge(bench.evidence())
    assert report.verdict is Verdict.PASSED
    assert report.proved is not None
    assert report.proved.assurance == "L1"
    assert report.proved.reported == report.reason
    assert report.reason.startswith("BOOT_REFERENCE_MISMATCH: PCR 4")
    assert [check.name for check in report.checks if check.reported] == ["boot-reference"]


def test_without_a_failure_nothing_is_reported_and_the_level_is_the_one_demanded(bench: Bench) -> None:
    bench.reported = EVERYTHING
    report = bench.judge(bench.evidence())
    assert report.proved is not None
    assert (report.proved.assurance, report.proved.reported) == ("L2", "")


def test_one_failure_that_is_not_reported_decides(bench: Bench) -> None:
    bench.tpm.boot(boot_log(uefi_boot(kernel=b"another kernel")))
    bench.reported = frozenset({("boot-reference", "BOOT_REFERENCE_MISMATCH")})
    bench.floor = 6
    report = bench.judge(bench.evidence())
    assert (report.verdict, report.proved) == (Verdict.FAILED, None)


def test_a_check_that_could_not_be_evaluated_counts_by_its_own_word(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.boot_log, evidence.boot_log_sha256 = b"", b""
    bench.reported = frozenset({("boot-log", "BOOT_LOG_MISSING"), ("boot-events", NOT_EVALUATED)})
    assert bench.judge(evidence).verdict is Verdict.FAILED
    bench.reported |= {("boot-reference", NOT_EVALUATED)}
    report = bench.judge(evidence)
    assert report.verdict is Verdict.PASSED
    assert report.proved is not None
    assert report.proved.assurance == "L1"


def test_what_proves_the_quote_is_never_only_reported_whatever_the_policy_says(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.signature = bench.tpm.sign(b"something else")
    reasons = ("SIGNATURE_INVALID", "NONCE_MISMATCH", NOT_EVALUATED, VERIFIER_ERROR)
    bench.reported = EVERYTHING | {(name, reason) for name, _ in checks_for(bench.policy) for reason in reasons}
    report = bench.judge(evidence)
    assert report.verdict is Verdict.FAILED
    assert failed(report) == {("signature", "SIGNATURE_INVALID")}


def test_a_fault_of_ours_in_a_check_is_never_only_reported(bench: Bench) -> None:
    bench.reported = EVERYTHING | {("boot-reference", VERIFIER_ERROR)}

    def fault(_case: object) -> None:
        raise ZeroDivisionError("a bug")

    checks = [(name, fault if name == "boot-reference" else check) for name, check in checks_for(bench.policy)]
    assert bench.judge(bench.evidence(), checks=checks).verdict is Verdict.FAILED


def test_a_reported_verdict_is_reached_again_from_its_case(bench: Bench) -> None:
    bench.tpm.boot(boot_log(uefi_boot(kernel=b"another kernel")))
    bench.reported, bench.versions = EVERYTHING, frozenset({"9.9.9"})
    bench.record_changes["tpm"] = TpmMoment(clock=1, reset_count=0, restart_count=0, firmware_version=1)
    evidence = bench.evidence()
    judged = Judged(
        record=record_of(bench.tpm, **bench.record_changes),
        challenge=ConsumedChallenge(agent_id=bench.tpm.agent_id, nonce=bench.nonce, pcrs=bench.pcrs, problem=""),
        evidence=evidence,
        policy=bench.policy,
        report=bench.judge(evidence),
    )
    case = judged.to_case(1)
    again = replay(case.data, case.boot_log, case_sha256=case.sha256)
    assert again.same
    assert again.verdict == "passed"
    assert {check.found for check in again.checks} == {
        "",
        "TPM_FIRMWARE_CHANGED",
        "FIRMWARE_VERSION_NOT_ACCEPTED",
        "BOOT_REFERENCE_MISMATCH",
    }


def test_the_first_event_that_differs_is_named_with_what_the_nearest_reference_has_there(bench: Bench) -> None:
    bench.tpm.boot(boot_log(uefi_boot(kernel=b"another kernel")))
    report = bench.judge(bench.evidence())
    (found,) = [check.finding for check in report.checks if check.name == "boot-reference"]
    assert found is not None
    log = parse_boot_log(bench.tpm.boot_log)
    event = next(event for event in log.events if event.number == found.event)
    assert (found.pcr, event.pcr, found.reference) == (4, 4, "good version 1")
    assert found.component.startswith("EV_EFI_BOOT_SERVICES_APPLICATION")
    assert found.expected.startswith("EV_EFI_BOOT_SERVICES_APPLICATION")


def test_measurements_more_and_fewer_than_the_reference_has_are_told_apart(bench: Bench) -> None:
    longer, shorter = uefi_boot(), uefi_boot()
    at = next(number for number, measurement in enumerate(longer) if measurement.pcr == 4)
    longer.append(dataclasses.replace(longer[at]))
    last = max(number for number, measurement in enumerate(shorter) if measurement.pcr == 4)
    del shorter[last]
    findings: list[Finding] = []
    for measurements in (longer, shorter):
        bench.tpm.boot(boot_log(measurements))
        report = bench.judge(bench.evidence())
        findings += [check.finding for check in report.checks if check.name == "boot-reference" and check.finding]
    more, fewer = findings
    assert (more.expected, fewer.component, fewer.event) == ("", "", None)
    assert more.component
    assert fewer.expected


def test_a_foreign_object_is_named_with_its_record(bench: Bench) -> None:
    bench.tpm.restart_process()
    bench.tpm.measure(b"\x13" * 32)
    report = bench.judge(bench.evidence())
    (message,) = [check.to_message() for check in report.checks if check.name == "firmware"]
    assert (message.pcr, message.event, message.component) == (14, 1, "libjarvis_capture.so")
    (passed,) = [check.to_message() for check in report.checks if check.name == "signature"]
    assert not passed.HasField("pcr")
    assert not passed.HasField("event")
