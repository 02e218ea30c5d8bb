# SPDX-License-Identifier: Apache-2.0
"""Who and what an agent process refuses: peers, leases, commands and firmware."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1.capture_pb2 import CaptureSpec
from jarvis_trust.commands import AGENT_SERVICE, CommandSigner, generate_command_key
from jarvis_trust.eventlog import parse_log
from jarvis_trust.identities import Identity, Role
from jarvis_trust.release_signatures import generate_release_key

from tests.integration.swtpm.checks import bad_fields_of, reason_of, refusal_of
from tests.integration.swtpm.conftest import AgentProcess, MakeAgent, line_to
from tests.integration.swtpm.small_controller import FLEET, AgentLine, SmallController
from tests.support import MODULE, ReleaseKey, build_module, sign_firmware

Running = tuple[AgentProcess, AgentLine]
METRICS = pb.GetMetricsRequest()
LIVE = pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"]))


@pytest.mark.parametrize(
    "identity",
    [
        Identity(fleet=FLEET, role=Role.ADMIN, name="ada"),
        Identity(fleet=FLEET, role=Role.VIEWER, name="vic"),
        Identity(fleet=FLEET, role=Role.AGENT, name="a" * 32),
    ],
    ids=lambda identity: identity.role,
)
async def test_nobody_but_a_controller_is_heard_on_any_method_of_any_service(
    running: Running, controller: SmallController, identity: Identity
) -> None:
    agent, line = running
    stranger = controller.line_to(line.agent_id, agent.address, identity=identity)
    for method in pb.DESCRIPTOR.services_by_name["AgentService"].methods:
        channel: Any = stranger.channel
        call = channel.unary_stream if method.server_streaming else channel.unary_unary
        answer = call(AGENT_SERVICE + method.name, request_serializer=None, response_deserializer=None)(b"", timeout=10.0)
        code, info = await refusal_of(anext(aiter(answer)) if method.server_streaming else answer)
        assert (code, info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PEER_DENIED"), method.name
    check = stranger.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    assert await reason_of(check(health_pb2.HealthCheckRequest(), timeout=10.0)) == "PEER_DENIED"
    await stranger.close()


async def test_a_caller_without_a_certificate_gets_no_handshake(running: Running, controller: SmallController) -> None:
    agent, line = running
    credentials = grpc.ssl_channel_credentials(controller.ca.certificate_pem)
    options = [("grpc.ssl_target_name_override", f"{line.agent_id}.agents.{FLEET}")]
    async with grpc.aio.secure_channel(agent.address, credentials, options=options) as channel:
        call = channel.unary_unary(AGENT_SERVICE + "GetAgentInfo", request_serializer=None, response_deserializer=None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=5.0)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_a_controller_sees_health_and_reflection(running: Running) -> None:
    _, line = running
    check = line.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest(service="jarvis.capture.v1.AgentService"), timeout=10.0)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = line.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )(health_pb2.HealthCheckRequest())
    assert (await anext(aiter(watch))).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    ask = line.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    async for response in ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")])):
        names = {service.name for service in response.list_services_response.service}
        assert "jarvis.capture.v1.AgentService" in names


async def test_a_command_before_the_first_attestation_is_refused(running: Running) -> None:
    _, line = running
    code, info = await refusal_of(line.call("GetMetrics", METRICS))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "AGENT_UNATTESTED")


async def test_a_nonce_is_answered_once(running: Running) -> None:
    _, line = running
    nonce, _ = await line.attest()
    assert await reason_of(line.attest(nonce)) == "NONCE_REUSED"


async def test_challenges_that_are_not_acceptable_name_the_field(running: Running) -> None:
    _, line = running
    assert set(await bad_fields_of(line.call("Attest", pb.AttestRequest(nonce=b"short", pcrs=[14])))) == {"nonce"}
    for pcrs in ([], [24], [14, 14], [*range(24), 3]):
        request = pb.AttestRequest(nonce=secrets.token_bytes(32), pcrs=pcrs)
        assert set(await bad_fields_of(line.call("Attest", request))) == {"pcrs"}, pcrs


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"agent_id": "b" * 32}, "LEASE_NOT_OURS"),
        ({"ak_name": bytes(34)}, "LEASE_NOT_OURS"),
        ({"tls_spki_sha256": bytes(32)}, "LEASE_NOT_OURS"),
        ({"firmware_sha256": bytes(32)}, "LEASE_NOT_OURS"),
        ({"session_id": bytes(16)}, "LEASE_NOT_OURS"),
        ({"tpm_reset_count": 0}, "LEASE_NOT_OURS"),
        ({"nonce": bytes(32)}, "LEASE_STALE"),
        ({"duration_ns": 1}, "LEASE_EXPIRED"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
async def test_a_lease_that_does_not_fit_is_refused(running: Running, changes: dict[str, Any], reason: str) -> None:
    _, line = running
    assert await reason_of(line.take_lease(**changes)) == reason
    assert await reason_of(line.call("GetMetrics", METRICS)) == "AGENT_UNATTESTED"


async def test_a_lease_is_taken_once_and_its_marks_never_go_back(running: Running, controller: SmallController) -> None:
    agent, line = running
    nonce, evidence = await line.attest()
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))
    signed = line.make_lease(nonce, evidence, firmware_sha256=info.firmware.sha256, audit_sequence=7)
    await line.call("RenewLease", pb.RenewLeaseRequest(lease=signed))
    assert await reason_of(line.call("RenewLease", pb.RenewLeaseRequest(lease=signed))) == "LEASE_STALE"
    assert await reason_of(line.take_lease(sequence=1)) == "LEASE_STALE"
    assert await reason_of(line.take_lease(audit_sequence=6)) == "AUDIT_TRUNCATED"
    assert await reason_of(line.take_lease(audit_sequence=7)) == "AUDIT_TRUNCATED"  # another head at the same place
    agent.kill()
    await agent.start()
    again = line_to(controller, agent)
    assert await reason_of(again.take_lease(sequence=1, audit_sequence=8)) == "LEASE_STALE"
    await again.take_lease(audit_sequence=8)
    await again.close()


async def test_a_lease_signed_by_another_key_is_refused(running: Running, controller: SmallController) -> None:
    _, line = running
    controller.signer = CommandSigner(generate_command_key()[0])
    assert await reason_of(line.take_lease()) == "LEASE_SIGNATURE_INVALID"


async def test_a_command_is_refused_unless_everything_that_is_signed_fits(running: Running, controller: SmallController) -> None:
    _, line = running
    await line.take_lease()
    assert await reason_of(line.call("GetMetrics", METRICS)) == "COMMAND_UNSIGNED"
    assert await reason_of(line.call("GetMetrics", METRICS, [("jarvis-authorization-bin", b"\xff\xff")])) == "COMMAND_INVALID"
    for changes in (
        {"agent_id": "b" * 32},
        {"method": AGENT_SERVICE + "StopCapture"},
        {"session_id": bytes(16)},
        {"payload": b"other"},
    ):
        assert await reason_of(line.command("GetMetrics", METRICS, **changes)) == "COMMAND_SIGNATURE_INVALID", changes
    assert await reason_of(line.command("GetMetrics", METRICS, lease_sequence=999)) == "LEASE_STALE"
    assert await reason_of(line.command("GetMetrics", METRICS, expires_ns=1)) == "COMMAND_EXPIRED"
    controller.signer = CommandSigner(generate_command_key()[0])
    code, info = await refusal_of(line.command("GetMetrics", METRICS))
    assert (code, info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "COMMAND_SIGNATURE_INVALID")


async def test_roles_decide_on_whose_behalf_a_command_may_be(running: Running) -> None:
    _, line = running
    await line.take_lease()
    viewer = f"spiffe://{FLEET}/operator/viewer/vic"
    assert await reason_of(line.command("StartCapture", LIVE, principal=viewer)) == "ROLE_DENIED"
    assert await reason_of(line.command("GetMetrics", METRICS, principal=viewer)) == "CAPTURE_NOT_RUNNING"
    for principal in (f"spiffe://{FLEET}/agent/{'a' * 32}", "spiffe://other.example/operator/admin/eve"):
        assert await reason_of(line.command("GetMetrics", METRICS, principal=principal)) == "ROLE_DENIED"
    await line.command("StartCapture", LIVE, principal=f"spiffe://{FLEET}/controller/main")


async def test_a_repeated_mutation_gets_the_first_answer(running: Running) -> None:
    _, line = running
    await line.take_lease()
    request_id = str(uuid.uuid4())
    first = await line.command("StartCapture", LIVE, request_id=request_id)
    await line.command("StopCapture", pb.StopCaptureRequest())
    assert await line.command("StartCapture", LIVE, request_id=request_id) == first
    other = pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"], promiscuous=True))
    assert await reason_of(line.command("StartCapture", other, request_id=request_id)) == "REQUEST_ID_REUSED"


async def test_a_repeated_read_is_refused_as_a_replay(running: Running) -> None:
    _, line = running
    await line.take_lease()
    await line.command("StartCapture", LIVE)
    authorization = line.authorization("GetMetrics", METRICS)
    await line.call("GetMetrics", METRICS, authorization)
    assert await reason_of(line.call("GetMetrics", METRICS, authorization)) == "COMMAND_REPLAYED"


async def test_a_request_that_is_too_large_or_no_message_is_refused(running: Running) -> None:
    _, line = running
    method = line.channel.unary_unary(AGENT_SERVICE + "GetStatus", request_serializer=None, response_deserializer=None)
    for payload in (b"\xff" * 16, bytes(65 * 1024)):
        code, info = await refusal_of(method(payload, timeout=10.0))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


def flip_a_byte(directory: Path) -> None:
    library = directory / "libjarvis_capture.so"
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)


def leave_as_it_is(_directory: Path) -> None:
    pass


def sign_with_another_key(directory: Path) -> None:
    private_pem, public_pem = generate_release_key()
    sign_firmware(directory, ReleaseKey(private_pem=private_pem, public_pem=public_pem))


async def test_every_native_object_is_measured_also_the_one_that_refuses_the_firmware(
    make_agent: MakeAgent, controller: SmallController, release_key: ReleaseKey
) -> None:
    agent = make_agent()
    firmware = agent.directory / "firmware"
    build_module(firmware / MODULE)
    sign_firmware(firmware, release_key)
    with (firmware / MODULE).open("ab") as module:
        module.write(b"\0")
    await agent.start()
    line = line_to(controller, agent)
    _, evidence = await line.attest()
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))
    assert (info.firmware.loaded, info.firmware.reason) == (False, "FIRMWARE_ALTERED")
    loads = {event.subject: event.sha256 for event in parse_log(evidence.event_log) if event.type == "load-attempt"}
    assert loads == {path.name: hashlib.sha256(path.read_bytes()).digest() for path in firmware.glob("*.so")}
    await line.close()


@pytest.mark.parametrize(
    ("spoil", "settings", "reason"),
    [
        (flip_a_byte, {}, "FIRMWARE_ALTERED"),
        (lambda directory: (directory / "manifest.sig").unlink(), {}, "FIRMWARE_UNSIGNED"),
        (lambda directory: (directory / "libjarvis_capture.so").unlink(), {}, "FIRMWARE_MISSING"),
        (sign_with_another_key, {}, "FIRMWARE_SIGNATURE_INVALID"),
        (leave_as_it_is, {"firmware_floor": 99}, "FIRMWARE_BELOW_FLOOR"),
    ],
    ids=["altered", "unsigned", "missing", "wrongly-signed", "below-floor"],
)
async def test_untrusted_firmware_leaves_the_agent_up_attested_and_mute(
    make_agent: MakeAgent, controller: SmallController, spoil: Callable[[Path], None], settings: dict[str, object], reason: str
) -> None:
    agent = make_agent(**settings)
    spoil(agent.directory / "firmware")
    await agent.start()
    line = line_to(controller, agent)
    _, evidence = await line.attest()
    info = pb.GetAgentInfoResponse.FromString(await line.call("GetAgentInfo", pb.GetAgentInfoRequest()))
    assert (info.firmware.loaded, info.firmware.reason) == (False, reason)
    library = agent.directory / "firmware" / "libjarvis_capture.so"
    if library.exists():  # what was refused was measured all the same
        digest = hashlib.sha256(library.read_bytes()).digest()
        assert info.firmware.sha256 == digest
        assert [event.sha256 for event in parse_log(evidence.event_log) if event.type == "load-attempt"] == [digest]
    await line.call("GetStatus", pb.GetStatusRequest())
    await line.call("VerifyFirmware", pb.VerifyFirmwareRequest())
    for name in ("StartCapture", "StopCapture", "GetMetrics", "ListFlows", "ListBackends"):
        code, refusal = await refusal_of(line.call(name, METRICS))
        assert (code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FIRMWARE_UNTRUSTED"), name
        assert refusal.metadata["firmware_reason"] == reason
        assert refusal.metadata["message"]
    assert await reason_of(line.take_lease(firmware_sha256=hashlib.sha256(b"anything").digest())) == "LEASE_NOT_OURS"
    await line.close()
