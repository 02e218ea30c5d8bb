# SPDX-License-Identifier: Apache-2.0
"""Exports over a fleet of fake agents: who may go where, commanded once, audited whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import code_pb2
from jarvis.capture.v1 import export_pb2, fleet_pb2
from jarvis_controller.agent_record import Carrier
from jarvis_controller.rpc_status import status_of
from jarvis_trust.identities import Role
from jarvis_trust.status import reason_of

from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import FakeAgent
from tests.unit.controller.fleet import TestFleet, running_fleet

EVERYBODY = fleet_pb2.AgentSelector()
ALLOWED = ["192.0.2.0/24", "siem.example:4739"]
ONCE = "123e4567-e89b-12d3-a456-426614174000"


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey, carrier: Carrier) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key, carrier=carrier, policy=PolicyText(collectors=ALLOWED)) as made:
        yield made


def enable(host: str = "siem.example", **fields: Any) -> fleet_pb2.EnableExportsRequest:
    spec = export_pb2.ExportSpec(
        export_id="siem", protocol=export_pb2.EXPORT_PROTOCOL_IPFIX, collectors=[export_pb2.ExportCollector(host=host)]
    )
    return fleet_pb2.EnableExportsRequest(**{"selector": EVERYBODY, "spec": spec, **fields})


async def outcomes(call: Any) -> dict[str, fleet_pb2.ExportOutcome]:
    return {answer.agent_id: answer async for answer in call}


async def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await outcomes(call)
    status = status_of(refused.value)
    return reason_of(status), status.message


async def audited(fleet: TestFleet, action: str) -> list[tuple[fleet_pb2.AuditEvent, dict[str, Any]]]:
    entries = await fleet.controller.store.audit_page(0, 1000)
    return [(entry, json.loads(entry.detail)) for entry in entries if entry.action == action]


async def test_an_export_is_enabled_listed_and_disabled_at_every_selected_agent(fleet: TestFleet) -> None:
    web, other = await fleet.add_agent(labels={"role": "web"}), await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    selector = fleet_pb2.AgentSelector(label_selector="role=web")
    enabled = await outcomes(stub.EnableExports(enable(selector=selector)))
    assert set(enabled) == {web.agent_id}
    assert [status.state for status in enabled[web.agent_id].exports] == [export_pb2.EXPORT_STATE_ACTIVE]
    assert web.principals == ["spiffe://lab.example/operator/operator/ada"]

    viewer = await fleet.stub(Role.VIEWER)
    listed = await outcomes(viewer.ListExports(fleet_pb2.FleetListExportsRequest(selector=EVERYBODY)))
    assert [[status.spec for status in listed[agent.agent_id].exports] for agent in (web, other)] == [[enable().spec], []]

    request = fleet_pb2.DisableExportsRequest(selector=EVERYBODY, export_id="siem", discard=True)
    disabled = await outcomes(stub.DisableExports(request))
    assert [status.state for status in disabled[web.agent_id].exports] == [export_pb2.EXPORT_STATE_ENDING]
    assert reason_of(disabled[other.agent_id].status) == "EXPORT_NOT_FOUND"
    assert web.exports == {}


async def test_what_was_enabled_and_disabled_is_audited_with_its_specification(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    await outcomes(stub.EnableExports(enable("192.0.2.7", request_id=ONCE)))
    await outcomes(stub.DisableExports(fleet_pb2.DisableExportsRequest(selector=EVERYBODY, export_id="siem")))
    await outcomes(stub.DisableExports(fleet_pb2.DisableExportsRequest(selector=EVERYBODY, export_id="siem")))
    ((entry, detail),) = await audited(fleet, "export.enable")
    assert (entry.agent_id, entry.principal, entry.request_id) == (
        agent.agent_id,
        "spiffe://lab.example/operator/operator/ada",
        ONCE,
    )
    assert detail["code"] == "OK"
    assert detail["request"]["spec"]["collectors"] == [{"host": "192.0.2.7"}]
    assert [found["code"] for _, found in await audited(fleet, "export.disable")] == ["OK", "NOT_FOUND"]


async def test_a_repeated_request_enables_nothing_again_and_its_id_is_good_for_nothing_else(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    first = await outcomes(stub.EnableExports(enable(request_id=ONCE)))
    agent.exports.clear()
    again = await outcomes(stub.EnableExports(enable(request_id=ONCE)))
    assert first == again
    assert agent.calls["EnableExport"] == 1
    _, message = await refusal(stub.EnableExports(enable("192.0.2.9", request_id=ONCE)))
    assert "a new UUID is accepted" in message


async def test_a_collector_outside_the_allow_list_reaches_no_agent_and_the_attempt_is_audited(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    for host in ("198.51.100.1", "siem.example.attacker", "evil.siem.example"):
        reason, message = await refusal(stub.EnableExports(enable(host)))
        assert reason == "EXPORT_NOT_ALLOWED"
        assert f"'{host}:4739': not in the policy's allow-list ([export] collectors), which admits 192.0.2.0/24, siem" in message
    assert agent.calls["EnableExport"] == 0
    ((_, detail),) = await audited(fleet, "access.refused")
    assert (detail["reason"], detail["method"].rpartition("/")[2]) == ("EXPORT_NOT_ALLOWED", "EnableExports")


async def test_what_is_wrong_in_one_field_reaches_no_agent(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    request = enable()
    request.spec.export_interval_sec = 3601
    assert "spec.export_interval_sec: 3601: 1..3600 is accepted" in (await refusal(stub.EnableExports(request)))[1]
    bad = fleet_pb2.DisableExportsRequest(selector=EVERYBODY, export_id="No Id")
    assert (await refusal(stub.DisableExports(bad)))[1].startswith("export_id: 'No Id': 1-32 of a-z")
    assert not agent.calls["EnableExport"] + agent.calls["DisableExport"]


async def test_an_agents_own_refusal_is_its_outcome_beside_those_of_others(fleet: TestFleet) -> None:
    first, second = await fleet.add_agent(), await fleet.add_agent()
    stub = await fleet.stub(Role.OPERATOR)
    await outcomes(stub.EnableExports(enable("192.0.2.7", selector=fleet_pb2.AgentSelector(agent_ids=[first.agent_id]))))
    found = await outcomes(stub.EnableExports(enable()))
    assert reason_of(found[first.agent_id].status) == "EXPORT_EXISTS"
    assert found[second.agent_id].status.code == code_pb2.OK


async def test_answers_that_are_no_message_are_the_agents_failure(fleet: TestFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await fleet.add_agent()

    async def nonsense(*_arguments: Any) -> bytes:
        return b"\xff" * 8

    for name in ("_enable_export", "_list_exports"):
        monkeypatch.setattr(FakeAgent, name, nonsense)
    await agent.restart()
    stub = await fleet.stub(Role.OPERATOR)
    listing = stub.ListExports(fleet_pb2.FleetListExportsRequest(selector=EVERYBODY))
    for answers in (await outcomes(stub.EnableExports(enable())), await outcomes(listing)):
        assert reason_of(answers[agent.agent_id].status) == "AGENT_ANSWER_MALFORMED"
