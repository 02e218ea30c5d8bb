# SPDX-License-Identifier: Apache-2.0
"""Releases at a real controller over mTLS, with agents that do with them what a test has told them to."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from jarvis.capture.v1 import capture_pb2, fleet_pb2, release_pb2
from jarvis.capture.v1.release_pb2_grpc import ReleaseServiceStub
from jarvis_controller import agent_update
from jarvis_controller.agent_record import Carrier
from jarvis_controller.rpc_status import status_of
from jarvis_trust.firmware import MANIFEST_FILE, SIGNATURE_FILE
from jarvis_trust.identities import Role
from jarvis_trust.revocations import Revocations
from jarvis_trust.status import field_violations, reason_of

from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller import updatable_agent as fates
from tests.unit.controller.fleet import TestFleet, eventually, running_fleet
from tests.unit.controller.releases import Release, make_release
from tests.unit.controller.software_tpm import LIBRARY
from tests.unit.controller.updatable_agent import UpdatableAgent

NEW_LIBRARY = b"the next library " * 10_000
"""Several parts."""


@pytest_asyncio.fixture
async def fleet(
    tmp_path: Path, release_key: ReleaseKey, carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TestFleet]:
    monkeypatch.setattr(agent_update, "_RETURN_S", 1.0)
    policy = PolicyText(floor=3, versions=["1.0.0", "2.0.0"])
    async with running_fleet(tmp_path, release_key, carrier=carrier, policy=policy) as made:
        yield made


@pytest.fixture
def release(release_key: ReleaseKey) -> Release:
    return new_release(release_key)


def new_release(key: ReleaseKey, **changes: Any) -> Release:
    fields = {"library": hashlib.sha256(NEW_LIBRARY).digest(), "version": "2.0.0", **changes}
    return make_release(key, **fields)


async def service(fleet: TestFleet, role: Role = Role.ADMIN) -> Any:
    return ReleaseServiceStub(await fleet.stack.enter_async_context(fleet.channel(role)))


async def add(fleet: TestFleet, release: Release, *, library: bytes = NEW_LIBRARY) -> release_pb2.Release:
    stub, digest = await service(fleet), hashlib.sha256(release.manifest).digest()
    answer = release_pb2.AddReleaseResponse()
    for name, data in ((MANIFEST_FILE, release.manifest), (SIGNATURE_FILE, release.signature), (LIBRARY, library)):
        part = release_pb2.AddReleaseRequest(manifest_sha256=digest, file_name=name, data=data, size=len(data))
        answer = await stub.AddRelease(part)
        assert answer.received == len(data)
    assert answer.HasField("release")
    return answer.release


async def agents(fleet: TestFleet, count: int, **options: Any) -> list[UpdatableAgent]:
    made = [await fleet.add_agent(kind=UpdatableAgent, **options) for _ in range(count)]
    return sorted(made, key=lambda agent: agent.agent_id)  # type: ignore[arg-type, return-value]


def order(release: Release, *agents: UpdatableAgent, **changes: Any) -> release_pb2.RollOutReleaseRequest:
    request = release_pb2.RollOutReleaseRequest(
        manifest_sha256=hashlib.sha256(release.manifest).digest(),
        selector=fleet_pb2.AgentSelector(agent_ids=[agent.agent_id for agent in agents]),
        **changes,
    )
    request.wait.SetInParent()
    request.trial.FromSeconds(5)
    return request


async def roll_out(fleet: TestFleet, request: release_pb2.RollOutReleaseRequest) -> list[release_pb2.RollOutReleaseResponse]:
    stub = await service(fleet, Role.OPERATOR)
    return [message async for message in stub.RollOutRelease(request)]


def results(events: list[release_pb2.RollOutReleaseResponse]) -> dict[str, tuple[str, str]]:
    """Agent -> its last result and reason."""
    found = [event.agent for event in events if event.HasField("agent")]
    name = release_pb2.RollOutResult.Name
    return {agent.agent_id: (name(agent.result).removeprefix("ROLL_OUT_RESULT_"), reason_of(agent.status)) for agent in found}


async def refusal(call: Any) -> str:
    """Reason of a call, or of a stream, that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (everything(call) if hasattr(call, "__aiter__") else call)
    return reason_of(status_of(refused.value))


async def everything(stream: Any) -> list[Any]:
    return [message async for message in stream]


async def audited(fleet: TestFleet, action: str) -> list[tuple[str, dict[str, Any]]]:
    page = await fleet.controller.store.audit_page(0, 1000)
    return [(entry.principal, json.loads(entry.detail)) for entry in page if entry.action == action]


async def test_agents_are_updated_and_what_they_captured_goes_on_for_whom_it_was_started(
    fleet: TestFleet, release: Release
) -> None:
    one, two = await agents(fleet, 2)
    operator = await fleet.stub(Role.OPERATOR)
    spec = capture_pb2.CaptureSpec(interfaces=["eth0"], filter="tcp")
    start = fleet_pb2.StartCapturesRequest(selector=fleet_pb2.AgentSelector(agent_ids=[one.agent_id]), spec=spec)
    _ = [outcome async for outcome in operator.StartCaptures(start)]
    starter = one.principals[-1]
    update = fleet_pb2.FleetUpdateInterfacesRequest(selector=start.selector, add=["eth1"])
    _ = [outcome async for outcome in operator.UpdateInterfaces(update)]
    added = await add(fleet, release)
    assert (added.version, added.size) == ("2.0.0", len(NEW_LIBRARY) + len(release.manifest) + len(release.signature))
    request = order(release, one, two)
    stub = ReleaseServiceStub(await fleet.stack.enter_async_context(fleet.channel(Role.OPERATOR, name="otto")))
    events = [message async for message in stub.RollOutRelease(request)]
    assert set(results(events).values()) == {("UPDATED", "")}
    assert one.staged[LIBRARY] == NEW_LIBRARY
    assert list(one.capture.spec.interfaces) == ["eth0", "eth1"], "those that it had at the end"
    assert one.capture.spec.filter == "tcp"
    assert two.capture.state == capture_pb2.CAPTURE_STATE_UNSPECIFIED
    (restarted,) = [event.agent for event in events if event.agent.agent_id == one.agent_id]
    assert (restarted.capture.code, restarted.capture_gap.ToNanoseconds() > 0) == (0, True)
    ((principal, detail),) = await audited(fleet, "capture.restart")
    assert (principal, detail["ordered_by"]) == (starter, "spiffe://lab.example/operator/operator/otto")
    assert one.principals[-1] == starter
    again = await roll_out(fleet, order(release, one, two))
    assert set(results(again).values()) == {("CURRENT", "")}


@pytest.mark.parametrize("interface", ["", "eth9"])
async def test_what_an_agent_says_that_it_captured_is_not_commanded_unless_somebody_did(
    fleet: TestFleet, release: Release, interface: str
) -> None:
    """The core runs what the controller signs: a lying agent must not have it sign what nobody asked for."""
    (one,) = await agents(fleet, 1)
    if interface:
        operator = await fleet.stub(Role.OPERATOR)
        spec = capture_pb2.CaptureSpec(interfaces=["eth0"], filter="tcp")
        start = fleet_pb2.StartCapturesRequest(selector=fleet_pb2.AgentSelector(agent_ids=[one.agent_id]), spec=spec)
        _ = [outcome async for outcome in operator.StartCaptures(start)]
        one.capture.interfaces.add(name=interface)
    one.capture.state = capture_pb2.CAPTURE_STATE_RUNNING
    one.capture.spec.CopyFrom(capture_pb2.CaptureSpec(interfaces=["eth9"]))
    await add(fleet, release)
    events = await roll_out(fleet, order(release, one))
    assert results(events) == {one.agent_id: ("UPDATED", "")}
    (outcome,) = [event.agent for event in events if event.HasField("agent")]
    assert reason_of(outcome.capture) == "CAPTURE_NOT_COMMANDED"
    assert one.capture.state == capture_pb2.CAPTURE_STATE_UNSPECIFIED
    assert "CAPTURE_NOT_COMMANDED" in (await audited(fleet, "capture.restart"))[0][1]["message"]


async def test_a_capture_is_started_again_as_it_was_commanded(fleet: TestFleet, release: Release) -> None:
    (one,) = await agents(fleet, 1)
    operator = await fleet.stub(Role.OPERATOR)
    spec = capture_pb2.CaptureSpec(interfaces=["eth0", "eth1"], filter="tcp")
    start = fleet_pb2.StartCapturesRequest(selector=fleet_pb2.AgentSelector(agent_ids=[one.agent_id]), spec=spec)
    _ = [outcome async for outcome in operator.StartCaptures(start)]
    one.capture.spec.filter = ""
    one.capture.interfaces.add(name="eth1")
    await add(fleet, release)
    await roll_out(fleet, order(release, one))
    assert (list(one.capture.spec.interfaces), one.capture.spec.filter) == (["eth1"], "tcp")


async def test_an_agent_that_goes_back_stays_verified_and_its_reason_is_told(fleet: TestFleet, release: Release) -> None:
    one, two = await agents(fleet, 2, fate=fates.GOES_BACK)
    await add(fleet, release)
    events = await roll_out(fleet, order(release, one, two))
    assert results(events) == {one.agent_id: ("ROLLED_BACK", "RELEASE_TRIAL_CRASHED")}
    assert (events[-1].ended.stopped, events[-1].ended.untouched) == (True, 1)
    row = await fleet.agent_row(one)
    assert (row.state, row.firmware_version) == (fleet_pb2.AGENT_STATE_VERIFIED, "1.0.0")


async def test_an_agent_that_refuses_stays_verified_with_what_it_has(fleet: TestFleet, release: Release) -> None:
    (one,) = await agents(fleet, 1, fate=fates.REFUSES)
    await add(fleet, release)
    assert results(await roll_out(fleet, order(release, one))) == {one.agent_id: ("ROLLED_BACK", "RELEASE_TRIAL_FAILED")}
    outcome = await fleet.controller.attester.attest(one.agent_id)
    assert (outcome.agent.state, outcome.status.code) == ("VERIFIED", 0), "what it tried is known"


async def test_an_agent_that_comes_back_as_something_else_is_quarantined_and_stops_the_roll_out(
    fleet: TestFleet, release: Release
) -> None:
    one, two = await agents(fleet, 2, fate=fates.TURNS_BAD)
    await add(fleet, release)
    events = await roll_out(fleet, order(release, one, two))
    assert results(events) == {one.agent_id: ("FAILED", "AGENT_QUARANTINED")}
    assert events[-1].ended.stopped
    assert (await fleet.agent_row(two)).state == fleet_pb2.AGENT_STATE_VERIFIED


async def test_an_agent_whose_new_release_is_revoked_under_way_is_quarantined_and_stops_the_roll_out(
    fleet: TestFleet, release: Release
) -> None:
    hold = asyncio.Event()
    one, two = await agents(fleet, 2, hold=hold)
    await add(fleet, release)
    rolling = asyncio.ensure_future(roll_out(fleet, order(release, one, two)))

    async def activated() -> bool:
        return one.activations == 1

    await eventually(activated, "the first agent activates")
    fleet.controller.releases.revocations = Revocations(
        version=1, created="2026-11-22T10:00:00Z", expires="2100-01-01T00:00:00Z", digests={release.sha256.hex(): "CVE-2026-0001"}
    )
    hold.set()
    assert results(await rolling) == {one.agent_id: ("FAILED", "AGENT_QUARANTINED")}
    assert "FIRMWARE_REVOKED" in (await fleet.agent_row(one)).reason
    stub = await service(fleet)
    (listed,) = (await stub.ListReleases(release_pb2.ListReleasesRequest())).releases
    assert listed.refused_reason == "FIRMWARE_REVOKED"
    assert await refusal(stub.RollOutRelease(order(release, two))) == "FIRMWARE_REVOKED"


async def test_a_release_that_is_revoked_under_way_reaches_no_further_agent(fleet: TestFleet, release: Release) -> None:
    hold = asyncio.Event()
    one, two = await agents(fleet, 2, hold=hold)
    await add(fleet, release)
    rolling = asyncio.ensure_future(roll_out(fleet, order(release, one, two, max_failures=5, concurrency=1)))

    async def activated() -> bool:
        return one.activations == 1

    await eventually(activated, "the first agent activates")
    fleet.controller.releases.revocations = Revocations(
        version=1, created="2026-11-22T10:00:00Z", expires="2100-01-01T00:00:00Z", digests={release.sha256.hex(): "CVE-2026-0001"}
    )
    hold.set()
    assert results(await rolling)[two.agent_id] == ("ROLLED_BACK", "FIRMWARE_REVOKED")
    assert (two.staged, two.activations) == ({}, 0)
    assert (await fleet.agent_row(two)).state == fleet_pb2.AGENT_STATE_VERIFIED


async def test_an_agent_that_does_not_come_back_is_a_failure(fleet: TestFleet, release: Release) -> None:
    (one,) = await agents(fleet, 1, fate=fates.VANISHES)
    await add(fleet, release)
    ((result, _),) = results(await roll_out(fleet, order(release, one))).values()
    assert result == "FAILED"
    ((_, detail),) = await audited(fleet, "release.update")
    assert detail["result"] == "FAILED"


async def test_agents_that_cannot_or_need_not_are_left_alone(fleet: TestFleet, release: Release) -> None:
    replaying, other, away, good = await agents(fleet, 4)
    replaying.capture = capture_pb2.CaptureStatus(
        state=capture_pb2.CAPTURE_STATE_RUNNING, spec=capture_pb2.CaptureSpec(files=["a.pcap"])
    )
    other.refuse_file = (SIGNATURE_FILE, "FIRMWARE_WRONG_ARCHITECTURE")
    await away.stop()
    await add(fleet, release)
    events = await roll_out(fleet, order(release, replaying, other, away, good))
    assert results(events)[replaying.agent_id] == ("SKIPPED", "REPLAY_RUNNING")
    assert results(events)[other.agent_id] == ("SKIPPED", "FIRMWARE_WRONG_ARCHITECTURE")
    assert results(events)[away.agent_id][0] == "NOT_REACHED"
    assert results(events)[good.agent_id] == ("UPDATED", "")
    assert [agent.activations for agent in (replaying, other, away)] == [0, 0, 0]
    assert not events[-1].ended.stopped


async def test_a_file_whose_answer_was_lost_is_begun_anew(fleet: TestFleet, release: Release) -> None:
    (one,) = await agents(fleet, 1, lose_parts=1)
    await add(fleet, release)
    assert set(results(await roll_out(fleet, order(release, one))).values()) == {("UPDATED", "")}


async def test_one_roll_out_runs_at_a_time_and_a_cancelled_one_begins_no_further_agent(
    fleet: TestFleet, release: Release
) -> None:
    hold = asyncio.Event()
    one, two = await agents(fleet, 2, hold=hold)
    await add(fleet, release)
    stub = await service(fleet, Role.OPERATOR)
    call = stub.RollOutRelease(
        order(release, one, two, stages=[release_pb2.RollOutStage(agents=1), release_pb2.RollOutStage(percent=100)])
    )
    assert (await call.read()).started.agents == 2

    async def activated() -> bool:
        return one.activations == 1

    await eventually(activated, "the first agent activates")
    assert await refusal(stub.RollOutRelease(order(release, two))) == "ROLL_OUT_RUNNING"
    admin, digest = await service(fleet), hashlib.sha256(release.manifest).digest()
    assert await refusal(admin.RemoveRelease(release_pb2.RemoveReleaseRequest(manifest_sha256=digest))) == "ROLL_OUT_RUNNING"
    call.cancel()
    hold.set()

    async def ended() -> bool:
        return bool(await audited(fleet, "release.roll-out-end"))

    await eventually(ended, "the agent under way is done")
    ((_, detail),) = await audited(fleet, "release.roll-out-end")
    assert (detail["updated"], detail["untouched"], two.activations) == (1, 1, 0)
    assert set(results(await roll_out(fleet, order(release, one, two))).values()) == {("CURRENT", ""), ("UPDATED", "")}


async def test_a_removed_release_stays_known_for_the_hosts_that_had_it(fleet: TestFleet, release: Release) -> None:
    (one,) = await agents(fleet, 1, fate=fates.GOES_BACK)
    await add(fleet, release)
    await roll_out(fleet, order(release, one))
    stub, digest = await service(fleet), hashlib.sha256(release.manifest).digest()
    await stub.RemoveRelease(release_pb2.RemoveReleaseRequest(manifest_sha256=digest))
    assert list((await stub.ListReleases(release_pb2.ListReleasesRequest())).releases) == []
    assert await refusal(stub.RemoveRelease(release_pb2.RemoveReleaseRequest(manifest_sha256=digest))) == "RELEASE_INCOMPLETE"
    assert (await fleet.controller.attester.attest(one.agent_id)).agent.state == "VERIFIED"


async def test_what_the_verifier_would_not_accept_is_not_taken(
    fleet: TestFleet, release_key: ReleaseKey, release: Release
) -> None:
    for made, reason in (
        (new_release(release_key, security_version=2), "FIRMWARE_BELOW_FLOOR"),
        (new_release(release_key, version="3.0.0"), "FIRMWARE_VERSION_NOT_ACCEPTED"),
        (dataclasses.replace(release, signature=release.signature[:-1] + b"\1"), "FIRMWARE_SIGNATURE_INVALID"),
    ):
        assert await refusal(add(fleet, made)) == reason
    assert await refusal(add(fleet, release, library=b"X" + NEW_LIBRARY[1:])) == "RELEASE_ALTERED"
    stub = await service(fleet)
    assert list((await stub.ListReleases(release_pb2.ListReleasesRequest())).releases) == []
    (one,) = await agents(fleet, 1)
    assert await refusal(stub.RollOutRelease(order(release, one))) == "RELEASE_INCOMPLETE"


async def test_what_policy_refuses_since_it_was_taken_is_listed_with_why_and_not_rolled_out(
    fleet: TestFleet, release: Release
) -> None:
    (one,) = await agents(fleet, 1)
    await add(fleet, release)
    (path,) = fleet.directory.rglob(f"{hashlib.sha256(release.manifest).hexdigest()}/{LIBRARY}")
    path.write_bytes(b"edited")
    stub = await service(fleet)
    (listed,) = (await stub.ListReleases(release_pb2.ListReleasesRequest())).releases
    assert listed.refused_reason == "RELEASE_ALTERED"
    assert await refusal(stub.RollOutRelease(order(release, one))) == "RELEASE_ALTERED"
    assert one.activations == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"manifest_sha256": b"short"}, "manifest_sha256"),
        ({"stages": [release_pb2.RollOutStage(percent=101)]}, "stages[0]"),
        ({"max_failures": 10_001}, "max_failures"),
        ({"concurrency": 257}, "concurrency"),
    ],
)
async def test_a_bad_order_names_its_field(fleet: TestFleet, release: Release, changes: dict[str, Any], field: str) -> None:
    (one,) = await agents(fleet, 1)
    request = order(release, one)
    request.MergeFrom(release_pb2.RollOutReleaseRequest(**changes))
    stub = await service(fleet)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        _ = [message async for message in stub.RollOutRelease(request)]
    assert dict(field_violations(status_of(refused.value))).keys() == {field}
