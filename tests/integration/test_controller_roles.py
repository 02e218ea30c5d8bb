# SPDX-License-Identifier: Apache-2.0
"""Who gets in: every rpc over real TLS with every role, no certificate, another fleet's certificate."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from jarvis.capture.v1 import certificate_pb2, fleet_pb2, policy_pb2
from jarvis_controller.authorization import OPERATOR_METHODS
from jarvis_controller.rpc_status import status_of
from jarvis_trust.ca import FleetCA
from jarvis_trust.identities import Role
from jarvis_trust.status import reason_of

from tests.support import ReleaseKey
from tests.unit.controller.fleet import FLEET, TestFleet, running_fleet

SERVICES = [
    fleet_pb2.DESCRIPTOR.services_by_name["FleetService"],
    policy_pb2.DESCRIPTOR.services_by_name["PolicyService"],
    certificate_pb2.DESCRIPTOR.services_by_name["CertificateService"],
]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
NAMES = {Role.AGENT: "a" * 32, Role.CONTROLLER: "evil", Role.VIEWER: "vera", Role.OPERATOR: "otto", Role.ADMIN: "ada"}


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key) as made:
        yield made


async def call(channel: grpc.aio.Channel, path: str, *, streaming: bool, request: bytes = b"") -> grpc.StatusCode | str:
    """OK, or the code; for a denial its reason."""
    made: Any = (channel.unary_stream if streaming else channel.unary_unary)(path)
    answer = made(request, timeout=10)
    try:
        await (answer.read() if streaming else answer)
        if streaming and not answer.done():
            answer.cancel()
            return grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        return reason_of(status_of(error)) or error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("role", list(NAMES))
async def test_every_rpc_is_denied_to_a_role_below_its_own(fleet: TestFleet, role: Role) -> None:
    async with fleet.channel(role, name=NAMES[role]) as channel:
        for name, method in METHODS.items():
            found = await call(channel, name, streaming=method.server_streaming)
            permitted = role.permits(OPERATOR_METHODS[name])
            assert (found == "ROLE_DENIED") is not permitted, (role, name, found)


async def test_without_a_client_certificate_the_handshake_fails(fleet: TestFleet) -> None:
    credentials = grpc.ssl_channel_credentials(fleet.ca.certificate_pem)
    options = (("grpc.ssl_target_name_override", f"controller.{FLEET}"),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{fleet.controller.operator_port}", credentials, options=options) as channel:
        for name, method in METHODS.items():
            found = await call(channel, name, streaming=method.server_streaming)
            assert found is grpc.StatusCode.UNAVAILABLE, name


async def test_a_certificate_of_another_fleets_ca_is_not_let_in(fleet: TestFleet) -> None:
    async with fleet.channel(Role.ADMIN, ca=FleetCA.create(FLEET)) as channel:
        assert await call(channel, "/jarvis.capture.v1.FleetService/ListAgents", streaming=False) is grpc.StatusCode.UNAVAILABLE


async def test_an_unknown_method_is_not_served(fleet: TestFleet) -> None:
    async with fleet.channel(Role.ADMIN) as channel:
        assert await call(channel, "/jarvis.capture.v1.FleetService/Forgotten", streaming=False) is grpc.StatusCode.UNIMPLEMENTED


async def test_operators_cannot_be_served_on_the_enrolment_port(fleet: TestFleet) -> None:
    address = f"127.0.0.1:{fleet.controller.enroll_port}"
    credentials = grpc.ssl_channel_credentials(fleet.ca.certificate_pem)
    options = (("grpc.ssl_target_name_override", f"controller.{FLEET}"),)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        for name, method in METHODS.items():
            found = await call(channel, name, streaming=method.server_streaming)
            assert found is grpc.StatusCode.UNIMPLEMENTED, name


async def test_health_and_reflection_answer_a_viewer(fleet: TestFleet) -> None:
    async with fleet.channel(Role.VIEWER, name="vera") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="jarvis.capture.v1.FleetService")
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(request)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        listing = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        services = {service.name for service in (await listing.read()).list_services_response.service}
    assert "jarvis.capture.v1.FleetService" in services


async def test_health_of_the_enrolment_port_is_open(fleet: TestFleet) -> None:
    credentials = grpc.ssl_channel_credentials(fleet.ca.certificate_pem)
    options = (("grpc.ssl_target_name_override", f"controller.{FLEET}"),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{fleet.controller.enroll_port}", credentials, options=options) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="jarvis.capture.v1.EnrollmentService")
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING


async def entries(fleet: TestFleet, action: str) -> list[tuple[str, dict[str, Any]]]:
    """Who and detail of every entry of this action."""
    events = await fleet.controller.store.audit_page(0, 1000)
    return [(event.principal, json.loads(event.detail)) for event in events if event.action == action]


async def test_what_is_refused_to_an_operator_is_audited_once_a_minute_with_its_number(fleet: TestFleet) -> None:
    stub = await fleet.stub(Role.VIEWER)
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.CreateJoinToken(fleet_pb2.CreateJoinTokenRequest())
    ((who, detail),) = await entries(fleet, "access.refused")
    assert who.startswith("spiffe://lab.example/operator/viewer/")
    assert (detail["reason"], detail["method"]) == ("ROLE_DENIED", "/jarvis.capture.v1.FleetService/CreateJoinToken")
    await fleet.controller.access.flush()
    assert [detail.get("repeats") for _, detail in await entries(fleet, "access.refused")] == [None, 19]


async def test_who_looks_at_whose_data_is_audited(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.VIEWER)
    selector = fleet_pb2.AgentSelector(agent_ids=[agent.agent_id])
    async for _ in stub.ListFlows(fleet_pb2.FleetListFlowsRequest(selector=selector)):
        pass
    async for _ in stub.WatchMetrics(fleet_pb2.WatchMetricsRequest(selector=selector)):
        pass
    flows = stub.WatchFlows(fleet_pb2.WatchFlowsRequest(selector=selector))
    await flows.read()
    flows.cancel()
    seen = await entries(fleet, "data.read")
    assert [(detail["method"], detail["agents"]) for _, detail in seen] == [
        ("ListFlows", [agent.agent_id]),
        ("WatchMetrics", [agent.agent_id]),
        ("WatchFlows", [agent.agent_id]),
    ]
    assert {who for who, _ in seen} == {"spiffe://lab.example/operator/viewer/ada"}
