# SPDX-License-Identifier: Apache-2.0
"""Level L3: what IMA measured is replayed, of this boot, and the agent's files are as the manifest or the policy has them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jarvis.capture.v1 import trust_pb2
from jarvis_controller.attestation_case import Judged, replay
from jarvis_controller.challenges import ConsumedChallenge
from jarvis_controller.config import ConfigError
from jarvis_controller.ima_state import MAX_FILES, ImaState
from jarvis_controller.policy_file import parse_policy
from jarvis_controller.verifier import Report, Verdict
from jarvis_trust.errors import PolicyError
from jarvis_trust.ima_policy import ImaPolicy
from jarvis_trust.policy_document import read_document

from testbed.boot import boot_log, signed_reference, uefi_boot
from testbed.ima import Measured, boot_aggregate, ima_log, pcr_of
from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller.evidence_bench import Bench, failed, measured_bench
from tests.unit.controller.fleet import running_fleet
from tests.unit.controller.releases import Release
from tests.unit.controller.software_tpm import LIBRARY, SoftwareTpm, Vendor

PCRS = tuple(range(10))
AGENT = Measured(path="/opt/agent/bin/python3", contents=b"interpreter")
OTHER = Measured(path="/usr/bin/vi", contents=b"editor")
ALLOWED = frozenset({(AGENT.path.encode(), hashlib.sha256(AGENT.contents).digest())})
POLICY = ImaPolicy(paths=("/opt/agent/",), allowed=ALLOWED, required=(AGENT.path,))


def library(release: Release) -> Measured:
    return Measured(path=f"/usr/lib/{LIBRARY}", digest=release.sha256, signature=b"signature")


@pytest.fixture
def bench(release_key: ReleaseKey, release: Release, keys: SoftwareTpm) -> Bench:
    """An honest host under a kernel with IMA; the policy accepts its interpreter."""
    bench = measured_bench(release_key, release, keys, pcrs=PCRS)
    bench.tpm.measure_files(boot_aggregate(bench.tpm.boot_values), OTHER, AGENT, library(release))
    bench.ima = POLICY
    return bench


def judged(bench: Bench) -> Report:
    return bench.judge(bench.evidence())


def measured_anew(bench: Bench, *files: Measured) -> None:
    bench.tpm.ima_log, bench.tpm.ima_value = b"", bytes(32)
    bench.tpm.measure_files(*files)


def test_an_honest_host_reaches_level_3(bench: Bench) -> None:
    report = judged(bench)
    assert report.verdict is Verdict.PASSED, report.reason
    assert report.proved is not None
    assert report.proved.assurance == "L3"
    assert report.proved.ima is not None
    assert report.proved.ima.entries == 4
    assert [file.path for file in report.proved.ima.files] == [AGENT.path.encode(), b"/usr/lib/libjarvis_capture.so"]


def test_without_an_ima_policy_the_level_is_2_and_pcr_10_is_not_asked_for(bench: Bench) -> None:
    bench.ima = None
    assert 10 not in bench.pcrs
    report = judged(bench)
    assert report.proved is not None
    assert report.proved.assurance == "L2"


def test_entries_behind_the_quote_are_counted_and_not_judged_yet(bench: Bench) -> None:
    evidence = bench.evidence()
    evidence.ima_log += ima_log([Measured(path="/opt/agent/evil.py", contents=b"evil")] * 2)
    report = bench.judge(evidence)
    assert report.proved is not None
    assert report.proved.ima_unquoted == 2
    assert report.proved.ima is not None
    assert report.proved.ima.entries == 4


def test_the_next_time_only_what_is_new_is_sent_and_old_files_are_judged_again(bench: Bench) -> None:
    first = judged(bench)
    assert first.proved is not None
    bench.known_ima = first.proved.ima
    evidence = bench.evidence()
    assert (evidence.ima_log, evidence.ima_first_entry) == (b"", 4)
    assert bench.judge(evidence).verdict is Verdict.PASSED
    bench.tpm.measure_files(Measured(path="/usr/bin/ls", contents=b"ls"))
    evidence = bench.evidence()
    assert evidence.ima_log == ima_log([Measured(path="/usr/bin/ls", contents=b"ls")])
    again = bench.judge(evidence)
    assert again.proved is not None
    assert again.proved.ima is not None
    assert again.proved.ima.entries == 5
    bench.ima = dataclasses.replace(POLICY, allowed=frozenset())
    assert failed(bench.judge(bench.evidence())) == {("ima-agent", "IMA_FILE_UNTRUSTED")}


def test_what_was_kept_of_another_boot_or_another_scope_is_of_no_use(bench: Bench) -> None:
    first = judged(bench)
    assert first.proved is not None
    assert first.proved.ima is not None
    for changes in ({"boot_id": bytes(16)}, {"scope_sha256": bytes(32)}, {"entries": 3}):
        bench.known_ima = first.proved.ima
        evidence = bench.evidence()
        bench.known_ima = dataclasses.replace(first.proved.ima, **changes)
        assert ("ima-log", "IMA_LOG_INVALID") in failed(bench.judge(evidence))
    bench.known_ima = None
    evidence = bench.evidence()
    evidence.ima_first_entry = 4
    assert ("ima-log", "IMA_LOG_INVALID") in failed(bench.judge(evidence))


def removed(bench: Bench) -> None:
    bench.tpm.measure_files(Measured(path="/root/rootkit", contents=b"x"), shown=False)


def reordered(bench: Bench) -> None:
    bench.tpm.ima_log = ima_log([boot_aggregate(bench.tpm.boot_values), AGENT, OTHER, library(bench.release)])


def of_another_host(bench: Bench) -> None:
    bench.tpm.ima_log = ima_log([boot_aggregate({}), AGENT, library(bench.release)])


def appended_in_front_of_the_quote(bench: Bench) -> None:
    bench.tpm.measure_files(Measured(path="/opt/agent/x.py", contents=b"evil"), shown=False)
    bench.tpm.ima_log += ima_log([OTHER])


def none(bench: Bench) -> None:
    bench.tpm.ima_log = b""


def padded_sha1(bench: Bench) -> None:
    value = bytes(32)
    for file in (boot_aggregate(bench.tpm.boot_values), OTHER, AGENT, library(bench.release)):
        sha1 = hashlib.sha1(file.template, usedforsecurity=False).digest()
        value = hashlib.sha256(value + sha1 + bytes(12)).digest()
    bench.tpm.ima_value = value


def tampered_library(bench: Bench) -> None:
    bench.tpm.measure_files(Measured(path=f"/usr/lib/{LIBRARY}", contents=b"one byte flipped"))


def tampered_library_elsewhere(bench: Bench) -> None:
    bench.tpm.measure_files(Measured(path="/tmp/libjarvis_capture_xdp.so", contents=b"evil"))


def unknown_agent_file(bench: Bench) -> None:
    bench.tpm.measure_files(Measured(path="/opt/agent/lib/sitecustomize.py", contents=b"lies"))


def allowed_contents_under_another_path(bench: Bench) -> None:
    bench.tpm.measure_files(dataclasses.replace(AGENT, path="/opt/agent/bin/other"))


def violation(bench: Bench) -> None:
    bench.tpm.measure_files(dataclasses.replace(OTHER, is_violation=True))


def other_hash(bench: Bench) -> None:
    bench.tpm.measure_files(Measured(path="/opt/agent/x", algorithm="sha1", digest=bytes(range(20))))


def library_not_measured(bench: Bench) -> None:
    measured_anew(bench, boot_aggregate(bench.tpm.boot_values), AGENT)


def interpreter_not_measured(bench: Bench) -> None:
    measured_anew(bench, boot_aggregate(bench.tpm.boot_values), library(bench.release))


def no_boot_aggregate(bench: Bench) -> None:
    measured_anew(bench, AGENT, library(bench.release))


def sha1_boot_aggregate(bench: Bench) -> None:
    first = Measured(path="boot_aggregate", algorithm="sha1", digest=bytes(20))
    measured_anew(bench, first, AGENT, library(bench.release))


def foreign_boot_aggregate(bench: Bench) -> None:
    measured_anew(bench, boot_aggregate({}), AGENT, library(bench.release))


@pytest.mark.parametrize(
    ("spoil", "check", "reason"),
    [
        (removed, "ima-log", "IMA_LOG_MISMATCH"),
        (reordered, "ima-log", "IMA_LOG_MISMATCH"),
        (of_another_host, "ima-log", "IMA_LOG_MISMATCH"),
        (appended_in_front_of_the_quote, "ima-log", "IMA_LOG_MISMATCH"),
        (none, "ima-log", "IMA_LOG_MISSING"),
        (padded_sha1, "ima-log", "IMA_SHA1_EXTENDED"),
        (tampered_library, "ima-agent", "IMA_FILE_UNTRUSTED"),
        (tampered_library_elsewhere, "ima-agent", "IMA_FILE_UNTRUSTED"),
        (unknown_agent_file, "ima-agent", "IMA_FILE_UNTRUSTED"),
        (allowed_contents_under_another_path, "ima-agent", "IMA_FILE_UNTRUSTED"),
        (violation, "ima-agent", "IMA_VIOLATION"),
        (other_hash, "ima-agent", "IMA_DIGEST_ALGORITHM"),
        (library_not_measured, "ima-agent", "IMA_AGENT_NOT_MEASURED"),
        (interpreter_not_measured, "ima-agent", "IMA_AGENT_NOT_MEASURED"),
        (no_boot_aggregate, "ima-boot", "IMA_BOOT_MISMATCH"),
        (sha1_boot_aggregate, "ima-boot", "IMA_DIGEST_ALGORITHM"),
        (foreign_boot_aggregate, "ima-boot", "IMA_BOOT_MISMATCH"),
    ],
)
def test_each_lie_is_refused_with_its_reason(bench: Bench, spoil: Callable[[Bench], None], check: str, reason: str) -> None:
    spoil(bench)
    report = judged(bench)
    assert failed(report) == {(check, reason)}
    assert report.verdict is Verdict.FAILED


def test_a_file_that_was_replaced_once_is_held_against_the_host_until_it_reboots(bench: Bench) -> None:
    tampered_library(bench)
    bench.tpm.measure_files(library(bench.release))
    assert failed(judged(bench)) == {("ima-agent", "IMA_FILE_UNTRUSTED")}


def test_a_release_known_before_may_stand_in_the_list(bench: Bench) -> None:
    older = hashlib.sha256(b"the release before").digest()
    bench.tpm.measure_files(Measured(path=f"/usr/lib/{LIBRARY}", digest=older))
    assert failed(judged(bench)) == {("ima-agent", "IMA_FILE_UNTRUSTED")}
    bench.known = frozenset({(LIBRARY, older.hex())})
    assert judged(bench).verdict is Verdict.PASSED


def test_violations_elsewhere_can_be_accepted_those_of_the_agent_cannot(bench: Bench) -> None:
    violation(bench)
    bench.ima = dataclasses.replace(POLICY, accept_violations=True)
    assert judged(bench).verdict is Verdict.PASSED
    bench.tpm.measure_files(dataclasses.replace(AGENT, is_violation=True))
    assert failed(judged(bench)) == {("ima-agent", "IMA_VIOLATION")}


def test_the_path_of_a_violation_can_be_forged_which_is_why_none_is_accepted_by_default(bench: Bench) -> None:
    bench.tpm.measure_files(dataclasses.replace(AGENT, is_violation=True), shown=False)
    bench.tpm.ima_log += ima_log([dataclasses.replace(OTHER, is_violation=True)])
    assert failed(judged(bench)) == {("ima-agent", "IMA_VIOLATION")}
    bench.ima = dataclasses.replace(POLICY, accept_violations=True)
    assert judged(bench).verdict is Verdict.PASSED


def test_a_boot_aggregate_over_pcrs_0_to_7_is_accepted_and_none_is_judged_when_they_were_not_quoted(bench: Bench) -> None:
    older = boot_aggregate(bench.tpm.boot_values, indices=range(8))
    measured_anew(bench, older, AGENT, library(bench.release))
    assert judged(bench).verdict is Verdict.PASSED
    foreign_boot_aggregate(bench)
    assert bench.boot is not None
    bench.boot = dataclasses.replace(bench.boot, pcrs=PCRS[:9])
    assert judged(bench).verdict is Verdict.PASSED


def test_too_many_files_in_scope_are_refused_instead_of_kept(bench: Bench) -> None:
    bench.tpm.measure_files(*(Measured(path=f"/opt/agent/{number}") for number in range(MAX_FILES)))
    assert ("ima-boot", "NOT_EVALUATED") in {(check.name, check.reason) for check in judged(bench).checks}
    assert failed(judged(bench)) == {("ima-agent", "IMA_TOO_MANY_FILES")}


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("spoil", [lambda _bench: None, tampered_library, removed])
def test_a_verdict_over_ima_is_reached_again_from_its_case(bench: Bench, spoil: Callable[[Bench], None], is_known: bool) -> None:
    if is_known:
        first = judged(bench)
        assert first.proved is not None
        bench.known_ima = first.proved.ima
    spoil(bench)
    evidence: trust_pb2.Evidence = bench.evidence()
    consumed = ConsumedChallenge(agent_id=bench.tpm.agent_id, nonce=bench.nonce, pcrs=bench.pcrs, problem="")
    report = bench.judge(evidence)
    case = Judged(record=bench.record, challenge=consumed, evidence=evidence, policy=bench.policy, report=report).to_case(1)
    result = replay(case.data, case.boot_log, case_sha256=case.sha256)
    assert result.same
    assert {check.name: check.found for check in result.checks} == {check.name: check.reason for check in report.checks}


def test_a_state_reads_back_as_it_was_kept(bench: Bench) -> None:
    report = judged(bench)
    assert report.proved is not None
    assert report.proved.ima is not None
    assert ImaState.from_message(report.proved.ima.to_message()) == report.proved.ima


def demanding(directory: Path, release_key: ReleaseKey, *, digests: str) -> PolicyText:
    """Level L3 of everybody; `digests` is the file of accepted contents."""
    for name, data in signed_reference(boot_log(uefi_boot()), release_key.private_pem, pcrs=PCRS).items():
        (directory / name).write_bytes(data)
    (directory / "agent.sha256").write_text(digests)
    ima = {"paths": ["/opt/agent/"], "allowed": [str(directory / "agent.sha256")], "required": [AGENT.path]}
    return PolicyText(boot_pcrs=PCRS, references=[str(directory / "good.json")], ima=ima)


async def test_a_fleet_that_demands_level_3_asks_for_the_list_once_and_then_for_what_is_new(
    tmp_path: Path, release_key: ReleaseKey
) -> None:
    digests = f"{hashlib.sha256(AGENT.contents).hexdigest()}  {AGENT.path}\n"
    async with running_fleet(tmp_path, release_key, policy=demanding(tmp_path, release_key, digests=digests)) as fleet:
        tpm = SoftwareTpm()
        tpm.boot(boot_log(uefi_boot()))
        tpm.measure_files(boot_aggregate(tpm.boot_values), AGENT, library(fleet.release))
        agent = await fleet.add_agent(tpm=tpm)
        assert (await fleet.agent_row(agent)).assurance == "L3"
        assert agent.known_ima == (b"", 0)
        tpm.measure_files(OTHER)
        assert not (await fleet.controller.attester.attest(agent.agent_id)).status.code
        assert agent.known_ima == (tpm.boot_id, 3)
        state = await fleet.controller.store.ima_state(agent.agent_id)
        assert state is not None
        assert (state.entries, state.pcr) == (4, pcr_of(tpm.ima_log))
        tampered_library(Bench(release_key=release_key, release=fleet.release, tpm=tpm))
        outcome = await fleet.controller.attester.attest(agent.agent_id)
        assert "IMA_FILE_UNTRUSTED" in outcome.agent.reason
        assert await fleet.controller.store.ima_state(agent.agent_id) == state


def test_a_failure_that_is_only_reported_makes_no_level_3_and_is_not_gone_on_from(bench: Bench) -> None:
    tampered_library(bench)
    bench.reported = frozenset({("ima-agent", "IMA_FILE_UNTRUSTED")})
    report = judged(bench)
    assert report.verdict is Verdict.PASSED
    assert report.proved is not None
    assert (report.proved.assurance, report.proved.ima) == ("L2", None)


async def test_a_list_of_digests_that_cannot_be_read_is_no_policy(tmp_path: Path, release_key: ReleaseKey) -> None:
    with pytest.raises(ConfigError, match=r"ima\.allowed.*line 1"):
        async with running_fleet(tmp_path, release_key, policy=demanding(tmp_path, release_key, digests="nonsense\n")):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boot_pcrs": (0, 10)}, "PCR 10"),
        ({"references": ()}, r"rule\[0\]\.references"),
        ({"ima": {"paths": ["relative/"]}}, r"ima\.paths: 'relative/'"),
        ({"ima": {"required": ["/"]}}, r"ima\.required: '/'"),
        ({"ima": {"path": ["/x"]}}, r"unknown field 'ima\.path'"),
        ({"ima": {"allowed": ["missing.sha256"]}}, r"ima\.allowed"),
        ({"ima": {"accept_violations": 1}}, r"ima\.accept_violations"),
    ],
)
def test_a_policy_that_cannot_be_judged_by_is_refused(
    tmp_path: Path, release_key: ReleaseKey, changes: dict[str, Any], message: str
) -> None:
    policy = dataclasses.replace(demanding(tmp_path, release_key, digests=""), **changes)
    (tmp_path / "vendor.pem").write_bytes(Vendor().root_pem)
    (tmp_path / "policy.toml").write_text(policy.toml(["vendor.pem"]))
    with pytest.raises(PolicyError, match=message):
        parse_policy(read_document(tmp_path / "policy.toml"), release_key.release_root)
