# SPDX-License-Identifier: Apache-2.0
"""The verifier, check by check: every reason it can give has evidence here that is wrong in exactly that way."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jarvis.capture.v1 import trust_pb2
from jarvis_controller.agent_record import TpmMoment
from jarvis_controller.checks import CHECKS
from jarvis_controller.verifier import VERIFIER_ERROR, Verdict
from jarvis_trust.revocations import Revocations

from tests.support import ReleaseKey
from tests.unit.controller.evidence_bench import AGENT_SPKI, Bench, bench_of, failed
from tests.unit.controller.releases import Release, make_release
from tests.unit.controller.software_tpm import SoftwareTpm, sized


@pytest.fixture
def bench(release_key: ReleaseKey, release: Release, keys: SoftwareTpm) -> Bench:
    return bench_of(release_key, release, keys)


def test_an_honest_agent_passes_every_check_and_what_it_proved_is_reported(bench: Bench) -> None:
    report = bench.judge(bench.evidence())
    assert failed(report) == set()
    assert report.verdict is Verdict.PASSED
    assert [check.name for check in report.checks] == [name for name, _ in CHECKS]
    assert report.proved is not None
    assert report.proved.firmware_sha256 == bench.release.sha256
    assert report.proved.firmware_version == "1.0.0"
    assert report.proved.tls_spki == AGENT_SPKI
    assert report.proved.session_id == bench.tpm.session_id
    assert report.proved.tpm.reset_count == bench.tpm.reset_count


@pytest.mark.parametrize(
    ("field_name", "size"),
    [
        ("attest", 1025),
        ("signature", 1025),
        ("event_log", 4 * 1024 * 1024 + 1),
        ("manifest", 64 * 1024 + 1),
        ("manifest_signature", 32 * 1024 + 1),
    ],
)
def test_evidence_beyond_its_size_is_refused(bench: Bench, field_name: str, size: int) -> None:
    evidence = bench.evidence()
    setattr(evidence, field_name, bytes(size))
    report = bench.judge(evidence)
    assert ("size", "EVIDENCE_TOO_LARGE") in failed(report)
    assert report.verdict is Verdict.FAILED


def test_more_than_24_pcr_values_are_refused(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.pcrs.extend(trust_pb2.PcrValue(index=0, digest=bytes(32)) for _ in range(24))
    assert ("size", "EVIDENCE_TOO_LARGE") in failed(bench.judge(evidence))


@pytest.mark.parametrize("field_name", ["boot_id", "session_id"])
def test_an_id_of_the_wrong_size_is_refused(bench: Bench, field_name: str) -> None:
    evidence = bench.evidence()
    setattr(evidence, field_name, bytes(15))
    report = bench.judge(evidence)
    assert ("size", "EVIDENCE_MALFORMED") in failed(report)
    assert report.verdict is Verdict.FAILED


def test_trailing_bytes_after_the_quote_are_refused_even_when_signed(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.attest += b"\0"
    report = bench.judge(bench.signed(evidence))
    assert failed(report) == {("structure", "ATTEST_INVALID")}
    assert report.verdict is Verdict.FAILED


@pytest.mark.parametrize("problem", ["CHALLENGE_UNKNOWN", "CHALLENGE_USED", "CHALLENGE_OF_ANOTHER_AGENT"])
def test_a_challenge_that_does_not_match_asks_for_a_fresh_one(bench: Bench, problem: str) -> None:
    bench.problem = problem
    report = bench.judge(bench.evidence())
    assert failed(report) == {("challenge", problem)}
    assert report.verdict is Verdict.CHALLENGE_MISMATCH
    assert report.proved is None


def test_an_expired_challenge_is_stale_and_not_held_against_the_agent(bench: Bench) -> None:
    bench.problem = "CHALLENGE_EXPIRED"
    report = bench.judge(bench.evidence())
    assert report.verdict is Verdict.EXPIRED
    assert report.proved is None


def test_an_expired_challenge_does_not_excuse_a_bad_signature(bench: Bench) -> None:
    bench.problem = "CHALLENGE_EXPIRED"
    evidence = bench.evidence()
    evidence.signature = bench.tpm.sign(evidence.attest, ec.generate_private_key(ec.SECP256R1()))
    assert bench.judge(evidence).verdict is Verdict.FAILED


def test_a_record_whose_name_is_not_its_keys_is_refused(bench: Bench) -> None:
    bench.record_changes = {"ak_name": b"\0\x0b" + bytes(32)}
    report = bench.judge(bench.evidence())
    assert ("ak", "AK_MISMATCH") in failed(report)
    assert report.verdict is Verdict.FAILED


def test_an_ak_that_is_not_restricted_is_refused(bench: Bench) -> None:
    public = bytearray(bench.tpm.ak_public)
    public[5] ^= 0x01  # TPMA_OBJECT.restricted
    name = b"\0\x0b" + hashlib.sha256(bytes(public)).digest()
    bench.record_changes = {"ak_public": bytes(public), "ak_name": name}
    assert ("ak", "AK_TEMPLATE_WRONG") in failed(bench.judge(bench.evidence()))


def test_a_signature_with_another_hash_is_refused(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.signature = bytes.fromhex("0018000c") + evidence.signature[4:]
    report = bench.judge(evidence)
    assert failed(report) == {("signature-scheme", "SIGNATURE_SCHEME")}
    assert report.verdict is Verdict.FAILED


def test_a_signature_of_another_algorithm_is_refused(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.signature = bytes.fromhex("0014000b") + evidence.signature[4:]
    assert failed(bench.judge(evidence)) == {("signature-scheme", "TPM_SIGNATURE_INVALID")}


def test_a_quote_signed_by_another_key_is_refused(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.signature = bench.tpm.sign(evidence.attest, ec.generate_private_key(ec.SECP256R1()))
    report = bench.judge(evidence)
    assert failed(report) == {("signature", "SIGNATURE_INVALID")}
    assert report.verdict is Verdict.FAILED


def test_signed_bytes_that_a_tpm_did_not_make_are_refused(bench: Bench) -> None:
    report = bench.judge(bench.evidence(magic=bytes.fromhex("ff544348")))
    assert failed(report) == {("magic", "ATTEST_MAGIC_WRONG")}
    assert report.verdict is Verdict.FAILED


def test_an_attestation_of_another_type_is_refused(bench: Bench) -> None:
    report = bench.judge(bench.evidence(type=bytes.fromhex("8017")))
    assert failed(report) == {("type", "ATTEST_TYPE_WRONG")}
    assert report.verdict is Verdict.FAILED


def test_a_signer_outside_the_endorsement_hierarchy_is_refused(bench: Bench) -> None:
    owner = b"\0\x0b" + hashlib.sha256(struct.pack(">I", 0x40000001) + bench.tpm.ak.name).digest()
    report = bench.judge(bench.evidence(signer=sized(owner)))
    assert failed(report) == {("qualified-signer", "QUALIFIED_SIGNER_MISMATCH")}
    assert report.verdict is Verdict.FAILED


def test_evidence_for_another_nonce_asks_for_a_fresh_challenge(bench: Bench) -> None:
    report = bench.judge(bench.evidence(nonce=secrets.token_bytes(32)))
    assert failed(report) == {("qualifying-data", "NONCE_MISMATCH")}
    assert report.verdict is Verdict.CHALLENGE_MISMATCH


@pytest.mark.parametrize("field_name", ["manifest", "boot_id", "session_id", "event_log"])
def test_what_the_quote_binds_cannot_be_exchanged(bench: Bench, release_key: ReleaseKey, field_name: str) -> None:
    evidence = bench.evidence()
    other = make_release(release_key, version="2.0.0")
    bench.tpm.measure(bench.release.sha256)
    changed = {"manifest": other.manifest, "boot_id": bytes(16), "session_id": bytes(16), "event_log": b"".join(bench.tpm.events)}
    setattr(evidence, field_name, changed[field_name])
    assert ("qualifying-data", "NONCE_MISMATCH") in failed(bench.judge(evidence))


def test_evidence_from_another_hosts_channel_is_refused(bench: Bench) -> None:
    bench.record_changes = {"tls_spkis": (hashlib.sha256(b"another TLS key").digest(),)}
    assert failed(bench.judge(bench.evidence())) == {("qualifying-data", "NONCE_MISMATCH")}


def test_the_certificate_before_the_last_renewal_still_counts(bench: Bench) -> None:
    bench.record_changes = {"tls_spkis": (hashlib.sha256(b"the new TLS key").digest(), AGENT_SPKI)}
    report = bench.judge(bench.evidence())
    assert report.verdict is Verdict.PASSED
    assert report.proved is not None
    assert report.proved.tls_spki == AGENT_SPKI


@pytest.mark.parametrize(
    "selection",
    ["000b03000001", "000b03004100", "000b03000000", "000403004000"],
    ids=["PCR 16", "superset", "empty", "SHA-1 bank"],
)
def test_other_pcrs_than_those_asked_for_are_refused(bench: Bench, selection: str) -> None:
    report = bench.judge(bench.evidence(selection=bytes.fromhex(selection)))
    assert ("pcr-selection", "PCR_SELECTION_MISMATCH") in failed(report)
    assert report.verdict is Verdict.FAILED


def test_two_pcr_selections_are_refused(bench: Bench) -> None:
    report = bench.judge(bench.evidence(count=struct.pack(">I", 2), selection=bytes.fromhex("000b03004000000b03004000")))
    assert failed(report) == {("structure", "ATTEST_PCR_SELECTION_INVALID")}


@pytest.mark.parametrize("indices", [[], [14, 14], [14, 15], [13]])
def test_values_of_exactly_the_quoted_pcrs_are_accepted(bench: Bench, indices: list[int]) -> None:
    evidence = bench.evidence()
    del evidence.pcrs[:]
    evidence.pcrs.extend(trust_pb2.PcrValue(index=index, digest=bench.tpm.pcr_value) for index in indices)
    assert failed(bench.judge(evidence)) == {("pcr-values", "PCR_VALUES_INVALID")}


def test_a_pcr_value_of_another_size_is_refused(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.pcrs[0].digest = bytes(20)
    assert failed(bench.judge(evidence)) == {("pcr-values", "PCR_VALUES_INVALID")}


def test_pcr_values_that_the_tpm_did_not_sign_are_refused(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.pcrs[0].digest = hashlib.sha256(b"wishful").digest()
    report = bench.judge(evidence)
    assert failed(report) == {("pcr-values", "PCR_MISMATCH")}
    assert report.verdict is Verdict.FAILED


def moment(tpm: SoftwareTpm, **changes: int) -> TpmMoment:
    fields = {
        "clock": tpm.clock,
        "reset_count": tpm.reset_count,
        "restart_count": tpm.restart_count,
        "firmware_version": tpm.firmware_version,
    }
    return TpmMoment(**{**fields, **changes})


def test_a_clock_that_did_not_advance_is_a_replay(bench: Bench) -> None:
    evidence = bench.evidence()
    bench.record_changes = {"tpm": moment(bench.tpm)}
    report = bench.judge(evidence)
    assert failed(report) == {("clock", "CLOCK_BACKWARDS")}
    assert report.verdict is Verdict.FAILED


def test_a_replayed_quote_is_quarantined_although_its_nonce_is_wrong_too(bench: Bench) -> None:
    old = bench.evidence()
    bench.record_changes = {"tpm": moment(bench.tpm)}
    bench.nonce = secrets.token_bytes(32)
    report = bench.judge(old)
    assert failed(report) == {("qualifying-data", "NONCE_MISMATCH"), ("clock", "CLOCK_BACKWARDS")}
    assert report.verdict is Verdict.FAILED


@pytest.mark.parametrize("counts", [{"reset_count": 3}, {"restart_count": 1}])
def test_reset_counters_that_go_back_are_refused(bench: Bench, counts: dict[str, int]) -> None:
    bench.record_changes = {"tpm": moment(bench.tpm, clock=1, **counts)}
    assert failed(bench.judge(bench.evidence())) == {("clock", "RESET_COUNT_BACKWARDS")}


def test_after_a_reset_the_clock_may_go_back_and_the_restart_count_start_over(bench: Bench) -> None:
    before = moment(bench.tpm, clock=bench.tpm.clock + 10**6, restart_count=9)
    bench.tpm.reset()
    bench.tpm.measure(bench.release.sha256)
    bench.record_changes = {"tpm": before}
    assert bench.judge(bench.evidence()).verdict is Verdict.PASSED


def test_other_tpm_firmware_than_on_record_is_refused(bench: Bench) -> None:
    bench.record_changes = {"tpm": moment(bench.tpm, firmware_version=1)}
    assert failed(bench.judge(bench.evidence())) == {("tpm-firmware", "TPM_FIRMWARE_CHANGED")}


def test_an_event_log_that_does_not_give_the_quoted_value_is_refused(bench: Bench) -> None:
    bench.tpm.pcr_value = hashlib.sha256(bench.tpm.pcr_value + bytes(32)).digest()
    report = bench.judge(bench.evidence())
    assert failed(report) == {("event-log", "EVENT_LOG_MISMATCH")}
    assert report.verdict is Verdict.FAILED


def test_a_cut_event_log_is_refused(bench: Bench) -> None:
    bench.tpm.measure(hashlib.sha256(b"evil").digest())
    bench.tpm.measure(bench.release.sha256)
    del bench.tpm.events[1:]
    assert ("event-log", "EVENT_LOG_MISMATCH") in failed(bench.judge(bench.evidence()))


def test_a_malformed_event_log_is_refused(bench: Bench) -> None:
    bench.tpm.events.append(b"{}\n")
    assert failed(bench.judge(bench.evidence())) == {("event-log", "EVENT_LOG_INVALID")}


def test_events_of_another_pcr_are_refused(bench: Bench) -> None:
    other = SoftwareTpm(
        ak_key=bench.tpm.ak_key, ek_key=bench.tpm.ek_key, pcr=13, boot_id=bench.tpm.boot_id, session_id=bench.tpm.session_id
    )
    other.measure(bench.release.sha256)
    bench.tpm.events, bench.tpm.pcr_value = other.events, other.pcr_value
    assert failed(bench.judge(bench.evidence())) == {("event-log", "EVENT_LOG_MISMATCH")}


def test_a_host_without_a_manifest_is_refused(bench: Bench) -> None:
    bench.release = Release(manifest=b"", signature=b"", sha256=bench.release.sha256)
    report = bench.judge(bench.evidence())
    assert ("manifest", "FIRMWARE_UNSIGNED") in failed(report)
    assert report.verdict is Verdict.FAILED


def test_a_manifest_signed_by_another_key_is_refused(bench: Bench) -> None:
    spoiled = bytes([bench.release.signature[0] ^ 1]) + bench.release.signature[1:]
    bench.release = dataclasses.replace(bench.release, signature=spoiled)
    assert ("manifest", "FIRMWARE_SIGNATURE_INVALID") in failed(bench.judge(bench.evidence()))


def test_firmware_below_the_floor_is_refused(bench: Bench) -> None:
    bench.floor = 6
    report = bench.judge(bench.evidence())
    assert failed(report) == {("firmware-floor", "FIRMWARE_BELOW_FLOOR")}
    assert report.verdict is Verdict.FAILED


def test_a_measurement_that_the_manifest_does_not_name_is_refused_with_object_and_digest(bench: Bench) -> None:
    altered = hashlib.sha256(b"one byte flipped").digest()
    bench.tpm.restart_process()
    bench.tpm.measure(altered)
    report = bench.judge(bench.evidence())
    assert failed(report) == {("firmware", "FIRMWARE_UNTRUSTED_MEASUREMENT")}
    assert report.verdict is Verdict.FAILED
    assert altered.hex() in report.reason
    assert "libjarvis_capture.so" in report.reason


def test_a_bad_measurement_stays_bad_until_the_tpm_is_reset(bench: Bench) -> None:
    bench.tpm.measure(hashlib.sha256(b"evil").digest())
    bench.tpm.restart_process()
    bench.tpm.measure(bench.release.sha256)
    assert failed(bench.judge(bench.evidence())) == {("firmware", "FIRMWARE_UNTRUSTED_MEASUREMENT")}
    bench.tpm.reset()
    bench.tpm.measure(bench.release.sha256)
    assert bench.judge(bench.evidence()).verdict is Verdict.PASSED


def test_an_earlier_release_in_the_log_is_accepted_when_it_is_known_good(bench: Bench, release_key: ReleaseKey) -> None:
    old = bench.release
    bench.release = make_release(release_key, library=hashlib.sha256(b"next").digest(), version="1.1.0")
    bench.tpm.restart_process()
    bench.tpm.measure(bench.release.sha256)
    assert failed(bench.judge(bench.evidence())) == {("firmware", "FIRMWARE_UNTRUSTED_MEASUREMENT")}
    bench.known = frozenset({("libjarvis_capture.so", old.sha256.hex())})
    assert bench.judge(bench.evidence()).verdict is Verdict.PASSED


def test_a_release_on_trial_must_be_a_known_one_and_is_not_taken_for_what_runs(bench: Bench, release_key: ReleaseKey) -> None:
    """An agent that tries a release goes on being trusted with its own; what it tried unknown to us is not."""
    tried = make_release(release_key, library=hashlib.sha256(b"the next library").digest(), version="1.1.0")
    bench.tpm.measure(tried.sha256, is_trial=True)
    assert {reason for _, reason in failed(bench.judge(bench.evidence()))} == {"FIRMWARE_UNTRUSTED_MEASUREMENT"}
    bench.known = frozenset({("libjarvis_capture.so", tried.sha256.hex())})
    report = bench.judge(bench.evidence())
    assert failed(report) == set()
    assert report.proved is not None
    assert report.proved.firmware_sha256 == bench.release.sha256


def test_a_revoked_release_that_was_only_tried_is_refused_too(bench: Bench) -> None:
    tried = hashlib.sha256(b"the next library").digest()
    bench.known = frozenset({("libjarvis_capture.so", tried.hex())})
    bench.tpm.measure(tried, is_trial=True)
    assert failed(bench.judge(bench.evidence())) == set()
    bench.revocations = Revocations(
        version=1, created="2026-11-22T10:00:00Z", expires="2027-11-22T10:00:00Z", digests={tried.hex(): "CVE-2026-0001"}
    )
    assert failed(bench.judge(bench.evidence())) == {("firmware-revoked", "FIRMWARE_REVOKED")}


def test_the_firmware_that_runs_must_be_what_its_own_manifest_names(bench: Bench, release_key: ReleaseKey) -> None:
    """A known good older release, run under a newer release's manifest, is a rollback."""
    bench.known = frozenset({("libjarvis_capture.so", bench.release.sha256.hex())})
    bench.release = make_release(release_key, library=hashlib.sha256(b"next").digest(), version="1.1.0")
    assert failed(bench.judge(bench.evidence())) == {("firmware", "FIRMWARE_UNTRUSTED_MEASUREMENT")}


def test_a_host_that_measured_no_firmware_is_refused(bench: Bench) -> None:
    bench.tpm.events, bench.tpm.pcr_value = [], bytes(32)
    assert failed(bench.judge(bench.evidence())) == {("session", "FIRMWARE_NOT_MEASURED")}


def test_a_process_that_did_not_measure_its_firmware_is_refused(bench: Bench) -> None:
    bench.tpm.restart_process()
    report = bench.judge(bench.evidence())
    assert failed(report) == {("session", "SESSION_MISMATCH")}
    assert report.verdict is Verdict.FAILED


def test_all_failures_are_collected(bench: Bench) -> None:
    bench.floor = 6
    bench.record_changes = {"tpm": moment(bench.tpm, firmware_version=1)}
    evidence = bench.evidence()
    evidence.signature = bench.tpm.sign(evidence.attest, ec.generate_private_key(ec.SECP256R1()))
    assert failed(bench.judge(evidence)) == {
        ("signature", "SIGNATURE_INVALID"),
        ("tpm-firmware", "TPM_FIRMWARE_CHANGED"),
        ("firmware-floor", "FIRMWARE_BELOW_FLOOR"),
    }


@pytest.mark.parametrize("index", range(len(CHECKS)), ids=[name for name, _ in CHECKS])
def test_an_exception_inside_any_check_fails_closed(bench: Bench, index: int) -> None:
    def broken(_case: object) -> None:
        raise ZeroDivisionError("a bug")

    checks = [*CHECKS]
    checks[index] = (CHECKS[index][0], broken)
    report = bench.judge(bench.evidence(), checks=checks)
    assert (CHECKS[index][0], VERIFIER_ERROR) in failed(report)
    assert report.verdict is Verdict.FAILED
    assert report.proved is None


def test_what_cannot_be_read_is_proved_by_no_table_of_checks(bench: Bench) -> None:
    """A reading is no judgement, but without one there is nothing to give a lease for."""
    bench.tpm.events, bench.tpm.pcr_value = [], bytes(32)
    report = bench.judge(bench.evidence(), checks=[])
    assert report.verdict is Verdict.FAILED
    assert failed(report) == {("result", VERIFIER_ERROR)}
    assert report.proved is None


def test_empty_evidence_fails_without_an_error_of_ours(bench: Bench) -> None:
    report = bench.judge(trust_pb2.Evidence())
    assert report.verdict is Verdict.FAILED
    assert VERIFIER_ERROR not in {check.reason for check in report.checks}
