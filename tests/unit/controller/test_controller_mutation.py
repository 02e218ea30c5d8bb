# SPDX-License-Identifier: Apache-2.0
"""The mutation check: each check of the verifier alone holds against something, and without it that gets through.

For every check there is evidence, built by hand where no genuine TPM would make it, that this check refuses and no other one
does. Then the check is taken out of the table, nothing else is changed, and the same evidence must pass: a check that could be
removed without a test noticing does not exist. All of it in process, with measured boot demanded, so that the whole table runs.

Some refusals inside a check cannot be shown alone, because what they refuse cannot be read at all and so is evaluated by no check
(case.py): ids that are not of 16 bytes, an attest that is no quote from its first byte to its last, a signature of another
algorithm's form, a log or manifest that does not parse. Their reasons are in test_controller_verifier.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jarvis.capture.v1 import trust_pb2
from jarvis_controller.agent_record import TpmMoment
from jarvis_controller.challenges import ChallengeStore
from jarvis_controller.verifier import NOT_EVALUATED, VERIFIER_ERROR, Report, Verdict, checks_for, verify
from jarvis_trust.eventlog import MAX_LOG_BYTES, encode_event, event_digest, mapping
from jarvis_trust.ima_policy import ImaPolicy
from jarvis_trust.release_signatures import encode_signatures, sign_bytes
from jarvis_trust.revocations import Revocations
from jarvis_trust.tpm_templates import RESTRICTED

from testbed.boot import boot_log, uefi_boot
from testbed.ima import Measured, boot_aggregate, ima_log
from tests.support import ReleaseKey
from tests.unit.controller.evidence_bench import AGENT_SPKI, Bench, failed, measured_bench, record_of
from tests.unit.controller.releases import GOOD_LIBRARY, Release, make_release
from tests.unit.controller.software_tpm import LIBRARY, SoftwareTpm, sized

PCRS = tuple(range(10))


@pytest.fixture
def bench(release_key: ReleaseKey, release: Release, keys: SoftwareTpm) -> Bench:
    bench = measured_bench(release_key, release, keys, pcrs=PCRS)
    bench.tpm.measure_files(boot_aggregate(bench.tpm.boot_values), Measured(path=f"/usr/lib/{LIBRARY}", digest=release.sha256))
    bench.ima = ImaPolicy(paths=("/opt/agent/",))
    return bench


def oversized(bench: Bench) -> trust_pb2.Evidence:
    """A genuine event log of genuine records, more than 4 MiB of them."""
    path = "/" + "中" * 4000
    while sum(map(len, bench.tpm.events)) <= MAX_LOG_BYTES:
        content = mapping(
            path=path,
            sha256=bytes(32),
            time=datetime(2026, 11, 22, tzinfo=UTC),
            boot_id=bench.tpm.boot_id,
            session_id=bench.tpm.session_id,
        )
        bench.tpm.events.append(encode_event(len(bench.tpm.events), bench.tpm.pcr, content))
        bench.tpm.pcr_value = hashlib.sha256(bench.tpm.pcr_value + event_digest(content)).digest()
    return bench.evidence()


def trailing(bench: Bench) -> trust_pb2.Evidence:
    """A byte after the quote, signed with it."""
    evidence = bench.evidence()
    evidence.attest += b"\0"
    return bench.signed(evidence)


def answered_before(bench: Bench) -> trust_pb2.Evidence:
    """The right answer to a challenge that was answered already."""
    bench.problem = "CHALLENGE_USED"
    return bench.evidence()


def unrestricted_key(bench: Bench) -> trust_pb2.Evidence:
    """A genuine TPM's key that signs whatever it is given: enrolled (by a fault elsewhere), with its right Name."""
    bench.tpm.ak_attributes &= ~RESTRICTED
    return bench.evidence()


def other_scheme(bench: Bench) -> trust_pb2.Evidence:
    """A signature that calls itself one with SHA-384, and is one with SHA-256."""
    evidence = bench.evidence()
    evidence.signature = bytes.fromhex("0018000c") + evidence.signature[4:]
    return evidence


def other_key(bench: Bench) -> trust_pb2.Evidence:
    """Signed, but not by the key of record."""
    evidence = bench.evidence()
    evidence.signature = bench.tpm.sign(evidence.attest, ec.generate_private_key(ec.SECP256R1()))
    return evidence


def wrong_magic(bench: Bench) -> trust_pb2.Evidence:
    """CVE-2024-29038: bytes that no TPM made itself, signed by the key all the same."""
    return bench.evidence(magic=bytes.fromhex("ff544348"))


def wrong_type(bench: Bench) -> trust_pb2.Evidence:
    """Bytes of a quote that say to be of TPM2_Certify."""
    return bench.evidence(type=bytes.fromhex("8017"))


def owner_hierarchy(bench: Bench) -> trust_pb2.Evidence:
    """The same key's Name under the owner's hierarchy."""
    return bench.evidence(signer=sized(b"\0\x0b" + hashlib.sha256(struct.pack(">I", 0x40000001) + bench.tpm.ak.name).digest()))


def other_nonce(bench: Bench) -> trust_pb2.Evidence:
    """An answer to a question that was not asked."""
    return bench.evidence(nonce=bytes(32))


def another_connection(bench: Bench) -> trust_pb2.Evidence:
    """A genuine quote over the agent's older TLS key, through a tunnel that was opened with its newer one."""
    newer = hashlib.sha256(b"the agent's newer TLS key").digest()
    bench.record_changes["tls_spkis"] = (newer, AGENT_SPKI)
    bench.shown_spki = newer
    return bench.evidence()


def one_pcr_more(bench: Bench) -> trust_pb2.Evidence:
    """CVE-2024-29039: a genuine quote, of other PCRs than asked for."""
    assert bench.boot is not None
    quoted = dataclasses.replace(bench, boot=dataclasses.replace(bench.boot, pcrs=(*PCRS, 11)))
    return quoted.evidence()


def unsigned_values(bench: Bench) -> trust_pb2.Evidence:
    """CVE-2022-0317: a log and the PCR value that goes with it, beside the digest of what the PCR really holds."""
    claimed, bench.tpm.pcr_value = bench.tpm.pcr_value, hashlib.sha256(b"what was measured").digest()
    evidence = bench.evidence()
    evidence.pcrs[-1].digest = claimed
    return evidence


def clone(bench: Bench) -> trust_pb2.Evidence:
    """A TPM that was reset less often than it had been."""
    bench.record_changes["tpm"] = moment(bench.tpm, reset_count=bench.tpm.reset_count + 1)
    return bench.evidence()


def reset_under_the_host(bench: Bench) -> trust_pb2.Evidence:
    """TPM Genie: the TPM alone is reset, and everything is measured again as an honest boot would."""
    bench.record_changes["tpm"] = moment(bench.tpm)
    bench.record_changes["boot_id"] = boot_id = bench.tpm.boot_id
    log = bench.tpm.boot_log
    bench.tpm.reset()
    bench.tpm.boot_id = boot_id
    bench.tpm.boot(log)
    bench.tpm.measure(bench.release.sha256)
    return bench.evidence()


def other_tpm_firmware(bench: Bench) -> trust_pb2.Evidence:
    """A TPM whose own firmware is not that of before."""
    bench.record_changes["tpm"] = moment(bench.tpm, firmware_version=1)
    return bench.evidence()


def edited_boot_log(bench: Bench) -> trust_pb2.Evidence:
    """The boot was as recorded, its PCRs show it; the log tells of another one."""
    evidence = bench.evidence()
    evidence.boot_log = boot_log(uefi_boot(kernel=b"another kernel"))
    evidence.boot_log_sha256 = hashlib.sha256(evidence.boot_log).digest()
    return evidence


def relabelled_boot_event(bench: Bench) -> trust_pb2.Evidence:
    """go-attestation's event-log-disclosure: an event's type is not covered by its digest."""
    measurements = uefi_boot()
    measurements[2] = dataclasses.replace(measurements[2], type=0xA0000001, digest=measurements[2].sha256)
    evidence = bench.evidence()
    evidence.boot_log = boot_log(measurements)
    evidence.boot_log_sha256 = hashlib.sha256(evidence.boot_log).digest()
    return evidence


def unlogged_extension(bench: Bench) -> trust_pb2.Evidence:
    """Something was measured into the firmware's PCR, and its record left out."""
    bench.tpm.pcr_value = hashlib.sha256(bench.tpm.pcr_value + bytes(32)).digest()
    return bench.evidence()


def forged_manifest(bench: Bench) -> trust_pb2.Evidence:
    """A manifest that the release key did not sign: its signature is of something else."""
    other = encode_signatures([sign_bytes(b"something else", bench.release_key.private_pem)])
    bench.release = dataclasses.replace(bench.release, signature=other)
    return bench.evidence()


def expired_release(bench: Bench) -> trust_pb2.Evidence:
    """A release whose time is over: nobody vouches any more that there is no newer one (freeze)."""
    bench.release = make_release(bench.release_key, expires="2026-11-22T23:59:59Z")
    return bench.evidence()


def downgrade(bench: Bench) -> trust_pb2.Evidence:
    """A release that was good once."""
    bench.floor = 6
    return bench.evidence()


def unlisted_version(bench: Bench) -> trust_pb2.Evidence:
    """A good release above the floor that the policy does not name."""
    bench.versions = frozenset({"9.9.9"})
    return bench.evidence()


def revoked_earlier(bench: Bench) -> trust_pb2.Evidence:
    """A good release runs, in a host that ran, since its boot, one which was good then and is revoked now."""
    bench.known = frozenset({(LIBRARY, GOOD_LIBRARY.hex())})
    bench.revocations = Revocations(
        version=1, created="2026-11-22T10:00:00Z", expires="2027-11-22T10:00:00Z", digests={GOOD_LIBRARY.hex(): "CVE-2026-0001"}
    )
    bench.release = make_release(bench.release_key, library=hashlib.sha256(b"next").digest(), version="1.1.0")
    bench.tpm.restart_process()
    bench.tpm.measure(bench.release.sha256)
    bench.tpm.measure_files(Measured(path=f"/usr/lib/{LIBRARY}", digest=bench.release.sha256))
    return bench.evidence()


def altered_library(bench: Bench) -> trust_pb2.Evidence:
    """A library that the signed manifest does not name, measured by an honest loader."""
    bench.tpm.restart_process()
    bench.tpm.measure(hashlib.sha256(b"one byte flipped").digest())
    return bench.evidence()


def another_process(bench: Bench) -> trust_pb2.Evidence:
    """A process that measured nothing shows what the one before it measured."""
    bench.tpm.restart_process()
    return bench.evidence()


def another_boot(bench: Bench) -> trust_pb2.Evidence:
    """The host came up with another kernel, and says so."""
    bench.tpm.boot(boot_log(uefi_boot(kernel=b"another kernel")))
    bench.tpm.ima_log, bench.tpm.ima_value = b"", bytes(32)
    first = boot_aggregate(bench.tpm.boot_values)
    bench.tpm.measure_files(first, Measured(path=f"/usr/lib/{LIBRARY}", digest=bench.release.sha256))
    return bench.evidence()


def edited_ima_entry(bench: Bench) -> trust_pb2.Evidence:
    """A file that was opened, and another one in its place in the list."""
    bench.tpm.measure_files(Measured(path="/root/tool", contents=b"rootkit"), shown=False)
    bench.tpm.ima_log += ima_log([Measured(path="/root/tool", contents=b"editor")])
    return bench.evidence()


def ima_of_another_boot(bench: Bench) -> trust_pb2.Evidence:
    """A list whose boot aggregate is of other PCRs, and a PCR 10 that goes with it."""
    bench.tpm.ima_log, bench.tpm.ima_value = b"", bytes(32)
    bench.tpm.measure_files(boot_aggregate({}), Measured(path=f"/usr/lib/{LIBRARY}", digest=bench.release.sha256))
    return bench.evidence()


def tampered_agent_file(bench: Bench) -> trust_pb2.Evidence:
    """A file of the agent that is not as the policy has it."""
    bench.tpm.measure_files(Measured(path="/opt/agent/attest.py", contents=b"returns what it recorded"))
    return bench.evidence()


EVIDENCE: dict[str, tuple[Callable[[Bench], trust_pb2.Evidence], str]] = {
    "size": (oversized, "EVIDENCE_TOO_LARGE"),
    "structure": (trailing, "ATTEST_INVALID"),
    "challenge": (answered_before, "CHALLENGE_USED"),
    "ak": (unrestricted_key, "AK_TEMPLATE_WRONG"),
    "signature-scheme": (other_scheme, "SIGNATURE_SCHEME"),
    "signature": (other_key, "SIGNATURE_INVALID"),
    "magic": (wrong_magic, "ATTEST_MAGIC_WRONG"),
    "type": (wrong_type, "ATTEST_TYPE_WRONG"),
    "qualified-signer": (owner_hierarchy, "QUALIFIED_SIGNER_MISMATCH"),
    "qualifying-data": (other_nonce, "NONCE_MISMATCH"),
    "channel": (another_connection, "CHANNEL_KEY_MISMATCH"),
    "pcr-selection": (one_pcr_more, "PCR_SELECTION_MISMATCH"),
    "pcr-values": (unsigned_values, "PCR_MISMATCH"),
    "clock": (clone, "RESET_COUNT_BACKWARDS"),
    "tpm-reset": (reset_under_the_host, "TPM_RESET_WITHOUT_REBOOT"),
    "tpm-firmware": (other_tpm_firmware, "TPM_FIRMWARE_CHANGED"),
    "boot-log": (edited_boot_log, "BOOT_LOG_MISMATCH"),
    "boot-events": (relabelled_boot_event, "BOOT_EVENT_INVALID"),
    "event-log": (unlogged_extension, "EVENT_LOG_MISMATCH"),
    "manifest": (forged_manifest, "FIRMWARE_SIGNATURE_INVALID"),
    "firmware-expiry": (expired_release, "FIRMWARE_EXPIRED"),
    "firmware-floor": (downgrade, "FIRMWARE_BELOW_FLOOR"),
    "firmware-version": (unlisted_version, "FIRMWARE_VERSION_NOT_ACCEPTED"),
    "firmware-revoked": (revoked_earlier, "FIRMWARE_REVOKED"),
    "firmware": (altered_library, "FIRMWARE_UNTRUSTED_MEASUREMENT"),
    "session": (another_process, "SESSION_MISMATCH"),
    "boot-reference": (another_boot, "BOOT_REFERENCE_MISMATCH"),
    "ima-log": (edited_ima_entry, "IMA_LOG_MISMATCH"),
    "ima-boot": (ima_of_another_boot, "IMA_BOOT_MISMATCH"),
    "ima-agent": (tampered_agent_file, "IMA_FILE_UNTRUSTED"),
}
"""Check -> what only it refuses, and its reason."""


def moment(tpm: SoftwareTpm, **changes: int) -> TpmMoment:
    fields = {
        "clock": 1,
        "reset_count": tpm.reset_count,
        "restart_count": tpm.restart_count,
        "firmware_version": tpm.firmware_version,
    }
    return TpmMoment(**{**fields, **changes})


def test_there_is_evidence_for_every_check_and_the_honest_one_passes_them_all(bench: Bench) -> None:
    assert list(EVIDENCE) == [name for name, _ in checks_for(bench.policy)]
    assert bench.judge(bench.evidence()).verdict is Verdict.PASSED


@pytest.mark.parametrize("removed", list(EVIDENCE))
def test_without_a_check_what_it_alone_refuses_passes(bench: Bench, removed: str) -> None:
    make, reason = EVIDENCE[removed]
    evidence = make(bench)
    table = checks_for(bench.policy)
    report = bench.judge(evidence, checks=table)
    assert report.verdict is not Verdict.PASSED
    assert report.proved is None
    assert failed(report) == {(removed, reason)}
    mutant = bench.judge(evidence, checks=tuple(row for row in table if row[0] != removed))
    assert failed(mutant) == set()
    assert mutant.verdict is Verdict.PASSED


@pytest.mark.parametrize("broken", list(EVIDENCE))
def test_a_check_that_raises_lets_nothing_through(bench: Bench, broken: str) -> None:
    """CVE-2022-3500: an exception inside a check must not leave the host trusted, whatever the evidence."""

    def fault(_case: object) -> None:
        raise ZeroDivisionError("a bug")

    report = bench.judge(
        bench.evidence(), checks=[(name, fault if name == broken else check) for name, check in checks_for(bench.policy)]
    )
    assert (broken, VERIFIER_ERROR) in failed(report)
    assert {reason for _, reason in failed(report)} == {VERIFIER_ERROR}
    assert all(check.reason in {"", NOT_EVALUATED, VERIFIER_ERROR} for check in report.checks)
    assert report.verdict is Verdict.FAILED


def replayed(bench: Bench, store: ChallengeStore) -> Report:
    """A recorded good answer, sent again to the next challenge of a controller that kept no clock of that TPM."""
    recorded = None
    for _ in range(2):
        challenge = store.issue(bench.tpm.agent_id, bench.pcrs)
        bench.nonce = challenge.nonce
        recorded = recorded or bench.evidence()
        consumed = store.consume(challenge.nonce, bench.tpm.agent_id)
    return verify(record_of(bench.tpm), consumed, recorded, bench.policy)


def test_a_recorded_good_answer_fails_and_would_pass_if_nonces_were_constant(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2026-6420: a nonce that a debug edit had made constant."""
    assert failed(replayed(bench, ChallengeStore())) == {("qualifying-data", "NONCE_MISMATCH")}
    monkeypatch.setattr("jarvis_controller.challenges.secrets.token_bytes", lambda size: b"\x2a" * size)
    assert replayed(bench, ChallengeStore()).verdict is Verdict.PASSED
