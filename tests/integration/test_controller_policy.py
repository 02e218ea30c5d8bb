# SPDX-License-Identifier: Apache-2.0
"""The policy of a running controller: what is in force, what another one does to agents, and what it would do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from jarvis.capture.v1 import event_pb2, fleet_pb2, policy_pb2
from jarvis.capture.v1.policy_pb2_grpc import PolicyServiceStub
from jarvis_controller.attestation_case import replay
from jarvis_controller.config import ConfigError
from jarvis_controller.event_log import Criteria, page
from jarvis_controller.rpc_status import status_of
from jarvis_controller.server import Controller
from jarvis_trust.identities import Identity, Role
from jarvis_trust.policy_document import read_document
from jarvis_trust.status import reason_of
from jarvis_trust.tpm_structures import parse_public

from testbed.boot import boot_log, signed_reference, uefi_boot
from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import FakeAgent
from tests.unit.controller.fleet import TestFleet, eventually, running_fleet
from tests.unit.controller.software_tpm import SoftwareTpm, Vendor
from tests.unit.jarvisctl.conftest import Result, run_ctl, write_config

PCRS = tuple(range(9))
GOOD = boot_log(uefi_boot())
OTHER = boot_log(uefi_boot(kernel=b"another kernel"))
ROOTS = ["ek-roots/01-vendor.pem"]
PASSED, REPORTED = policy_pb2.SIMULATED_VERDICT_PASSED, policy_pb2.SIMULATED_VERDICT_REPORTED
QUARANTINED, NO_EVIDENCE = policy_pb2.SIMULATED_VERDICT_QUARANTINED, policy_pb2.SIMULATED_VERDICT_NO_EVIDENCE
UNDECIDED = policy_pb2.SIMULATED_VERDICT_UNDECIDED


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey) -> AsyncIterator[TestFleet]:
    """One that records measured boot; good.json is a reference set beside policy.toml."""
    async with running_fleet(tmp_path, release_key, policy=PolicyText(boot_pcrs=PCRS)) as made:
        for name, data in signed_reference(GOOD, release_key.private_pem, pcrs=PCRS).items():
            (made.directory / name).write_bytes(data)
        yield made


def strict(**changes: Any) -> PolicyText:
    """Measured boot for everybody."""
    return PolicyText(**{"version": 2, "boot_pcrs": PCRS, "references": ["good.json"], **changes})


def document(fleet: TestFleet, policy: PolicyText) -> policy_pb2.PolicyDocument:
    path = fleet.directory / "next.toml"
    path.write_text(policy.toml(ROOTS))
    return read_document(path).to_message()


async def stub_of(fleet: TestFleet, role: Role = Role.ADMIN) -> Any:
    return PolicyServiceStub(await fleet.stack.enter_async_context(fleet.channel(role)))


async def apply(fleet: TestFleet, policy: PolicyText) -> policy_pb2.AppliedPolicy:
    stub = await stub_of(fleet)
    answer = await stub.ApplyPolicy(policy_pb2.ApplyPolicyRequest(document=document(fleet, policy)))
    return answer.policy  # type: ignore[no-any-return]


async def refusal(fleet: TestFleet, policy: PolicyText) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await apply(fleet, policy)
    status = status_of(refused.value)
    return refused.value.code(), reason_of(status), status.message


async def simulate(
    fleet: TestFleet, policy: PolicyText, selector: fleet_pb2.AgentSelector | None = None
) -> tuple[dict[str, policy_pb2.SimulatedAgent], policy_pb2.SimulationSummary]:
    stub = await stub_of(fleet, Role.OPERATOR)
    request = policy_pb2.SimulatePolicyRequest(document=document(fleet, policy), selector=selector)
    items = [item async for item in stub.SimulatePolicy(request)]
    return {item.agent.agent.agent_id: item.agent for item in items[:-1]}, items[-1].summary


async def booted(fleet: TestFleet, log: bytes, **options: Any) -> FakeAgent:
    tpm = SoftwareTpm()
    tpm.boot(log)
    return await fleet.add_agent(tpm=tpm, **options)


async def audited(fleet: TestFleet, action: str) -> list[dict[str, Any]]:
    entries = await fleet.controller.store.audit_page(0, 1000)
    return [{"principal": entry.principal, **json.loads(entry.detail)} for entry in entries if entry.action == action]


async def events_of(fleet: TestFleet, kind: event_pb2.EventType.ValueType) -> list[event_pb2.Event]:
    kept = await fleet.controller.store.run(lambda session: page(session, 0, 1000, Criteria(types=[kind])))
    return [event_pb2.Event.FromString(event.data) for event in kept]


async def test_an_applied_policy_is_in_force_at_once_and_after_a_restart(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    assert agent.lease is not None
    first = agent.lease.sequence
    applied = await apply(fleet, PolicyText(version=2, lease_s=77))
    assert (applied.version, applied.principal) == (2, "spiffe://lab.example/operator/admin/ada")

    async def shorter() -> bool:
        return agent.lease is not None and agent.lease.sequence > first and agent.lease.duration_ns == 77 * 10**9

    await eventually(shorter, "the agent was attested again and has a lease of the new length")
    assert [(entry["version"], entry["principal"]) for entry in await audited(fleet, "policy.apply")] == [
        (1, "controller"),
        (2, "spiffe://lab.example/operator/admin/ada"),
    ]
    (told,) = await events_of(fleet, event_pb2.EVENT_TYPE_POLICY_APPLIED)
    assert (told.value, told.detail["name"]) == (2, "test")
    assert "version = 1" in fleet.config.policy.read_text()
    again = Controller(fleet.config)
    assert again.policies.current.version == 2
    shown = await (await stub_of(fleet, Role.VIEWER)).GetPolicy(policy_pb2.GetPolicyRequest())
    assert shown.policy.sha256 == again.policies.current.document.sha256
    assert again.policies.applied.principal == applied.principal


async def test_what_may_be_exported_to_is_in_every_lease_and_a_change_reaches_agents_at_once(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    assert agent.lease is not None
    assert list(agent.lease.export_collectors) == []
    for version, collectors in ((2, ["192.0.2.0/24", "siem.example:4739"]), (3, ["192.0.2.0/24"])):
        await apply(fleet, PolicyText(version=version, collectors=collectors))

        async def told(collectors: list[str] = collectors) -> bool:
            return agent.lease is not None and list(agent.lease.export_collectors) == collectors

        await eventually(told, f"the agent's lease names {collectors}")


async def test_a_file_of_a_higher_version_goes_at_the_start_and_one_of_the_same_version_must_be_the_same(
    fleet: TestFleet,
) -> None:
    await apply(fleet, PolicyText(version=2))
    fleet.config.policy.write_text(PolicyText(version=2, lease_s=99).toml(ROOTS))
    with pytest.raises(ConfigError, match=r"POLICY_VERSION_REUSED: .*version = 2: another policy of this version is in force"):
        Controller(fleet.config)
    fleet.config.policy.write_text(PolicyText(version=3, lease_s=99).toml(ROOTS))
    assert Controller(fleet.config).policies.current.version == 3


async def test_what_was_applied_and_can_no_longer_be_used_gives_way_to_a_newer_file_only(fleet: TestFleet) -> None:
    """After an upgrade, or another release key: the way out is a policy of a higher version."""
    kept = fleet.directory / "policy.applied"
    await apply(fleet, PolicyText(version=2))
    applied = policy_pb2.AppliedPolicy.FromString(kept.read_bytes())
    applied.document.text += "[no-such-table]\n"
    kept.write_bytes(applied.SerializeToString())
    with pytest.raises(ConfigError, match=r"policy\.applied: unknown field 'no-such-table'"):
        Controller(fleet.config)
    fleet.config.policy.write_text(PolicyText(version=3).toml(ROOTS))
    assert Controller(fleet.config).policies.current.version == 3


async def test_a_version_that_does_not_rise_is_refused_and_the_same_policy_changes_nothing(fleet: TestFleet) -> None:
    await apply(fleet, PolicyText(version=5))
    assert (await apply(fleet, PolicyText(version=5))).version == 5
    code, reason, message = await refusal(fleet, PolicyText(version=5, lease_s=99))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "POLICY_VERSION_OLD")
    assert "version 5 of 'test' is in force; a higher version is accepted" in message
    assert (await refusal(fleet, PolicyText(version=4)))[1] == "POLICY_VERSION_OLD"
    assert [entry["version"] for entry in await audited(fleet, "policy.apply")] == [1, 5]
    (told,) = await audited(fleet, "access.refused")
    assert (told["method"], told["reason"]) == ("/jarvis.capture.v1.PolicyService/ApplyPolicy", "POLICY_VERSION_OLD")


async def test_a_policy_with_large_reference_sets_fits_and_one_beyond_the_limit_does_not(fleet: TestFleet) -> None:
    comment = "#" * 900_000
    stub = await stub_of(fleet)
    small = document(fleet, strict())
    large = policy_pb2.PolicyDocument(text=small.text + comment, files=small.files)
    answer = await stub.ApplyPolicy(policy_pb2.ApplyPolicyRequest(document=large))
    assert answer.policy.version == 2
    assert Controller(fleet.config).policies.current.document.text.endswith(comment)
    for reason in ("POLICY_TOO_LARGE", "REQUEST_TOO_LARGE"):
        large.text += "#" * 90_000 if reason == "POLICY_TOO_LARGE" else "#" * 30_000
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ApplyPolicy(policy_pb2.ApplyPolicyRequest(document=large))
        assert reason_of(status_of(refused.value)) == reason


async def test_a_policy_that_is_bad_in_one_field_is_refused_as_a_whole(fleet: TestFleet) -> None:
    code, reason, message = await refusal(fleet, PolicyText(version=2, lease_s=700, failures={"signature": "report"}))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "POLICY_INVALID")
    assert message.startswith("failures.signature = 'report'")
    assert fleet.controller.policies.current.version == 1
    assert len(await audited(fleet, "policy.apply")) == 1


async def test_a_policy_that_cannot_be_kept_is_not_in_force(fleet: TestFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jarvis_controller.policy_keeper.write_private", full)
    code, reason, _ = await refusal(fleet, PolicyText(version=2))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "POLICY_NOT_KEPT")
    assert fleet.controller.policies.current.version == 1
    assert len(await audited(fleet, "policy.apply")) == 1


async def test_what_is_kept_is_private_and_damage_to_it_is_named(fleet: TestFleet) -> None:
    await apply(fleet, strict())
    kept = fleet.directory / "policy.applied"
    assert kept.stat().st_mode & 0o077 == 0
    kept.write_bytes(b"\xff" + kept.read_bytes())
    with pytest.raises(ConfigError, match=r"POLICY_INVALID: .*policy\.applied: it holds no policy"):
        Controller(fleet.config)


@pytest.mark.parametrize(
    ("vendors", "reason"),
    [
        ({"manufacturers": ["id:49465800"]}, "EK_VENDOR_NOT_ACCEPTED"),
        ({"models": ["hardware"]}, "EK_MODEL_NOT_ACCEPTED"),
        ({"ek_sha256": ["ab" * 32]}, "EK_NOT_ALLOWED"),
    ],
)
async def test_a_tpm_that_the_policy_does_not_accept_cannot_enrol(fleet: TestFleet, vendors: Any, reason: str) -> None:
    await apply(fleet, PolicyText(version=2, vendors=vendors))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await fleet.add_agent()
    assert (refused.value.code(), reason_of(status_of(refused.value))) == (grpc.StatusCode.PERMISSION_DENIED, reason)
    assert [entry["reason"] for entry in await audited(fleet, "enroll.refused")] == [reason]


async def test_a_tpm_that_is_named_by_its_key_can_enrol(fleet: TestFleet) -> None:
    tpm = SoftwareTpm()
    key = hashlib.sha256(parse_public(tpm.ek_public).spki_der).hexdigest()
    vendors = {"ek_sha256": [key], "manufacturers": ["id:00001014"], "models": ["software"]}
    await apply(fleet, PolicyText(version=2, vendors=vendors))
    await fleet.add_agent(tpm=tpm)


async def test_levels_go_by_label_and_a_boot_that_is_not_as_recorded_is_out(fleet: TestFleet) -> None:
    dmz, lab = await booted(fleet, OTHER, labels={"site": "dmz"}), await booted(fleet, OTHER)
    good = await booted(fleet, GOOD, labels={"site": "dmz"})
    rule = {"selector": "site=dmz", "level": "L2", "references": ["good.json"]}
    await apply(fleet, PolicyText(version=2, boot_pcrs=PCRS, rules=[rule]))
    await fleet.wait_for_state(dmz, "QUARANTINED")

    async def levels() -> bool:
        return [(await fleet.agent_row(agent)).assurance for agent in (good, lab)] == ["L2", "L1"]

    await eventually(levels, "the good one is of level L2, the one without demands of L1")


async def test_a_failure_that_is_only_reported_leaves_the_lease_and_is_told_once(fleet: TestFleet) -> None:
    agent = await booted(fleet, OTHER)
    await apply(fleet, strict(failures={"boot-reference": "report"}))

    async def told() -> bool:
        return bool(await events_of(fleet, event_pb2.EVENT_TYPE_ATTESTATION_REPORTED))

    await eventually(told, "the failure is told")
    for _ in range(3):
        outcome = await fleet.controller.attester.attest(agent.agent_id)
        assert outcome.status.code == 0
    reported = {check.name: (check.passed, check.reported) for check in outcome.checks}
    assert reported["boot-reference"] == (False, True)
    assert reported["signature"] == (True, False)
    row = await fleet.agent_row(agent)
    assert (row.state, row.assurance) == (fleet_pb2.AGENT_STATE_VERIFIED, "L1")
    assert row.reason.startswith("BOOT_REFERENCE_MISMATCH: PCR 4")
    (event,) = await events_of(fleet, event_pb2.EVENT_TYPE_ATTESTATION_REPORTED)
    assert (event.agent_id, event.detail["reason"]) == (agent.agent_id, row.reason)
    entries = [entry for entry in await audited(fleet, "agent.state") if entry["reason"] == row.reason]
    assert [entry["verdict"] for entry in entries] == ["passed"]
    case = await fleet.controller.store.attestation_case(bytes.fromhex(entries[0]["case_sha256"]))
    assert case is not None
    assert replay(case.attestation_case, case.boot_log, case_sha256=bytes.fromhex(entries[0]["case_sha256"])).same
    await apply(fleet, strict(version=3))
    await fleet.wait_for_state(agent, "QUARANTINED")


async def test_a_simulation_says_what_would_become_of_each_agent_and_changes_nothing(fleet: TestFleet) -> None:
    good, bad = await booted(fleet, GOOD), await booted(fleet, OTHER, labels={"site": "lab"})
    out = await booted(fleet, OTHER)
    out.tpm.measure(b"\x13" * 32)
    await fleet.controller.attester.attest(out.agent_id)
    fresh = FakeAgent(release=fleet.release, vendor=fleet.vendor)
    await fresh.join(await fleet.join_file())  # never listens: no evidence of it is kept
    calls = {agent.agent_id: agent.calls["Attest"] for agent in (good, bad, out)}
    agents, summary = await simulate(fleet, strict())
    said = {
        agent_id: (agent.before, agent.after, agent.assurance_before, agent.assurance_after, agent.loses_trust)
        for agent_id, agent in agents.items()
    }
    assert said == {
        good.agent_id: (PASSED, PASSED, "L1", "L2", False),
        bad.agent_id: (PASSED, QUARANTINED, "L1", "", True),
        out.agent_id: (QUARANTINED, QUARANTINED, "", "", False),
        fresh.agent_id: (NO_EVIDENCE, NO_EVIDENCE, "", "", False),
    }
    (why,) = [check for check in agents[bad.agent_id].failed if check.reason != "NOT_EVALUATED"]
    assert (why.reason, why.pcr, why.reference) == ("BOOT_REFERENCE_MISMATCH", 4, "good version 1")
    assert (summary.agents, summary.changed, summary.losing_trust, summary.undecided) == (4, 2, 1, 1)
    assert agents[good.agent_id].HasField("evidence_time")
    assert {agent.agent_id: agent.calls["Attest"] for agent in (good, bad, out)} == calls
    assert fleet.controller.policies.current.version == 1
    (entry,) = await audited(fleet, "policy.simulate")
    assert (entry["version"], entry["agents"]) == (2, 4)
    some, _ = await simulate(
        fleet, strict(failures={"boot-reference": "report"}), fleet_pb2.AgentSelector(label_selector="site=lab")
    )
    assert {agent_id: (agent.after, agent.loses_trust) for agent_id, agent in some.items()} == {bad.agent_id: (REPORTED, False)}


async def test_what_was_simulated_is_what_happens(fleet: TestFleet) -> None:
    agents = [await booted(fleet, log) for log in (GOOD, OTHER)]
    simulated, _ = await simulate(fleet, strict())
    await apply(fleet, strict())
    for agent in agents:
        await fleet.wait_for_state(agent, "QUARANTINED" if simulated[agent.agent_id].loses_trust else "VERIFIED")
    again, summary = await simulate(fleet, strict())
    assert summary.changed == 0
    assert {agent_id: agent.after for agent_id, agent in again.items()} == {
        agent_id: agent.after for agent_id, agent in simulated.items()
    }


async def test_what_the_evidence_does_not_speak_of_is_undecided(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        agent = await fleet.add_agent()
        text = PolicyText(version=2).toml(ROOTS).replace("[attestation]", "[attestation]\npcr = 13")
        stub = await stub_of(fleet)
        files = document(fleet, PolicyText()).files
        request = policy_pb2.SimulatePolicyRequest(document=policy_pb2.PolicyDocument(text=text, files=files))
        items = [item async for item in stub.SimulatePolicy(request)]
        assert (items[0].agent.after, items[0].agent.message) == (UNDECIDED, "the evidence that is kept does not quote PCRs [13]")
        assert items[0].agent.agent.agent_id == agent.agent_id
        assert items[1].summary.undecided == 1


async def test_a_vendor_that_is_no_longer_accepted_shows_in_a_simulation(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    by_name, _ = await simulate(fleet, PolicyText(version=2, vendors={"manufacturers": ["id:49465800"]}))
    assert reason_of(by_name[agent.agent_id].enrollment) == "EK_VENDOR_NOT_ACCEPTED"
    assert by_name[agent.agent_id].loses_trust
    (fleet.directory / "other.pem").write_bytes(Vendor("Another vendor").root_pem)
    by_root, summary = await simulate(fleet, PolicyText(version=2, roots=["other.pem"]))
    assert reason_of(by_root[agent.agent_id].enrollment) == "EK_CERTIFICATE_UNTRUSTED"
    assert summary.losing_trust == 1


async def ctl(fleet: TestFleet, directory: Path, *arguments: str) -> Result:
    config = directory / "jarvisctl.toml"
    if not config.exists():
        ada = Identity(fleet=fleet.config.fleet, role=Role.ADMIN, name="ada")
        write_config(directory, fleet.ca, f"127.0.0.1:{fleet.controller.operator_port}", identity=ada)
        config.write_text(config.read_text().replace("test.example", fleet.config.fleet))
    return await run_ctl(*arguments, config=config)


async def test_jarvisctl_simulates_applies_and_shows_a_policy(fleet: TestFleet, tmp_path: Path) -> None:
    good, bad = await booted(fleet, GOOD), await booted(fleet, OTHER)
    path = fleet.directory / "next.toml"
    path.write_text(strict().toml(ROOTS))
    tried = await ctl(fleet, tmp_path, "attest", "--simulate", str(path))
    assert tried.code == 4, tried.err
    assert "of 2 agents 2 would change, 1 would lose trust, 0 cannot be told" in tried.out
    (line,) = [line for line in tried.out.splitlines() if line.startswith(bad.agent_id)]
    assert "passed L1" in line
    assert "BOOT_REFERENCE_MISMATCH PCR 4, event " in line
    only_good = await ctl(fleet, tmp_path, "--output", "json", "attest", "--simulate", str(path), "--agent", good.agent_id)
    assert only_good.code == 0
    assert only_good.objects[0]["agent"]["after"] == "passed"
    assert only_good.objects[0]["agent"]["assurance_after"] == "L2"
    assert only_good.objects[1]["summary"]["losing_trust"] == 0
    done = await ctl(fleet, tmp_path, "policy", "apply", str(path))
    assert (done.code, done.out) == (0, "version 2 of policy test is in force\n")
    shown = await ctl(fleet, tmp_path, "--output", "json", "policy", "show")
    assert shown.objects[0]["text"] == path.read_text()
    assert shown.objects[0]["files"].keys() == {"ek-roots/01-vendor.pem", "good.json", "good.json.sig"}
    text = await ctl(fleet, tmp_path, "policy", "show")
    assert text.out.endswith(path.read_text())
    path.write_text(dataclasses.replace(strict(), lease_s=99).toml(ROOTS))
    refused = await ctl(fleet, tmp_path, "policy", "apply", str(path))
    assert refused.code != 0
    assert "[POLICY_VERSION_OLD]" in refused.err
    missing = await ctl(fleet, tmp_path, "policy", "apply", str(tmp_path / "nowhere.toml"))
    assert missing.code == 2
    assert "nowhere.toml: No such file" in missing.err
