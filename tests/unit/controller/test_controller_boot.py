# SPDX-License-Identifier: Apache-2.0
"""Measured boot at the verifier: every reason that its checks can give, and what is reported of a boot."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from jarvis.capture.v1 import trust_pb2
from jarvis_controller.boot_checks import BOOT_CHECKS
from jarvis_controller.checks import CHECKS
from jarvis_controller.readings import ReadingCache
from jarvis_controller.verifier import Verdict
from jarvis_trust.boot_log import EventType, parse_boot_log
from jarvis_trust.boot_reference import BootReference

from testbed.boot import Measurement, boot_log, reference_of, uefi_boot
from tests.support import ReleaseKey
from tests.unit.controller.evidence_bench import Bench, failed, measured_bench
from tests.unit.controller.releases import Release
from tests.unit.controller.software_tpm import SoftwareTpm

PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8)


def reference(measurements: list[Measurement], name: str = "good") -> BootReference:
    return reference_of(boot_log(measurements), name=name, pcrs=PCRS)


@pytest.fixture
def bench(release_key: ReleaseKey, release: Release, keys: SoftwareTpm) -> Bench:
    return measured_bench(release_key, release, keys, pcrs=PCRS)


def reboot(bench: Bench, measurements: list[Measurement]) -> None:
    bench.tpm.boot(boot_log(measurements))


def relogged(evidence: trust_pb2.Evidence, log: bytes) -> trust_pb2.Evidence:
    """The same quote with another log beside it."""
    evidence.boot_log = log
    evidence.boot_log_sha256 = hashlib.sha256(log).digest() if log else b""
    return evidence


def test_a_host_that_booted_as_recorded_reaches_level_2_and_its_boot_is_reported(bench: Bench) -> None:
    report = bench.judge(bench.evidence())
    assert failed(report) == set()
    assert report.verdict is Verdict.PASSED
    assert report.proved is not None
    assert report.proved.assurance == "L2"
    assert report.boot is not None
    assert (report.boot.reference, report.boot.secure_boot) == ("good version 1", True)
    assert report.boot.kernel_command_line == "/vmlinuz-6.1.0-28-amd64 root=/dev/sda1 ro quiet"
    assert dict(report.boot.pcrs) == parse_boot_log(report.boot.log).replay(PCRS)


def test_the_checks_of_measured_boot_run_in_their_place_and_only_when_demanded(bench: Bench) -> None:
    names = [check.name for check in bench.judge(bench.evidence()).checks]
    at = names.index("boot-log")
    assert names[at - 1 : at + 3] == ["tpm-firmware", "boot-log", "boot-events", "event-log"]
    assert names[-1] == "boot-reference"
    assert len(names) == len(CHECKS) + len(BOOT_CHECKS)
    bench.boot = None
    report = bench.judge(bench.evidence())
    assert [check.name for check in report.checks] == [name for name, _ in CHECKS]
    assert report.proved is not None
    assert report.proved.assurance == "L1"
    assert report.boot is None


def test_a_host_that_shows_no_log_fails(bench: Bench) -> None:
    assert failed(bench.judge(relogged(bench.evidence(), b""))) == {("boot-log", "BOOT_LOG_MISSING")}


def test_a_log_that_is_not_the_one_that_was_named_fails(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.boot_log_sha256 = bytes(32)
    assert failed(bench.judge(evidence)) == {("boot-log", "BOOT_LOG_MISMATCH")}


def test_a_log_that_is_not_well_formed_fails(bench: Bench) -> None:
    assert failed(bench.judge(relogged(bench.evidence(), b"\0" * 40))) == {("boot-log", "BOOT_LOG_INVALID")}


def test_an_edited_log_does_not_give_the_quoted_values(bench: Bench) -> None:
    forged = boot_log(uefi_boot(kernel=b"another kernel"))
    report = bench.judge(relogged(bench.evidence(), forged))
    assert failed(report) == {("boot-log", "BOOT_LOG_MISMATCH")}
    assert "PCR 4" in report.reason
    assert report.boot is None


def test_a_forged_log_beside_blank_pcrs_fails(bench: Bench) -> None:
    """The firmware left the bank blank, and the log tells of a boot that never was (CVE-2021-42299)."""
    bench.tpm.boot_values = {}
    assert failed(bench.judge(bench.evidence())) == {("boot-log", "BOOT_LOG_MISMATCH")}


def test_a_pcr_that_was_extended_without_an_event_fails(bench: Bench) -> None:
    bench.tpm.boot_values[6] = hashlib.sha256(bench.tpm.boot_values[6] + bytes(32)).digest()
    assert failed(bench.judge(bench.evidence())) == {("boot-log", "BOOT_LOG_MISMATCH")}


def test_relabelled_events_fail(bench: Bench) -> None:
    measurements = uefi_boot()
    measurements[2] = dataclasses.replace(measurements[2], type=0xA0000001, digest=measurements[2].sha256)
    assert failed(bench.judge(relogged(bench.evidence(), boot_log(measurements)))) == {("boot-events", "BOOT_EVENT_INVALID")}


def test_secure_boot_that_is_off_fails_where_it_is_demanded(bench: Bench) -> None:
    reboot(bench, uefi_boot(secure_boot=False))
    assert bench.boot is not None
    bench.boot = dataclasses.replace(bench.boot, references=(reference(uefi_boot(secure_boot=False)),))
    assert failed(bench.judge(bench.evidence())) == {("boot-events", "SECURE_BOOT_OFF")}
    bench.boot = dataclasses.replace(bench.boot, require_secure_boot=False)
    assert failed(bench.judge(bench.evidence())) == set()


def test_secure_boot_that_the_log_does_not_tell_of_fails_too(bench: Bench) -> None:
    silent = [measurement for measurement in uefi_boot() if b"S\0e\0c\0u\0r\0e\0B\0" not in measurement.data]
    reboot(bench, silent)
    assert bench.boot is not None
    bench.boot = dataclasses.replace(bench.boot, references=(reference(silent),))
    report = bench.judge(bench.evidence())
    assert failed(report) == {("boot-events", "SECURE_BOOT_OFF")}
    assert "not told" in report.reason


def test_another_boot_is_refused_with_its_first_difference_and_reported_all_the_same(bench: Bench) -> None:
    reboot(bench, [*uefi_boot(), Measurement(pcr=2, type=EventType.EFI_BOOT_SERVICES_DRIVER, data=b"option ROM")])
    report = bench.judge(bench.evidence())
    assert failed(report) == {("boot-reference", "BOOT_REFERENCE_MISMATCH")}
    assert "PCR 2" in report.reason
    assert "nearest is good version 1" in report.reason
    assert report.verdict is Verdict.FAILED
    assert report.boot is not None
    assert report.boot.reference == ""


def test_a_quote_that_is_not_genuine_reports_no_boot(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.signature = bench.tpm.sign(b"something else")
    assert bench.judge(evidence).boot is None


def test_a_log_without_a_policy_is_recorded_with_level_1(bench: Bench) -> None:
    evidence = bench.evidence()
    pcrs, bench.boot = bench.pcrs, None
    report = bench.judge(evidence, pcrs=pcrs)
    assert failed(report) == set()
    assert report.proved is not None
    assert report.proved.assurance == "L1"
    assert report.boot is not None
    assert report.boot.secure_boot is True


def test_what_was_read_of_a_log_before_changes_no_judgement(bench: Bench) -> None:
    readings = ReadingCache(1 << 20)
    assert bench.judge(bench.evidence(), readings=readings).verdict is Verdict.PASSED
    honest = bench.evidence()
    other = relogged(bench.evidence(), boot_log(uefi_boot(kernel=b"another")))
    assert bench.judge(honest, readings=readings) == bench.judge(honest)
    assert bench.judge(other, readings=readings) == bench.judge(other)
    assert ("boot-log", "BOOT_LOG_MISMATCH") in failed(bench.judge(other, readings=readings))
