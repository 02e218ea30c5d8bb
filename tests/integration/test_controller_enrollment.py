# SPDX-License-Identifier: Apache-2.0
"""Joining a fleet over real TLS: what is proved, what is refused, what comes back by its TPM alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from jarvis.capture.v1 import enrollment_pb2, fleet_pb2
from jarvis_controller.rpc_status import status_of
from jarvis_controller.states import Event
from jarvis_trust.ca import certificate_not_after, identity_of_certificate
from jarvis_trust.identities import Role
from jarvis_trust.status import reason_of

from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import FakeAgent
from tests.unit.controller.fleet import TestFleet, running_fleet
from tests.unit.controller.software_tpm import SoftwareTpm, Vendor


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key) as made:
        yield made


def host(fleet: TestFleet, **options: Any) -> FakeAgent:
    return FakeAgent(release=fleet.release, vendor=fleet.vendor, **options)


async def refusal(agent: FakeAgent, fleet: TestFleet, **options: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await agent.join(await fleet.join_file(), **options)
    return reason_of(status_of(refused.value))


async def test_a_host_that_proves_its_tpm_gets_a_certificate_named_by_its_ek(fleet: TestFleet) -> None:
    agent = host(fleet)
    result = await agent.join(await fleet.join_file({"role": "web"}))
    identity = identity_of_certificate(result.certificate_pem)
    assert (identity.role, identity.name, identity.fleet) == (Role.AGENT, agent.tpm.agent_id, "lab.example")
    assert result.agent_id == agent.tpm.agent_id
    hours = (certificate_not_after(result.certificate_pem) - datetime.now(UTC)).total_seconds() / 3600
    assert 23.9 < hours <= 24
    row = await fleet.agent_row(agent)
    assert (dict(row.labels), row.hostname, row.address) == ({"role": "web"}, "fake", agent.address)


async def test_a_join_token_is_good_for_one_host(fleet: TestFleet) -> None:
    join_file = await fleet.join_file()
    await host(fleet).join(join_file)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host(fleet).join(join_file)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(status_of(refused.value)) == "TOKEN_REUSED"


async def test_an_unknown_token_is_refused(fleet: TestFleet) -> None:
    assert await refusal(host(fleet), fleet, token="x" * 43) == "TOKEN_UNKNOWN"


async def test_a_host_without_a_token_is_refused(fleet: TestFleet) -> None:
    assert await refusal(host(fleet), fleet, token="") == "TOKEN_REQUIRED"


async def test_a_tpm_of_another_vendor_is_refused(fleet: TestFleet) -> None:
    agent = host(fleet)
    agent.vendor = Vendor("Somebody else")
    assert await refusal(agent, fleet) == "EK_CERTIFICATE_UNTRUSTED"


async def test_an_ek_certificate_of_another_tpm_is_refused(fleet: TestFleet) -> None:
    other = SoftwareTpm()

    def change(params: enrollment_pb2.EnrollParams) -> None:
        params.ek_certificate = fleet.vendor.certify(other.ek_key.public_key())

    assert await refusal(host(fleet, change_params=change), fleet) == "EK_CERTIFICATE_KEY_MISMATCH"


@pytest.mark.parametrize(("field", "reason"), [("ak_public", "AK_TEMPLATE_WRONG"), ("ek_public", "EK_TEMPLATE_WRONG")])
async def test_a_key_that_is_not_restricted_is_refused(fleet: TestFleet, field: str, reason: str) -> None:
    def change(params: enrollment_pb2.EnrollParams) -> None:
        public = bytearray(getattr(params, field))
        public[5] ^= 0x01  # TPMA_OBJECT.restricted
        setattr(params, field, bytes(public))

    assert await refusal(host(fleet, change_params=change), fleet) == reason


async def test_a_host_whose_tpm_does_not_hold_both_keys_learns_no_secret(fleet: TestFleet) -> None:
    stranger = SoftwareTpm()

    def change(params: enrollment_pb2.EnrollParams) -> None:
        params.ak_public = stranger.ak_public

    with pytest.raises(ValueError, match="not for this AK"):
        await host(fleet, change_params=change).join(await fleet.join_file())


async def test_a_wrong_proof_is_refused_and_cannot_be_tried_again(fleet: TestFleet) -> None:
    agent = host(fleet)

    class Guessing(SoftwareTpm):
        def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:  # noqa: ARG002
            return bytes(32)

    agent.tpm = Guessing(ak_key=agent.tpm.ak_key, ek_key=agent.tpm.ek_key)
    join_file = await fleet.join_file()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await agent.join(join_file)
    assert reason_of(status_of(refused.value)) == "ENROLLMENT_PROOF_INVALID"
    assert await fleet.controller.store.agents() == []


async def test_names_in_the_csr_are_ignored(fleet: TestFleet) -> None:
    def change(params: enrollment_pb2.EnrollParams) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        uri = x509.UniformResourceIdentifier("spiffe://lab.example/operator/admin/eve")
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        request = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False).sign(key, hashes.SHA256())
        params.csr = request.public_bytes(Encoding.DER)

    agent = host(fleet, change_params=change)
    result = await agent.join(await fleet.join_file())
    assert identity_of_certificate(result.certificate_pem).name == agent.tpm.agent_id


async def test_a_known_tpm_comes_back_without_a_token_and_keeps_its_state(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    first = agent.certificate_pem
    await agent.join(await fleet.join_file(), token="")
    assert agent.certificate_pem != first
    row = await fleet.agent_row(agent)
    assert row.state in {fleet_pb2.AGENT_STATE_VERIFIED, fleet_pb2.AGENT_STATE_STALE}
    await agent.restart()
    await fleet.controller.attester.attest(agent.agent_id)
    assert (await fleet.agent_row(agent)).state == fleet_pb2.AGENT_STATE_VERIFIED


async def test_a_certificate_renewed_while_the_old_one_serves_does_not_disturb_attestation(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    served = agent.certificate_pem
    await agent.join(await fleet.join_file(), token="")
    agent.certificate_pem = served  # the agent's server has not taken the new one over yet
    outcome = await fleet.controller.attester.attest(agent.agent_id)
    assert outcome.status.code == 0, outcome


async def test_another_ak_for_a_known_ek_is_refused(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.tpm = SoftwareTpm(ek_key=agent.tpm.ek_key)
    assert await refusal(agent, fleet, token="") == "AK_CHANGED"


async def test_a_quarantined_host_needs_a_token_and_stays_quarantined(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    await fleet.controller.store.change_state(agent.agent_id, Event.QUARANTINE_ORDERED, "because", principal="test")
    assert await refusal(agent, fleet, token="") == "TOKEN_REQUIRED"
    await agent.join(await fleet.join_file())
    assert (await fleet.agent_row(agent)).state == fleet_pb2.AGENT_STATE_QUARANTINED


async def retire(fleet: TestFleet, agent: FakeAgent) -> fleet_pb2.Agent:
    stub = await fleet.stub(Role.ADMIN)
    answer = await stub.RetireAgent(fleet_pb2.RetireAgentRequest(agent_id=agent.agent_id, reason="sold"))
    retired: fleet_pb2.Agent = answer.agent
    return retired


async def test_a_retired_agent_has_no_lease_and_is_listed_only_when_asked_for(fleet: TestFleet) -> None:
    agent = await fleet.add_agent(labels={"role": "web"})
    retired = await retire(fleet, agent)
    assert (retired.state, "sold" in retired.reason) == (fleet_pb2.AGENT_STATE_RETIRED, True)
    assert agent.lease is not None
    assert agent.lease.duration_ns == 1
    stub = await fleet.stub(Role.VIEWER)
    for request, shown in (
        (fleet_pb2.ListAgentsRequest(), 0),
        (fleet_pb2.ListAgentsRequest(show_retired=True), 1),
        (fleet_pb2.ListAgentsRequest(selector=fleet_pb2.AgentSelector(agent_ids=[agent.agent_id])), 1),
    ):
        assert len((await stub.ListAgents(request)).agents) == shown
    outcome = await fleet.controller.attester.attest(agent.agent_id)
    assert reason_of(outcome.status) == "AGENT_RETIRED"


async def test_retirement_is_final_until_a_new_token_admits_the_tpm_as_a_new_agent(fleet: TestFleet) -> None:
    agent = await fleet.add_agent(labels={"role": "web"})
    await retire(fleet, agent)
    stub = await fleet.stub(Role.ADMIN)
    for call in (
        stub.ReleaseAgent(fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id, reason="mistake")),
        stub.QuarantineAgent(fleet_pb2.QuarantineAgentRequest(agent_id=agent.agent_id, reason="mistake")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await refusal(agent, fleet, token="") == "TOKEN_REQUIRED"
    retired = await fleet.controller.store.agent(agent.agent_id)
    assert retired is not None
    await agent.join(await fleet.join_file({"role": "db"}))
    await agent.restart()
    await fleet.wait_for_state(agent, "VERIFIED")
    record = await fleet.controller.store.agent(agent.agent_id)
    assert record is not None
    assert record.labels == {"role": "db"}
    assert record.lease_sequence > retired.lease_sequence
    changes = [
        (detail["from"], detail["to"])
        for event in await fleet.controller.store.audit_page(0, 1000)
        if event.action == "agent.state"
        for detail in [json.loads(event.detail)]
    ]
    assert ("VERIFIED", "RETIRED") in changes
    assert ("RETIRED", "ENROLLED") in changes


async def test_a_retired_tpm_may_come_back_with_another_attestation_key(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    await retire(fleet, agent)
    agent.tpm = SoftwareTpm(ek_key=agent.tpm.ek_key)
    await agent.join(await fleet.join_file())
    await agent.restart()
    await fleet.wait_for_state(agent, "VERIFIED")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda params: setattr(params, "address", "nowhere"), "address"),
        (lambda params: setattr(params, "hostname", "a\nb"), "hostname"),
        (lambda params: setattr(params, "hostname", ""), "hostname"),
        (lambda params: setattr(params, "version", "\x1b[31m"), "version"),
        (lambda params: params.ek_chain.extend([b"x"] * 9), "ek_chain"),
        (lambda params: setattr(params, "csr", b"garbage"), "csr"),
        (lambda params: setattr(params, "ek_public", b""), "TPMT_PUBLIC"),
    ],
)
async def test_a_malformed_field_is_refused_by_name(fleet: TestFleet, change: Callable[[Any], None], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host(fleet, change_params=change).join(await fleet.join_file())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (refused.value.details() or "")


async def test_steps_out_of_order_are_refused(fleet: TestFleet) -> None:
    join_file = await fleet.join_file()
    credentials = grpc.ssl_channel_credentials(join_file.ca_pem.encode())
    options = (("grpc.ssl_target_name_override", "controller.lab.example"),)
    async with grpc.aio.secure_channel(join_file.address, credentials, options=options) as channel:
        method: Any = channel.stream_stream("/jarvis.capture.v1.EnrollmentService/Enroll")
        call = method(iter([enrollment_pb2.EnrollRequest(proof={"hmac": b"x"}).SerializeToString()]), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_refusals_are_audited_but_cannot_fill_the_log(fleet: TestFleet) -> None:
    for _ in range(5):
        await refusal(host(fleet), fleet, token="x" * 43)
    entries = [event for event in await fleet.controller.store.audit_page(0, 1000) if event.action == "enroll.refused"]
    assert 1 <= len(entries) < 5
    assert json.loads(entries[0].detail)["reason"] == "TOKEN_UNKNOWN"


def tunnelled(params: enrollment_pb2.EnrollParams) -> None:
    params.carrier = enrollment_pb2.CARRIER_TUNNEL


async def test_an_agent_that_dials_gets_its_certificate_for_a_key_that_its_tpm_vouches_for(fleet: TestFleet) -> None:
    result = await host(fleet, change_params=tunnelled).join(await fleet.join_file())
    assert result.certificate_pem


async def test_an_agent_that_dials_with_a_key_of_its_own_is_refused(fleet: TestFleet) -> None:
    def only_says_so(proof: enrollment_pb2.EnrollProof) -> None:
        proof.ClearField("certify")

    assert await refusal(host(fleet, change_params=tunnelled, change_proof=only_says_so), fleet) == "TLS_KEY_NOT_CERTIFIED"


async def test_a_recorded_certification_is_refused_in_the_next_enrolment(fleet: TestFleet) -> None:
    seen: list[enrollment_pb2.EnrollProof] = []

    def record(proof: enrollment_pb2.EnrollProof) -> None:
        seen.append(enrollment_pb2.EnrollProof.FromString(proof.SerializeToString()))

    def replay(proof: enrollment_pb2.EnrollProof) -> None:
        proof.certify, proof.certify_signature = seen[0].certify, seen[0].certify_signature

    agent = host(fleet, change_params=tunnelled, change_proof=record)
    await agent.join(await fleet.join_file())
    agent.change_proof = replay
    assert await refusal(agent, fleet, token="") == "TLS_KEY_NONCE_MISMATCH"
