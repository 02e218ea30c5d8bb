# SPDX-License-Identifier: Apache-2.0
"""Agents without a TPM: refused unless the policy names them, L0 everywhere, and judged by a table of their own."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from jarvis.capture.v1 import enrollment_pb2, fleet_pb2, trust_pb2
from jarvis_controller.attestation_case import Judged, replay
from jarvis_controller.case import ReleaseTrust, VerifierPolicy
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.rpc_status import status_of
from jarvis_controller.software_checks import SOFTWARE_CHECKS
from jarvis_controller.states import State
from jarvis_controller.verifier import VERIFIER_ERROR, Report, Verdict, checks_for, verify
from jarvis_trust.ca import generate_key
from jarvis_trust.errors import IdentityError
from jarvis_trust.identities import agent_id_from_ek
from jarvis_trust.policy_document import read_document
from jarvis_trust.revocations import Revocations
from jarvis_trust.software_identity import SoftwareSigner, agent_id_from_software, parse_software_public
from jarvis_trust.status import reason_of

from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller.evidence_bench import AGENT_SPKI, CONTROLLER_SPKI, NOW_NS, failed, record_of
from tests.unit.controller.fake_agent import FakeAgent
from tests.unit.controller.fleet import TestFleet, running_fleet
from tests.unit.controller.releases import GOOD_LIBRARY, Release, make_release
from tests.unit.controller.software_tpm import LIBRARY, SoftwareTpm, software_evidence


@dataclasses.dataclass(slots=True, kw_only=True)
class SoftwareBench:
    """An honest agent without a TPM and what the controller holds of it; a test spoils one thing."""

    release_key: ReleaseKey
    release: Release
    log: SoftwareTpm
    """Only what it logged counts."""
    signer: SoftwareSigner = dataclasses.field(default_factory=lambda: SoftwareSigner(generate_key()))
    nonce: bytes = dataclasses.field(default_factory=lambda: secrets.token_bytes(32))
    problem: str = ""
    floor: int = 0
    versions: frozenset[str] = frozenset()
    shown_spki: bytes | None = AGENT_SPKI
    revocations: Revocations | None = None
    known: frozenset[tuple[str, str]] = frozenset()
    is_named: bool = True
    record_changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def evidence(self, **changes: Any) -> trust_pb2.Evidence:
        fields: dict[str, Any] = {
            "nonce": self.nonce,
            "agent_spki": AGENT_SPKI,
            "controller_spki": CONTROLLER_SPKI,
            "manifest": self.release.manifest,
            "manifest_signature": self.release.signature,
        }
        return software_evidence(changes.pop("signer", self.signer), self.log, **{**fields, **changes})

    @property
    def record(self) -> Any:
        changes = {
            "agent_id": self.signer.agent_id,
            "ek_public": b"",
            "ak_public": self.signer.spki_der,
            "ak_name": self.signer.ak_name,
            "has_tpm": False,
        }
        return record_of(self.log, **{**changes, **self.record_changes})

    @property
    def policy(self) -> VerifierPolicy:
        return VerifierPolicy(
            releases=ReleaseTrust(root=self.release_key.release_root, revocations=self.revocations, time_ns=NOW_NS),
            known_firmware=self.known,
            firmware_floor=self.floor,
            agent_spki=self.shown_spki,
            firmware_versions=self.versions,
            pcr=14,
            controller_spki=CONTROLLER_SPKI,
            lease_ns=600 * 10**9,
            without_tpm=self.is_named,
        )

    @property
    def challenge(self) -> ConsumedChallenge:
        return ConsumedChallenge(agent_id=self.signer.agent_id, nonce=self.nonce, pcrs=(14,), problem=self.problem)

    def judge(self, evidence: trust_pb2.Evidence, **options: Any) -> Report:
        return verify(self.record, self.challenge, evidence, self.policy, **options)


@pytest.fixture
def bench(release_key: ReleaseKey, release: Release, keys: SoftwareTpm) -> SoftwareBench:
    log = SoftwareTpm(ak_key=keys.ak_key, ek_key=keys.ek_key)
    log.measure(release.sha256)
    return SoftwareBench(release_key=release_key, release=release, log=log)


def test_what_passes_is_level_0_and_knows_no_tpm(bench: SoftwareBench) -> None:
    report = bench.judge(bench.evidence())
    assert report.verdict is Verdict.PASSED, report.reason
    assert report.proved is not None
    assert (report.proved.assurance, report.proved.tpm) == ("L0", None)
    assert len(report.proved.ak_name) == 34
    assert report.proved.tls_spki == AGENT_SPKI


def oversized(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.release = dataclasses.replace(bench.release, signature=bench.release.signature)
    evidence = bench.evidence()
    evidence.manifest_signature += bytes(1 << 20)
    return evidence


def with_a_quote(bench: SoftwareBench) -> trust_pb2.Evidence:
    evidence = bench.evidence()
    evidence.attest = b"\xffTCG"
    return evidence


def used_challenge(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.problem = "CHALLENGE_USED"
    return bench.evidence()


def not_named(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.is_named = False
    return bench.evidence()


def another_name(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.record_changes["ak_name"] = b"\0\x0b" + bytes(32)
    return bench.evidence()


def another_key(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.shown_spki = None  # direct carrier: no connection speaks for the key
    return bench.evidence(signer=SoftwareSigner(generate_key()), agent_id=bench.signer.agent_id)


def another_channel(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.shown_spki = bytes(32)
    return bench.evidence()


def another_pcr(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.log.pcr, bench.log.events = 13, []
    bench.log.measure(bench.release.sha256)
    return bench.evidence()


def forged_manifest(bench: SoftwareBench) -> trust_pb2.Evidence:
    signature = bytes([bench.release.signature[0] ^ 1]) + bench.release.signature[1:]
    bench.release = dataclasses.replace(bench.release, signature=signature)
    return bench.evidence()


def downgrade(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.floor = 6
    return bench.evidence()


def expired_release(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.release = make_release(bench.release_key, expires="2026-11-22T23:59:59Z")
    return bench.evidence()


def revoked_earlier(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.known = frozenset({(LIBRARY, GOOD_LIBRARY.hex())})
    bench.revocations = Revocations(
        version=1, created="2026-11-22T10:00:00Z", expires="2027-11-22T10:00:00Z", digests={GOOD_LIBRARY.hex(): "CVE-2026-0001"}
    )
    bench.release = make_release(bench.release_key, library=hashlib.sha256(b"next").digest(), version="1.1.0")
    bench.log.restart_process()
    bench.log.measure(bench.release.sha256)
    return bench.evidence()


def another_version(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.versions = frozenset({"2.0.0"})
    return bench.evidence()


def altered_library(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.log.restart_process()
    bench.log.measure(hashlib.sha256(b"one byte flipped").digest())
    return bench.evidence()


def another_process(bench: SoftwareBench) -> trust_pb2.Evidence:
    bench.log.restart_process()
    return bench.evidence()


EVIDENCE: dict[str, tuple[Callable[[SoftwareBench], trust_pb2.Evidence], str]] = {
    "size": (oversized, "EVIDENCE_TOO_LARGE"),
    "software-form": (with_a_quote, "EVIDENCE_MALFORMED"),
    "challenge": (used_challenge, "CHALLENGE_USED"),
    "without-tpm": (not_named, "AGENT_WITHOUT_TPM"),
    "identity-key": (another_name, "SOFTWARE_IDENTITY_MISMATCH"),
    "software-signature": (another_key, "SOFTWARE_SIGNATURE_INVALID"),
    "channel": (another_channel, "CHANNEL_KEY_MISMATCH"),
    "event-log": (another_pcr, "EVENT_LOG_MISMATCH"),
    "manifest": (forged_manifest, "FIRMWARE_SIGNATURE_INVALID"),
    "firmware-expiry": (expired_release, "FIRMWARE_EXPIRED"),
    "firmware-floor": (downgrade, "FIRMWARE_BELOW_FLOOR"),
    "firmware-version": (another_version, "FIRMWARE_VERSION_NOT_ACCEPTED"),
    "firmware-revoked": (revoked_earlier, "FIRMWARE_REVOKED"),
    "firmware": (altered_library, "FIRMWARE_UNTRUSTED_MEASUREMENT"),
    "session": (another_process, "SESSION_MISMATCH"),
}
"""Check -> what only it refuses, and its reason. An oversized signature of the manifest is refused by check manifest too."""


def test_there_is_evidence_for_every_check(bench: SoftwareBench) -> None:
    assert list(EVIDENCE) == [name for name, _ in SOFTWARE_CHECKS]
    assert checks_for(bench.policy, has_tpm=False) == SOFTWARE_CHECKS


@pytest.mark.parametrize("removed", [name for name in EVIDENCE if name != "size"])
def test_without_a_check_what_it_alone_refuses_passes(bench: SoftwareBench, removed: str) -> None:
    make, reason = EVIDENCE[removed]
    evidence = make(bench)
    assert failed(bench.judge(evidence)) == {(removed, reason)}
    mutant = bench.judge(evidence, checks=[row for row in SOFTWARE_CHECKS if row[0] != removed])
    assert mutant.verdict is Verdict.PASSED, mutant.reason


def test_what_is_too_large_is_evaluated_by_no_other_check(bench: SoftwareBench) -> None:
    report = bench.judge(oversized(bench))
    assert ("size", "EVIDENCE_TOO_LARGE") in failed(report)
    assert report.verdict is Verdict.FAILED


@pytest.mark.parametrize("broken", list(EVIDENCE))
def test_a_check_that_raises_lets_nothing_through(bench: SoftwareBench, broken: str) -> None:
    def fault(_case: object) -> None:
        raise ZeroDivisionError("a bug")

    table = [(name, fault if name == broken else check) for name, check in SOFTWARE_CHECKS]
    report = bench.judge(bench.evidence(), checks=table)
    assert (broken, VERIFIER_ERROR) in failed(report)
    assert report.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": bytes(32)},
        {"agent_spki": bytes(32)},
        {"controller_spki": bytes(32)},
        {"agent_id": "a" * 32},
    ],
)
def test_evidence_of_another_challenge_channel_or_agent_is_refused(bench: SoftwareBench, changes: dict[str, Any]) -> None:
    assert failed(bench.judge(bench.evidence(**changes))) == {("software-signature", "SOFTWARE_SIGNATURE_INVALID")}


@pytest.mark.parametrize("field", ["boot_id", "session_id", "event_log", "manifest"])
def test_what_the_signature_covers_cannot_be_changed_behind_it(bench: SoftwareBench, field: str) -> None:
    evidence = bench.evidence()
    value = getattr(evidence, field)
    setattr(evidence, field, value[:-1] + bytes([value[-1] ^ 1]))
    assert ("software-signature", "SOFTWARE_SIGNATURE_INVALID") in failed(bench.judge(evidence))


def test_an_agent_that_enrolled_with_a_tpm_is_never_judged_without_it(bench: SoftwareBench) -> None:
    """A rooted host leaves its TPM out: the evidence is right by the other table."""
    bench.record_changes = {"has_tpm": True, "ak_public": bench.log.ak_public, "ak_name": bench.log.ak.name}
    report = bench.judge(bench.evidence())
    assert [check.name for check in report.checks] == [name for name, _ in checks_for(bench.policy)]
    assert ("structure", "ATTEST_INVALID") in failed(report) or ("magic", "ATTEST_MAGIC_WRONG") in failed(report)
    assert report.verdict is Verdict.FAILED
    bench.record_changes = {"has_tpm": True}
    assert ("identity-key", "SOFTWARE_IDENTITY_MISMATCH") in failed(bench.judge(bench.evidence(), checks=SOFTWARE_CHECKS))


def test_an_agent_without_a_tpm_cannot_pass_off_a_quote(bench: SoftwareBench) -> None:
    quote = bench.log.evidence(
        nonce=bench.nonce,
        agent_spki=AGENT_SPKI,
        controller_spki=CONTROLLER_SPKI,
        manifest=bench.release.manifest,
        manifest_signature=bench.release.signature,
    )
    assert failed(bench.judge(quote)) == {
        ("software-form", "EVIDENCE_MALFORMED"),
        ("software-signature", "SOFTWARE_SIGNATURE_INVALID"),
    }


def test_ids_of_software_keys_are_not_those_of_endorsement_keys() -> None:
    signer = SoftwareSigner(generate_key())
    assert agent_id_from_software(signer.spki_der) != agent_id_from_ek(signer.spki_der)
    assert len(signer.agent_id) == 32


def test_only_the_one_encoding_of_a_p256_key_is_an_identity() -> None:
    signer = SoftwareSigner(generate_key())
    assert parse_software_public(signer.spki_der)
    key = load_pem_private_key(generate_key(), None).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for wrong in (b"", pem, signer.spki_der + b"\0", signer.spki_der[:-1]):
        with pytest.raises(IdentityError):
            parse_software_public(wrong)


def test_a_verdict_is_reached_again_from_its_case(bench: SoftwareBench) -> None:
    for evidence in (bench.evidence(), another_key(bench), not_named(bench)):
        report = bench.judge(evidence)
        judged = Judged(record=bench.record, challenge=bench.challenge, evidence=evidence, policy=bench.policy, report=report)
        case = judged.to_case(1)
        assert replay(case.data, case.boot_log, case_sha256=case.sha256).same


# -- a whole controller --


def signer_and_settings() -> tuple[SoftwareSigner, dict[str, Any]]:
    signer = SoftwareSigner(generate_key())
    return signer, {"policy": PolicyText(without_tpm={"agents": [signer.agent_id]})}


async def refused(fleet: TestFleet, agent: FakeAgent, **options: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.join(await fleet.join_file(**options))
    return error_reason(error.value)


def error_reason(error: grpc.aio.AioRpcError) -> str:
    return reason_of(status_of(error))


async def test_an_agent_that_the_policy_does_not_name_is_refused(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        agent = FakeAgent(release=fleet.release, vendor=fleet.vendor, software=SoftwareSigner(generate_key()))
        assert await refused(fleet, agent, without_tpm=True) == "AGENT_WITHOUT_TPM"
        assert await fleet.controller.store.agent(agent.agent_id) is None


async def test_one_that_is_named_needs_a_token_made_for_it_too(tmp_path: Path, release_key: ReleaseKey) -> None:
    signer, settings = signer_and_settings()
    async with running_fleet(tmp_path, release_key, **settings) as fleet:
        agent = FakeAgent(release=fleet.release, vendor=fleet.vendor, software=signer)
        assert await refused(fleet, agent) == "TPM_REQUIRED"
        join_file = await fleet.join_file(without_tpm=True)
        await agent.join(join_file)
        events = await fleet.controller.store.audit_page(0, 100)
        assert any(event.action == "enroll.token" and '"without_tpm":true' in event.detail for event in events)


async def test_labels_of_the_token_can_admit_it_and_a_rule_above_level_1_cannot(tmp_path: Path, release_key: ReleaseKey) -> None:
    signer = SoftwareSigner(generate_key())
    async with running_fleet(tmp_path, release_key, policy=PolicyText(without_tpm={"selector": "tpm=none"})) as fleet:
        agent = FakeAgent(release=fleet.release, vendor=fleet.vendor, software=signer)
        assert await refused(fleet, agent, without_tpm=True) == "AGENT_WITHOUT_TPM"
        await agent.join(await fleet.join_file({"tpm": "none"}, without_tpm=True))
        demanded = dataclasses.replace(fleet.controller.policies.current)
        rule = dataclasses.replace(demanded.rules[-1], level="L2")
        stricter = dataclasses.replace(demanded, rules=(rule,))
        assert demanded.for_agent(signer.agent_id, {"tpm": "none"}).without_tpm
        assert not stricter.for_agent(signer.agent_id, {"tpm": "none"}).without_tpm
        assert not demanded.for_agent(signer.agent_id, {}).without_tpm


async def test_it_shows_as_level_0_works_under_leases_and_comes_back_by_its_key(tmp_path: Path, release_key: ReleaseKey) -> None:
    signer, settings = signer_and_settings()
    async with running_fleet(tmp_path, release_key, **settings) as fleet:
        agent = await fleet.add_agent(software=signer)
        row = await fleet.agent_row(agent)
        assert (row.assurance, row.has_tpm) == ("L0", False)
        assert agent.lease is not None
        assert agent.lease.ak_name == signer.ak_name
        assert agent.lease.tpm_reset_count == 0
        other = await fleet.add_agent()
        row = await fleet.agent_row(other)
        assert (row.assurance, row.has_tpm) == ("L1", True)
        result = await agent.join(await fleet.join_file(), token="")
        assert result.agent_id == signer.agent_id


async def test_withdrawn_by_the_policy_it_is_refused_at_its_next_attestation_and_renewal(
    tmp_path: Path, release_key: ReleaseKey
) -> None:
    signer, settings = signer_and_settings()
    async with running_fleet(tmp_path, release_key, **settings) as fleet:
        agent = await fleet.add_agent(software=signer)
        fleet.config.policy.write_text(PolicyText(version=2).toml(["ek-roots/01-vendor.pem"]))
        await fleet.controller.policies.apply(fleet.controller.store, read_document(fleet.config.policy), principal="controller")
        with pytest.raises(grpc.aio.AioRpcError) as refused_renewal:
            await agent.join(await fleet.join_file(without_tpm=True))
        assert error_reason(refused_renewal.value) == "AGENT_WITHOUT_TPM"
        outcome = await fleet.controller.attester.attest(agent.agent_id)
        assert outcome.agent.state is State.QUARANTINED
        assert "AGENT_WITHOUT_TPM" in outcome.agent.reason
        row = await fleet.agent_row(agent)
        assert row.assurance == "L0"


@pytest.mark.parametrize("field", ["ek_certificate", "ek_public", "ak_public", "ek_chain", "tls_public"])
async def test_a_software_key_beside_anothers_tpm_is_refused(tmp_path: Path, release_key: ReleaseKey, field: str) -> None:
    """The software key is to prove what the TPM's keys claim."""
    signer, settings = signer_and_settings()
    async with running_fleet(tmp_path, release_key, **settings) as fleet:

        def add(params: enrollment_pb2.EnrollParams) -> None:
            if field == "ek_chain":
                params.ek_chain.append(b"x")
            else:
                setattr(params, field, b"x")

        agent = FakeAgent(release=fleet.release, vendor=fleet.vendor, software=signer, change_params=add)
        assert await refused(fleet, agent, without_tpm=True) == "SOFTWARE_IDENTITY_INVALID"


async def test_a_proof_by_another_key_is_refused(tmp_path: Path, release_key: ReleaseKey) -> None:
    signer, settings = signer_and_settings()
    async with running_fleet(tmp_path, release_key, **settings) as fleet:

        def claim(params: enrollment_pb2.EnrollParams) -> None:
            params.software_public = signer.spki_der

        thief = SoftwareSigner(generate_key())
        agent = FakeAgent(release=fleet.release, vendor=fleet.vendor, software=thief, change_params=claim)
        assert await refused(fleet, agent, without_tpm=True) == "ENROLLMENT_PROOF_INVALID"


async def test_events_say_that_it_has_no_tpm(tmp_path: Path, release_key: ReleaseKey) -> None:
    signer, settings = signer_and_settings()
    async with running_fleet(tmp_path, release_key, **settings) as fleet:
        agent = await fleet.add_agent(software=signer)
        stub = await fleet.stub()
        answers = [answer async for answer in stub.WatchEvents(fleet_pb2.WatchEventsRequest())]
        events = [answer.happened for answer in answers if answer.happened.agent_id == agent.agent_id]
        assert any(event.message.endswith("without a TPM") and event.detail["assurance"] == "L0" for event in events)
        assert [event.detail["assurance"] for event in events if event.detail["to"] == "VERIFIED"] == ["L0"]
