# SPDX-License-Identifier: Apache-2.0
"""Attestation and commands between a real controller and agents over mTLS: who is trusted, when, and what follows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import code_pb2
from jarvis.capture.v1 import capture_pb2, fleet_pb2, trust_pb2
from jarvis_controller.agent_record import Carrier
from jarvis_controller.checks import CHECKS
from jarvis_controller.rpc_status import status_of
from jarvis_controller.server import Controller
from jarvis_controller.verifier import NOT_EVALUATED
from jarvis_trust.audit import verify_chain
from jarvis_trust.identities import Role
from jarvis_trust.status import reason_of

from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import FakeAgent
from tests.unit.controller.fleet import TestFleet, eventually, running_fleet

VERIFIED = fleet_pb2.AGENT_STATE_VERIFIED
QUARANTINED = fleet_pb2.AGENT_STATE_QUARANTINED
STALE = fleet_pb2.AGENT_STATE_STALE


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey, carrier: Carrier) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key, carrier=carrier) as made:
        yield made


def ids(*agents: FakeAgent) -> fleet_pb2.AgentSelector:
    return fleet_pb2.AgentSelector(agent_ids=[agent.agent_id for agent in agents])


async def outcomes(stream: Any) -> dict[str, tuple[int, str, fleet_pb2.CaptureOutcome]]:
    found = {}
    async for outcome in stream:
        found[outcome.agent_id] = (outcome.status.code, reason_of(outcome.status), outcome)
    return found


async def attest(fleet: TestFleet, agent: FakeAgent) -> fleet_pb2.AttestAgentsResponse:
    stub = await fleet.stub(Role.OPERATOR)
    answers = [answer async for answer in stub.AttestAgents(fleet_pb2.AttestAgentsRequest(selector=ids(agent)))]
    assert len(answers) == 1
    only: fleet_pb2.AttestAgentsResponse = answers[0]
    return only


def start(agent: FakeAgent | None = None, **fields: Any) -> fleet_pb2.StartCapturesRequest:
    spec = capture_pb2.CaptureSpec(interfaces=["eth0"])
    selector = ids(agent) if agent is not None else fleet_pb2.AgentSelector()
    return fleet_pb2.StartCapturesRequest(**{"selector": selector, "spec": spec, **fields})


async def test_an_agent_is_attested_before_its_first_command_and_shown_with_its_evidence(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    row = await fleet.agent_row(agent)
    assert (row.state, row.assurance, row.channel_bound) == (VERIFIED, "L1", fleet.carrier is Carrier.TUNNEL)
    assert row.firmware_sha256 == agent.release.sha256
    assert row.firmware_version == "1.0.0"
    assert agent.lease is not None
    assert agent.lease.firmware_sha256 == agent.release.sha256
    assert agent.lease.duration_ns == 600 * 10**9
    assert row.lease_expire_time.ToNanoseconds() - row.verify_time.ToNanoseconds() == 600 * 10**9


def states_of(entries: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [detail["to"] for _, detail in entries]


async def test_an_agent_that_listens_a_moment_after_it_enrolled_is_never_stale(fleet: TestFleet) -> None:
    agent = FakeAgent(release=fleet.release, vendor=fleet.vendor)
    await agent.join(await fleet.join_file())
    await asyncio.sleep(1)
    await agent.start()
    fleet.stack.push_async_callback(agent.stop)
    await fleet.wait_for_state(agent, "VERIFIED")
    assert states_of(await audit_entries(fleet, "agent.state")) == ["VERIFIED"]


async def test_an_agent_that_enrolled_and_never_listens_is_stale_after_some_seconds(fleet: TestFleet) -> None:
    agent = FakeAgent(release=fleet.release, vendor=fleet.vendor)
    began = asyncio.get_running_loop().time()
    await agent.join(await fleet.join_file())
    await fleet.wait_for_state(agent, "STALE")
    assert asyncio.get_running_loop().time() - began > 4


async def test_attesting_on_demand_gives_every_check(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    answer = await attest(fleet, agent)
    assert answer.status.code == code_pb2.OK
    assert [check.name for check in answer.checks] == [name for name, _ in CHECKS]
    assert all(check.passed for check in answer.checks)
    assert answer.agent.state == VERIFIED


async def test_a_flipped_byte_is_measured_and_quarantines_with_its_digest(fleet: TestFleet) -> None:
    good, bad = await fleet.add_agent(labels={"role": "web"}), await fleet.add_agent(labels={"role": "web"})
    flipped = hashlib.sha256(b"one byte flipped").digest()
    await bad.stop()
    bad.tpm.restart_process()
    bad.tpm.measure(flipped)  # what the loader measured; the agent itself says that all is well
    await restart_without_measuring(bad)
    answer = await attest(fleet, bad)
    assert answer.agent.state == QUARANTINED
    assert reason_of(answer.status) == "AGENT_QUARANTINED"
    assert flipped.hex() in answer.agent.reason
    assert "FIRMWARE_UNTRUSTED_MEASUREMENT" in answer.agent.reason
    before = bad.calls.copy()
    stub = await fleet.stub(Role.OPERATOR)
    found = await outcomes(stub.StartCaptures(start(selector=fleet_pb2.AgentSelector(label_selector="role=web"))))
    assert found[good.agent_id][0] == code_pb2.OK
    assert found[bad.agent_id][:2] == (code_pb2.FAILED_PRECONDITION, "AGENT_QUARANTINED")
    assert bad.calls == before, "a quarantined agent was spoken to"


async def restart_without_measuring(agent: FakeAgent) -> None:
    """Serves again under the session that the test has already measured."""
    session, events, value = agent.tpm.session_id, list(agent.tpm.events), agent.tpm.pcr_value
    await agent.start()
    agent.tpm.session_id, agent.tpm.events, agent.tpm.pcr_value = session, events, value


async def test_a_quarantine_after_a_bad_measurement_ends_only_with_a_reboot(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.tpm.measure(hashlib.sha256(b"evil").digest())
    assert (await attest(fleet, agent)).agent.state == QUARANTINED
    stub = await fleet.stub(Role.ADMIN)
    released = await stub.ReleaseAgent(fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id[:8], reason="looked at it"))
    assert released.agent.state == STALE
    await fleet.wait_for_state(agent, "QUARANTINED")
    await agent.stop()
    agent.tpm.reset()
    await agent.start()
    await stub.ReleaseAgent(fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id, reason="reinstalled"))
    await fleet.wait_for_state(agent, "VERIFIED")


async def test_a_replayed_answer_quarantines(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    recorded: list[trust_pb2.Evidence] = []

    async def replay(evidence: trust_pb2.Evidence) -> trust_pb2.Evidence:
        recorded.append(evidence)
        return recorded[0]

    agent.change_evidence = replay
    assert (await attest(fleet, agent)).agent.state == VERIFIED
    answer = await attest(fleet, agent)
    assert answer.agent.state == QUARANTINED
    assert {check.reason for check in answer.checks if not check.passed} - {NOT_EVALUATED} == {
        "NONCE_MISMATCH",
        "CLOCK_BACKWARDS",
    }


async def test_an_answer_to_another_challenge_gets_one_fresh_challenge(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    wrong = [True]

    async def once_wrong(evidence: trust_pb2.Evidence) -> trust_pb2.Evidence:
        if wrong:
            wrong.pop()
            extra = agent.tpm.attest(hashlib.sha256(b"another challenge").digest())
            evidence.attest, evidence.signature = extra, agent.tpm.sign(extra)
        return evidence

    agent.change_evidence = once_wrong
    before = agent.calls["Attest"]
    assert (await attest(fleet, agent)).agent.state == VERIFIED
    assert agent.calls["Attest"] == before + 2


async def test_an_agent_that_never_answers_the_challenge_put_to_it_is_quarantined(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()

    async def always_wrong(evidence: trust_pb2.Evidence) -> trust_pb2.Evidence:
        extra = agent.tpm.attest(hashlib.sha256(b"another challenge").digest())
        evidence.attest, evidence.signature = extra, agent.tpm.sign(extra)
        return evidence

    agent.change_evidence = always_wrong
    answer = await attest(fleet, agent)
    assert answer.agent.state == QUARANTINED
    assert "NONCE_MISMATCH" in answer.agent.reason


async def test_an_unreachable_agent_is_stale_gets_no_command_and_comes_back(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    await agent.stop()
    assert (await attest(fleet, agent)).agent.state == STALE
    stub = await fleet.stub(Role.OPERATOR)
    found = await outcomes(stub.StartCaptures(start(agent)))
    assert found[agent.agent_id][:2] == (code_pb2.UNAVAILABLE, "ATTESTATION_STALE")
    await agent.restart()
    found = await outcomes(stub.StartCaptures(start(agent)))
    assert found[agent.agent_id][0] == code_pb2.OK
    assert (await fleet.agent_row(agent)).state == VERIFIED


async def test_a_silent_agent_is_stale_after_its_deadline_and_does_not_hold_up_the_others(
    tmp_path: Path, release_key: ReleaseKey, carrier: Carrier
) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier, agent_timeout_s=0.5) as fleet:
        silent, other = await fleet.add_agent(), await fleet.add_agent()

        async def never(_evidence: trust_pb2.Evidence) -> trust_pb2.Evidence:
            await asyncio.sleep(60)
            raise AssertionError

        silent.change_evidence = never
        stub = await fleet.stub(Role.OPERATOR)
        order = [answer.agent.agent_id async for answer in stub.AttestAgents(fleet_pb2.AttestAgentsRequest())]
        assert order == [other.agent_id, silent.agent_id]
        assert (await fleet.agent_row(silent)).state == STALE


async def test_every_agent_is_attested_again_at_the_interval(tmp_path: Path, release_key: ReleaseKey, carrier: Carrier) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier, policy=PolicyText(interval_s=0.5, lease_s=5.0)) as fleet:
        agent = await fleet.add_agent()
        first = agent.lease
        assert first is not None

        async def renewed() -> bool:
            return agent.lease is not None and agent.lease.sequence >= first.sequence + 2

        await eventually(renewed, "two more leases came")


async def test_an_agent_that_restarted_is_attested_again_when_a_command_needs_it(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    before = agent.calls["Attest"]
    await agent.restart()
    stub = await fleet.stub(Role.OPERATOR)
    found = await outcomes(stub.StartCaptures(start(agent)))
    assert found[agent.agent_id][0] == code_pb2.OK
    assert agent.calls["Attest"] == before + 1


async def test_a_controller_that_restarted_attests_before_it_commands(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        agent = await fleet.add_agent()
        sequence = agent.lease.sequence if agent.lease else 0
        second = Controller(fleet.config)
        await second.store.open()
        assert second.leases.get(agent.agent_id) is None
        _, lease = await second.attester.ensure_lease(agent.agent_id)
        assert lease.sequence == sequence + 1
        await second.client.close()
        await second.store.close()


async def test_commands_are_sent_on_behalf_of_the_operator(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    await outcomes(stub.StartCaptures(start(agent)))
    assert agent.principals == ["spiffe://lab.example/operator/operator/ada"]


async def test_a_repeated_request_starts_nothing_again(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    request = start(agent, request_id=str(uuid.uuid4()).upper())
    first = await outcomes(stub.StartCaptures(request))
    again = await outcomes(stub.StartCaptures(request))
    assert agent.calls["StartCapture"] == 1
    assert first[agent.agent_id][2].capture.capture_id == again[agent.agent_id][2].capture.capture_id
    assert agent.request_ids == [request.request_id.lower()]


async def test_a_request_id_for_another_request_is_refused(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    request = start(agent, request_id=str(uuid.uuid4()))
    await outcomes(stub.StartCaptures(request))
    request.spec.filter = "tcp"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await outcomes(stub.StartCaptures(request))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request_id" in (refused.value.details() or "")


async def test_an_agents_own_refusal_reaches_the_operator_with_its_reason(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    found = await outcomes(stub.StartCaptures(start(agent, spec=capture_pb2.CaptureSpec(interfaces=["nosuch0"]))))
    assert found[agent.agent_id][:2] == (code_pb2.INVALID_ARGUMENT, "INTERFACE_NOT_FOUND")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.interfaces"),
        ({"interfaces": ["eth0"], "files": ["a.pcap"]}, "spec.interfaces"),
        ({"interfaces": ["not an interface"]}, "spec.interfaces[0]"),
        ({"interfaces": ["eth0", "eth0"]}, "spec.interfaces[1]"),
        ({"interfaces": ["eth0"], "snaplen": 63}, "spec.snaplen"),
        ({"interfaces": ["eth0"], "exclusive": True}, "spec.exclusive"),
        ({"interfaces": ["eth0"], "buffer_size_mb": 8193}, "spec.buffer_size_mb"),
        ({"interfaces": ["eth0"], "max_flows": 4095}, "spec.max_flows"),
        ({"interfaces": ["eth0"], "tunnel": 4}, "spec.tunnel"),
        ({"interfaces": ["eth0"], "mirror_timestamps": True, "tunnel": 1}, "spec.mirror_timestamps"),
        ({"interfaces": ["eth0"], "busy_poll_us": 1001}, "spec.busy_poll_us"),
        ({"files": ["a.pcap"], "busy_poll_us": 10}, "spec.busy_poll_us"),
        ({"interfaces": ["eth0"], "sampling": 3}, "spec.sampling"),
        ({"interfaces": ["eth0"], "sampling": 1}, "spec.sampling_interval"),
        ({"interfaces": ["eth0"], "sampling": 1, "sampling_interval": 1_000_001}, "spec.sampling_interval"),
        ({"interfaces": ["eth0"], "sampling_interval": 10}, "spec.sampling_interval"),
        ({"interfaces": ["eth0"], "idle_timeout": {"seconds": -1}}, "spec.idle_timeout"),
    ],
)
async def test_a_bad_capture_is_refused_once_by_field_and_reaches_no_agent(
    fleet: TestFleet, spec: dict[str, Any], field: str
) -> None:
    stub = await fleet.stub(Role.OPERATOR)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await outcomes(stub.StartCaptures(start(spec=capture_pb2.CaptureSpec(**spec))))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith(field)


async def test_a_selector_that_matches_nobody_is_not_a_success(fleet: TestFleet) -> None:
    await fleet.add_agent(labels={"role": "web"})
    stub = await fleet.stub(Role.OPERATOR)
    for call in (
        stub.StartCaptures(start(selector=fleet_pb2.AgentSelector(label_selector="role=db"))),
        stub.AttestAgents(fleet_pb2.AttestAgentsRequest(selector=fleet_pb2.AgentSelector(agent_ids=["zzzz"]))),
        stub.WatchFlows(fleet_pb2.WatchFlowsRequest(selector=fleet_pb2.AgentSelector(label_selector="!role"))),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await outcomes(call)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert reason_of(status_of(refused.value)) == "AGENT_NOT_FOUND"


async def test_stop_and_status_go_to_every_selected_agent(fleet: TestFleet) -> None:
    agents = [await fleet.add_agent(), await fleet.add_agent()]
    stub = await fleet.stub(Role.OPERATOR)
    await outcomes(stub.StartCaptures(start()))
    running = await outcomes(stub.GetCaptureStatuses(fleet_pb2.GetCaptureStatusesRequest()))
    assert {found[2].capture.state for found in running.values()} == {capture_pb2.CAPTURE_STATE_RUNNING}
    stopped = await outcomes(stub.StopCaptures(fleet_pb2.StopCapturesRequest()))
    assert set(stopped) == {agent.agent_id for agent in agents}
    assert {found[2].capture.state for found in stopped.values()} == {capture_pb2.CAPTURE_STATE_STOPPED}


async def test_a_quarantine_by_hand_is_sticky_and_audited_with_who_and_why(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    answer = await stub.QuarantineAgent(fleet_pb2.QuarantineAgentRequest(agent_id=agent.agent_id[:6], reason="stolen"))
    assert answer.agent.state == QUARANTINED
    assert "stolen" in answer.agent.reason
    assert (await attest(fleet, agent)).agent.state == QUARANTINED
    entry = [event for event in await fleet.controller.store.audit_page(0, 1000) if event.action == "agent.state"][-1]
    assert entry.principal == "spiffe://lab.example/operator/operator/ada"
    assert "stolen" in json.loads(entry.detail)["reason"]


async def audit_entries(fleet: TestFleet, action: str) -> list[tuple[str, dict[str, Any]]]:
    events = await fleet.controller.store.audit_page(0, 1000)
    return [(event.principal, json.loads(event.detail)) for event in events if event.action == action]


def quarantine(agent: FakeAgent) -> fleet_pb2.QuarantineAgentRequest:
    return fleet_pb2.QuarantineAgentRequest(agent_id=agent.agent_id, reason="stolen")


async def test_a_quarantine_by_hand_ends_the_lease_on_the_agent_at_once(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    before = agent.lease
    assert before is not None
    await (await fleet.stub(Role.OPERATOR)).QuarantineAgent(quarantine(agent))
    assert agent.lease is not None
    assert (agent.lease.nonce, agent.lease.sequence, agent.lease.duration_ns) == (before.nonce, before.sequence + 1, 1)
    ((principal, detail),) = await audit_entries(fleet, "lease.end")
    assert principal == "spiffe://lab.example/operator/operator/ada"
    assert detail == {"delivered": True, "lease_sequence": before.sequence + 1, "message": ""}
    await (await fleet.stub()).ReleaseAgent(fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id, reason="found again"))
    await fleet.wait_for_state(agent, "VERIFIED")
    found = await outcomes((await fleet.stub()).StartCaptures(start(agent)))
    assert found[agent.agent_id][0] == code_pb2.OK


async def test_a_failed_attestation_ends_the_lease_that_the_agent_still_holds(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.tpm.measure(hashlib.sha256(b"evil").digest())
    assert (await attest(fleet, agent)).agent.state == QUARANTINED
    assert agent.lease is not None
    assert agent.lease.duration_ns == 1
    assert [(who, detail["delivered"]) for who, detail in await audit_entries(fleet, "lease.end")] == [("controller", True)]


async def test_an_agent_that_cannot_be_told_is_quarantined_all_the_same_and_the_audit_says_so(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    await agent.stop()
    answer = await (await fleet.stub(Role.OPERATOR)).QuarantineAgent(quarantine(agent))
    assert answer.agent.state == QUARANTINED
    ((_, detail),) = await audit_entries(fleet, "lease.end")
    assert detail["delivered"] is False
    assert ("UNAVAILABLE" if fleet.carrier is Carrier.DIRECT else "AGENT_NOT_CONNECTED") in detail["message"]


async def test_a_lease_whose_delivery_nobody_confirmed_is_ended_too(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    first = agent.lease
    agent.lose_answers = True
    assert (await attest(fleet, agent)).agent.state == STALE
    agent.lose_answers = False
    second = agent.lease
    assert second is not None
    assert second != first
    await (await fleet.stub(Role.OPERATOR)).QuarantineAgent(quarantine(agent))
    assert (agent.lease.nonce, agent.lease.duration_ns) == (second.nonce, 1)


async def test_an_agent_that_never_got_its_newest_lease_has_the_one_before_ended(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    first = agent.lease
    assert first is not None
    agent.refuse_leases = True
    assert (await attest(fleet, agent)).agent.state == STALE
    agent.refuse_leases = False
    await (await fleet.stub(Role.OPERATOR)).QuarantineAgent(quarantine(agent))
    assert agent.lease is not None
    assert (agent.lease.nonce, agent.lease.duration_ns) == (first.nonce, 1)


async def test_a_quarantine_that_meets_a_lease_on_its_way_ends_that_one(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.hold_leases = asyncio.Event()
    attesting = asyncio.ensure_future(attest(fleet, agent))
    await eventually(agent.holds_a_lease, "a lease is under way")
    ordering = asyncio.ensure_future((await fleet.stub(Role.OPERATOR)).QuarantineAgent(quarantine(agent)))
    await fleet.wait_for_state(agent, "QUARANTINED")
    agent.hold_leases.set()
    await asyncio.gather(attesting, ordering)
    assert agent.lease is not None
    assert agent.lease.duration_ns == 1


@pytest.mark.parametrize("reason", ["", "  ", "a\nb", "x" * 501])
async def test_a_quarantine_needs_a_printable_reason(fleet: TestFleet, reason: str) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.QuarantineAgent(fleet_pb2.QuarantineAgentRequest(agent_id=agent.agent_id, reason=reason))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_only_a_quarantined_agent_can_be_released(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.ADMIN)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ReleaseAgent(fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id, reason="none"))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_audit_chain_can_be_read_in_pages_and_verified_by_anybody(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    await outcomes(stub.StartCaptures(start(agent)))
    events, token = [], ""
    while True:
        page = await stub.ListAuditEvents(fleet_pb2.ListAuditEventsRequest(page_size=2, page_token=token))
        assert len(page.events) <= 2
        events += page.events
        token = page.next_page_token
        if not token:
            break
    head = verify_chain(events)
    assert head.sequence == len(events)
    # What `init` had issued comes before.
    actions = ["policy.apply", "enroll.token", "enroll.certificate", "agent.state", "capture.start"]
    assert [event.action for event in events if event.action != "certificate.issue"] == actions
    assert agent.lease is not None
    assert agent.lease.audit_head == events[agent.lease.audit_sequence - 1].hash
    detail = json.loads(events[-1].detail)
    assert (detail["code"], detail["request"]["spec"]["interfaces"]) == ("OK", ["eth0"])


async def test_agents_are_listed_in_pages(fleet: TestFleet) -> None:
    agents = [await fleet.add_agent() for _ in range(3)]
    stub = await fleet.stub(Role.VIEWER)
    first = await stub.ListAgents(fleet_pb2.ListAgentsRequest(page_size=2))
    second = await stub.ListAgents(fleet_pb2.ListAgentsRequest(page_size=2, page_token=first.next_page_token))
    listed = [agent.agent_id for agent in (*first.agents, *second.agents)]
    assert listed == sorted(agent.agent_id for agent in agents)
    assert second.next_page_token == ""


async def test_an_empty_fleet_is_an_empty_list(fleet: TestFleet) -> None:
    stub = await fleet.stub(Role.VIEWER)
    assert list((await stub.ListAgents(fleet_pb2.ListAgentsRequest())).agents) == []


async def test_metrics_come_once_from_each_or_follow(fleet: TestFleet) -> None:
    agents = [await fleet.add_agent(), await fleet.add_agent()]
    await agents[1].stop()
    stub = await fleet.stub(Role.VIEWER)
    once = {answer.agent_id: answer async for answer in stub.WatchMetrics(fleet_pb2.WatchMetricsRequest())}
    assert once[agents[0].agent_id].metrics.received == 42
    assert reason_of(once[agents[1].agent_id].status) == "ATTESTATION_STALE"
    seen: list[int] = []
    stream = stub.WatchMetrics(fleet_pb2.WatchMetricsRequest(selector=ids(agents[0]), follow=True))
    async for answer in stream:
        seen.append(answer.metrics.received)
        if len(seen) == 3:
            break
    stream.cancel()
    assert seen == [1, 2, 3]


async def test_live_flows_are_listed_per_agent(fleet: TestFleet) -> None:
    full, empty = await fleet.add_agent(), await fleet.add_agent()
    full.add_records(3)
    stub = await fleet.stub(Role.VIEWER)
    found = {answer.agent_id: answer async for answer in stub.ListFlows(fleet_pb2.FleetListFlowsRequest())}
    assert len(found[full.agent_id].batch.records) == 3
    assert found[empty.agent_id].HasField("batch")
    assert len(found[empty.agent_id].batch.records) == 0


async def test_interfaces_are_changed_by_a_signed_command_which_is_audited_and_given_once(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    await outcomes(stub.StartCaptures(start(agent)))
    selector = fleet_pb2.AgentSelector(agent_ids=[agent.agent_id])
    request = fleet_pb2.FleetUpdateInterfacesRequest(
        selector=selector, add=["eth1"], remove=["eth0"], request_id="123e4567-e89b-12d3-a456-426614174000"
    )
    for _ in range(2):
        answers = [answer async for answer in stub.UpdateInterfaces(request)]
        assert [row.name for row in answers[0].capture.interfaces] == ["eth1"]
    assert agent.calls["UpdateInterfaces"] == 1
    events = (await stub.ListAuditEvents(fleet_pb2.ListAuditEventsRequest(page_size=1000))).events
    (event,) = [event for event in events if event.action == "capture.interfaces"]
    assert (event.agent_id, event.request_id) == (agent.agent_id, request.request_id)
    assert '"add":["eth1"]' in event.detail
    assert '"remove":["eth0"]' in event.detail


@pytest.mark.parametrize(
    ("add", "remove", "field"),
    [
        ([], [], "add"),
        (["eth1", "eth1"], [], "add[1]"),
        ([], ["not an interface"], "remove[0]"),
        (["eth1"], ["eth1"], "remove"),
        ([f"eth{number}" for number in range(33)], [], "add"),
    ],
)
async def test_bad_changes_of_interfaces_are_refused_by_field(
    fleet: TestFleet, add: list[str], remove: list[str], field: str
) -> None:
    stub = await fleet.stub(Role.OPERATOR)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await outcomes(stub.UpdateInterfaces(fleet_pb2.FleetUpdateInterfacesRequest(add=add, remove=remove)))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith(f"{field}:")
