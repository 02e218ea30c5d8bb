# SPDX-License-Identifier: Apache-2.0
"""Certificates of a running controller: the register, revocation in calls and streams, operators' own, the change of the CA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from jarvis.capture.v1 import certificate_pb2, certificate_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from jarvis_agent.tunnel_link import OPEN_TUNNEL
from jarvis_controller.agent_record import Carrier
from jarvis_controller.authorities import Stage
from jarvis_controller.cli import app
from jarvis_controller.config import ConfigError
from jarvis_controller.deny_list import DenyList
from jarvis_controller.rpc_status import status_of
from jarvis_controller.server import Controller
from jarvis_trust.ca import (
    FleetCA,
    certificate_not_after,
    generate_key,
    identity_of_certificate,
    load_certificate,
    make_csr,
    public_key_of,
    spki_sha256,
)
from jarvis_trust.ca_bundle import CaBundle, serial_of
from jarvis_trust.errors import AuditError
from jarvis_trust.identities import Identity, Role, controller_dns_name
from jarvis_trust.status import reason_of
from typer.testing import CliRunner

from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import operator_channel
from tests.unit.controller.fleet import FLEET, TestFleet, eventually, running_fleet

pb = certificate_pb2
WHY = "the laptop was stolen"


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key) as made:
        yield made


class Operator:
    """Somebody with a certificate and an open channel."""

    def __init__(self, fleet: TestFleet, key: bytes, pem: bytes) -> None:
        self.key, self.pem = key, pem
        address, roots = f"127.0.0.1:{fleet.controller.operator_port}", fleet.controller.issuer.ca_pem
        self.channel = operator_channel(address, roots, key, pem, FLEET)
        fleet.stack.push_async_callback(self.channel.close)
        self.certificates: Any = certificate_pb2_grpc.CertificateServiceStub(self.channel)
        self.fleet: Any = fleet_pb2_grpc.FleetServiceStub(self.channel)

    @property
    def serial(self) -> str:
        return serial_of(load_certificate(self.pem))


def offline(fleet: TestFleet, role: Role, name: str, lifetime: timedelta = timedelta(hours=1)) -> Operator:
    """With a certificate that the register does not know: issued where the CA's key is."""
    key = generate_key()
    return Operator(fleet, key, fleet.ca.issue(Identity(fleet=FLEET, role=role, name=name), public_key_of(key), lifetime))


async def issued(fleet: TestFleet, admin: Operator, role: str, name: str, hours: float = 24) -> Operator:
    """By CertificateService."""
    key = generate_key()
    request = pb.IssueOperatorCertificateRequest(csr=make_csr(key), name=name, role=role)
    request.lifetime.FromTimedelta(timedelta(hours=hours))
    answer = await admin.certificates.IssueOperatorCertificate(request)
    return Operator(fleet, key, answer.certificate_pem)


@pytest_asyncio.fixture
async def admin(fleet: TestFleet) -> Operator:
    return offline(fleet, Role.ADMIN, "ada")


async def refusal(call: Any) -> str:
    """The reason for which a call, or the read of a stream, is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return reason_of(status_of(refused.value)) or refused.value.code().name


async def register(admin: Operator, **criteria: Any) -> list[Any]:
    answer = await admin.certificates.ListCertificates(pb.ListCertificatesRequest(page_size=1000, **criteria))
    return list(answer.certificates)


async def revoke(admin: Operator, **target: str) -> Any:
    return await admin.certificates.RevokeCertificate(pb.RevokeCertificateRequest(reason=WHY, **target))


def events_of(operator: Operator) -> Any:
    return operator.fleet.WatchEvents(fleet_pb2.WatchEventsRequest(follow=True))


# ---- the register


async def test_everything_that_the_ca_issued_is_in_the_register(fleet: TestFleet, admin: Operator) -> None:
    agent = await fleet.add_agent()
    await issued(fleet, admin, "viewer", "vera")
    rows = {row.subject: row for row in await register(admin)}
    assert rows[f"spiffe://{FLEET}/agent/{agent.agent_id}"].serial == serial_of(load_certificate(agent.certificate_pem))
    assert rows[f"spiffe://{FLEET}/operator/admin/admin"].issued_by == "init"
    assert rows[f"spiffe://{FLEET}/operator/viewer/vera"].issued_by == f"spiffe://{FLEET}/operator/admin/ada"
    assert {f"spiffe://{FLEET}/controller/main", f"spiffe://{FLEET}/audit/main"} <= set(rows)
    assert {row.state for row in rows.values()} == {pb.CERTIFICATE_STATE_VALID}


async def test_a_newer_certificate_supersedes_the_one_before(fleet: TestFleet, admin: Operator) -> None:
    first, second = await issued(fleet, admin, "viewer", "vera"), await issued(fleet, admin, "viewer", "vera")
    states = {row.serial: row.state for row in await register(admin, role="viewer")}
    assert states == {
        first.serial: pb.CERTIFICATE_STATE_SUPERSEDED,
        second.serial: pb.CERTIFICATE_STATE_VALID,
    }
    superseded = await register(admin, state=pb.CERTIFICATE_STATE_SUPERSEDED)
    assert [row.serial for row in superseded] == [first.serial]


async def test_the_register_is_read_in_pages(fleet: TestFleet, admin: Operator) -> None:
    for number in range(5):
        await issued(fleet, admin, "viewer", f"v{number}")
    found, token = [], ""
    while True:
        request = pb.ListCertificatesRequest(page_size=2, page_token=token, role="viewer")
        answer = await admin.certificates.ListCertificates(request)
        assert len(answer.certificates) <= 2
        found += [row.subject.rpartition("/")[2] for row in answer.certificates]
        token = answer.next_page_token
        if not token:
            break
    assert found == ["v4", "v3", "v2", "v1", "v0"]


async def test_certificates_of_long_ago_leave_the_register_but_the_newest_of_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release_key: ReleaseKey
) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        admin = offline(fleet, Role.ADMIN, "ada")
        vera = [await issued(fleet, admin, "viewer", "vera") for _ in range(3)]
        await revoke(admin, serial=vera[1].serial)
        late = fleet.controller.store.now_ns() + 200 * 86400 * 10**9
        monkeypatch.setattr(fleet.controller.store, "now_ns", lambda: late)
        await issued(fleet, admin, "viewer", "otto")
        rows = {row.serial: row.state for row in await register(admin, role="viewer")}
    assert vera[0].serial not in rows
    assert (rows[vera[1].serial], rows[vera[2].serial]) == (pb.CERTIFICATE_STATE_REVOKED, pb.CERTIFICATE_STATE_EXPIRED)


# ---- revocation


@pytest.mark.parametrize("by", ["serial", "subject"])
async def test_a_revoked_operator_is_refused_in_calls_and_inside_streams(fleet: TestFleet, admin: Operator, by: str) -> None:
    otto, other = await issued(fleet, admin, "admin", "otto"), await issued(fleet, admin, "admin", "olga")
    streams = [events_of(operator) for operator in (otto, other)]
    await asyncio.sleep(1.1)  # by id: what was issued in the very second of the revocation counts by its serial only
    target = otto.serial if by == "serial" else f"spiffe://{FLEET}/operator/admin/otto"
    answer = await revoke(admin, **{by: target})
    assert [row.state for row in answer.certificates] == [pb.CERTIFICATE_STATE_REVOKED]

    async def drained(stream: Any) -> None:
        async for _ in stream:
            pass

    async with asyncio.timeout(5):
        assert await refusal(drained(streams[0])) == "CERTIFICATE_REVOKED"
    assert await refusal(otto.fleet.ListAgents(fleet_pb2.ListAgentsRequest())) == "CERTIFICATE_REVOKED"
    assert (
        await refusal(otto.certificates.RenewOperatorCertificate(pb.RenewOperatorCertificateRequest())) == "CERTIFICATE_REVOKED"
    )
    assert not streams[1].done()
    await other.fleet.ListAgents(fleet_pb2.ListAgentsRequest())


async def test_a_revoked_id_gets_a_certificate_again_for_a_new_key_only(fleet: TestFleet, admin: Operator) -> None:
    otto = await issued(fleet, admin, "operator", "otto")
    await revoke(admin, subject=f"spiffe://{FLEET}/operator/operator/otto")
    request = pb.IssueOperatorCertificateRequest(csr=make_csr(otto.key), name="otto", role="operator")
    assert await refusal(admin.certificates.IssueOperatorCertificate(request)) == "KEY_REVOKED"
    again = await issued(fleet, admin, "operator", "otto")
    await again.fleet.ListAgents(fleet_pb2.ListAgentsRequest())


async def test_a_certificate_that_was_issued_offline_is_refused_with_its_id(fleet: TestFleet, admin: Operator) -> None:
    unknown = offline(fleet, Role.OPERATOR, "otto")
    await issued(fleet, admin, "operator", "otto")
    await asyncio.sleep(1.1)
    await revoke(admin, subject=f"spiffe://{FLEET}/operator/operator/otto")
    assert await refusal(unknown.fleet.ListAgents(fleet_pb2.ListAgentsRequest())) == "CERTIFICATE_REVOKED"


async def test_what_was_revoked_stays_so_after_a_restart(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        admin = offline(fleet, Role.ADMIN, "ada")
        otto = await issued(fleet, admin, "operator", "otto")
        await revoke(admin, serial=otto.serial)
        config = fleet.config
    controller = Controller(config)
    async with controller.running():
        fleet.controller = controller
        channel = operator_channel(f"127.0.0.1:{controller.operator_port}", controller.issuer.ca_pem, otto.key, otto.pem, FLEET)
        async with channel:
            stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
            assert await refusal(stub.ListAgents(fleet_pb2.ListAgentsRequest())) == "CERTIFICATE_REVOKED"


@pytest.mark.parametrize("carrier", list(Carrier))
async def test_a_revoked_agent_loses_its_lease_and_comes_back_with_a_new_token_and_key(
    tmp_path: Path, release_key: ReleaseKey, carrier: Carrier
) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier) as fleet:
        admin = offline(fleet, Role.ADMIN, "ada")
        agent, other = await fleet.add_agent(), await fleet.add_agent()
        await revoke(admin, serial=serial_of(load_certificate(agent.certificate_pem)))
        await fleet.wait_for_state(agent, "STALE")
        assert agent.lease is not None
        assert agent.lease.duration_ns == 1
        outcome = await fleet.controller.attester.attest(agent.agent_id)
        assert "CERTIFICATE_REVOKED" in outcome.status.message
        assert agent.join_file is not None
        assert await refusal(agent.join(agent.join_file, token="")) == "TOKEN_REQUIRED"
        await agent.join(await fleet.join_file())
        await agent.restart()
        await fleet.wait_for_state(agent, "VERIFIED")
        assert (await fleet.agent_row(other)).state == fleet_pb2.AGENT_STATE_VERIFIED


async def test_a_revoked_agents_tunnel_is_ended_and_not_let_in_again(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key, carrier=Carrier.TUNNEL) as fleet:
        admin = offline(fleet, Role.ADMIN, "ada")
        agent = await fleet.add_agent()
        assert fleet.controller.client.is_connected(agent.agent_id)
        await revoke(admin, subject=f"spiffe://{FLEET}/agent/{agent.agent_id}")

        async def is_gone() -> bool:
            return not fleet.controller.client.is_connected(agent.agent_id)

        await eventually(is_gone, "the tunnel is gone")
        credentials = grpc.ssl_channel_credentials(agent.ca_pem, agent.key_pem, agent.certificate_pem)
        options = (("grpc.ssl_target_name_override", controller_dns_name(FLEET)),)
        address = f"127.0.0.1:{fleet.controller.tunnel_port}"
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            call: Any = channel.stream_stream(OPEN_TUNNEL)(timeout=20)
            assert await refusal(call.read()) == "CERTIFICATE_REVOKED"


async def test_a_revocation_is_audited_and_told(fleet: TestFleet, admin: Operator) -> None:
    otto = await issued(fleet, admin, "operator", "otto")
    await revoke(admin, serial=otto.serial)
    entries = await fleet.controller.store.audit_page(0, 1000)
    assert [entry.principal for entry in entries if entry.action == "certificate.revoke"] == [
        f"spiffe://{FLEET}/operator/admin/ada"
    ]
    stream = admin.fleet.WatchEvents(fleet_pb2.WatchEventsRequest(last_events=10))
    reasons = [told.happened.detail["reason"] async for told in stream if told.happened.detail.get("serial") == otto.serial]
    assert reasons == [WHY]


async def test_what_was_never_issued_cannot_be_revoked(fleet: TestFleet, admin: Operator) -> None:
    assert await refusal(revoke(admin, serial="0" * 40)) == "CERTIFICATE_NOT_FOUND"
    assert await refusal(revoke(admin, subject=f"spiffe://{FLEET}/operator/admin/nobody")) == "CERTIFICATE_NOT_FOUND"
    assert await refusal(revoke(admin, serial="xyz")) == "INVALID_ARGUMENT"
    assert await refusal(revoke(admin, subject=f"spiffe://{FLEET}/controller/main")) == "INVALID_ARGUMENT"


async def test_a_stream_ends_with_its_callers_certificate(fleet: TestFleet, admin: Operator) -> None:
    short = offline(fleet, Role.VIEWER, "vera", timedelta(seconds=3))
    stream = events_of(short)

    async def drained() -> None:
        async for _ in stream:
            pass

    async with asyncio.timeout(20):
        assert await refusal(drained()) == "CERTIFICATE_EXPIRED"
    assert datetime.now(UTC) >= certificate_not_after(short.pem)
    assert await refusal(short.fleet.ListAgents(fleet_pb2.ListAgentsRequest())) == "CERTIFICATE_EXPIRED"


# ---- operators' certificates


async def test_a_renewal_keeps_name_and_role(fleet: TestFleet, admin: Operator) -> None:
    vera = await issued(fleet, admin, "viewer", "vera", hours=2)
    answer = await vera.certificates.RenewOperatorCertificate(pb.RenewOperatorCertificateRequest(csr=make_csr(vera.key)))
    assert identity_of_certificate(answer.certificate_pem).uri == f"spiffe://{FLEET}/operator/viewer/vera"
    length = certificate_not_after(answer.certificate_pem) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < length <= timedelta(hours=2)
    assert spki_sha256(answer.certificate_pem) == spki_sha256(vera.pem)


@pytest.mark.parametrize("by", ["serial", "subject"])
@pytest.mark.parametrize("call", ["RenewOperatorCertificate", "IssueOperatorCertificate"])
async def test_a_certificate_that_was_asked_for_before_the_revocation_does_not_outlive_it(
    fleet: TestFleet, admin: Operator, monkeypatch: pytest.MonkeyPatch, by: str, call: str
) -> None:
    """Who holds a stolen key can ask for the next certificate in a loop: one request is always under way."""
    eve = await issued(fleet, admin, "admin", "eve", hours=2)
    store = fleet.controller.store
    is_revoked_key = store.is_revoked_key

    async def slow(subject: str, spki: bytes) -> bool:
        answer = await is_revoked_key(subject, spki)
        monkeypatch.setattr(store, "is_revoked_key", is_revoked_key)
        await revoke(admin, **({"serial": eve.serial} if by == "serial" else {"subject": f"spiffe://{FLEET}/operator/admin/eve"}))
        return answer

    monkeypatch.setattr(store, "is_revoked_key", slow)
    csr = make_csr(generate_key())
    request = pb.RenewOperatorCertificateRequest(csr=csr)
    if call.startswith("Issue"):
        request = pb.IssueOperatorCertificateRequest(csr=csr, name="mallory", role="admin")
    assert await refusal(getattr(eve.certificates, call)(request)) == "CERTIFICATE_REVOKED"


async def test_a_renewal_cannot_lengthen_a_certificate(fleet: TestFleet, admin: Operator) -> None:
    vera = await issued(fleet, admin, "viewer", "vera", hours=2)
    request = pb.RenewOperatorCertificateRequest(csr=make_csr(vera.key))
    request.lifetime.FromTimedelta(timedelta(hours=3))
    assert await refusal(vera.certificates.RenewOperatorCertificate(request)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"role": "agent"}, "role"),
        ({"role": "root"}, "role"),
        ({"name": "Otto!"}, "name"),
        ({"csr": b"none"}, "csr"),
        ({"seconds": 59 * 60}, "lifetime"),
        ({"seconds": 366 * 86400}, "lifetime"),
    ],
)
async def test_a_bad_request_names_its_field(fleet: TestFleet, admin: Operator, changes: dict[str, Any], field: str) -> None:
    seconds = changes.pop("seconds", 86400)
    values = {"csr": make_csr(generate_key()), "name": "otto", "role": "operator", **changes}
    request = pb.IssueOperatorCertificateRequest(**values)
    request.lifetime.FromSeconds(seconds)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await admin.certificates.IssueOperatorCertificate(request)
    assert field in str(status_of(refused.value))


# ---- the first administrator


async def test_a_fleet_made_anew_over_an_old_database_is_not_served(tmp_path: Path, release_key: ReleaseKey) -> None:
    """Whoever empties the state directory and runs `init` again is the administrator of nothing."""
    database = f"sqlite:///{tmp_path / 'kept.db'}"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with running_fleet(tmp_path / "one", release_key, database_url=database):
        pass
    with pytest.raises(ConfigError, match="another CA"):
        async with running_fleet(tmp_path / "two", release_key, database_url=database):
            pass


async def test_a_recovered_administrator_replaces_every_other_one(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        ada = await issued(fleet, offline(fleet, Role.ADMIN, "first"), "admin", "ada")
        config = fleet.config
    options = ["--out", str(tmp_path / "new"), "--config", str(fleet.directory / "controller.toml"), "--host", "127.0.0.1"]
    assert CliRunner().invoke(app, ["recover-admin", "nina", *options]).exit_code == 0
    for _ in range(2):
        controller = Controller(config)
        async with controller.running():
            fleet.controller = controller
            nina = Operator(fleet, (tmp_path / "new" / "nina.key").read_bytes(), (tmp_path / "new" / "nina.crt").read_bytes())
            states = {row.subject.rpartition("/")[2]: row.state for row in await register(nina, role="admin")}
            assert states == {
                "nina": pb.CERTIFICATE_STATE_VALID,
                "ada": pb.CERTIFICATE_STATE_REVOKED,
                "admin": pb.CERTIFICATE_STATE_REVOKED,
            }
            again = Operator(fleet, ada.key, ada.pem)
            assert await refusal(again.fleet.ListAgents(fleet_pb2.ListAgentsRequest())) == "CERTIFICATE_REVOKED"
            await asyncio.gather(nina.channel.close(), again.channel.close())


# ---- the change of the CA


async def rotate(admin: Operator, stage: pb.RotationStage.ValueType, *, force: bool = False) -> Any:
    request = pb.RotateAuthorityRequest(stage=stage, force=force, reason="yearly")
    return (await admin.certificates.RotateAuthority(request)).authorities


async def test_the_fleet_goes_from_one_ca_to_the_next_while_a_stream_runs(fleet: TestFleet, admin: Operator) -> None:
    agent = await fleet.add_agent()
    old = fleet.ca
    stream = admin.fleet.WatchFlows(fleet_pb2.WatchFlowsRequest(subscription={"follow": True}))
    seen: list[int] = []

    async def count() -> None:
        async for message in stream:
            seen.extend(record.flow_id for record in message.batch.records)

    counting = asyncio.ensure_future(count())
    agent.add_records(10)
    # 1: trusted, and agents learn it with their next certificate
    prepared = await rotate(admin, pb.ROTATION_STAGE_PREPARED)
    assert len(CaBundle.parse(prepared.ca_pem).certificates) == 2
    assert await refusal(rotate(admin, pb.ROTATION_STAGE_ACTIVATED)) == "ROTATION_CUTS_OFF"
    result = await agent.join(await fleet.join_file())
    assert CaBundle.parse(result.ca_pem).sha256 == CaBundle.parse(prepared.ca_pem).sha256
    await agent.restart()
    await fleet.wait_for_state(agent, "VERIFIED")
    assert agent.lease is not None
    assert agent.lease.ca_bundle_sha256 == CaBundle.parse(prepared.ca_pem).sha256
    agent.add_records(10)
    # 2: it issues; peers that know only the old one are served still
    await rotate(admin, pb.ROTATION_STAGE_ACTIVATED)
    newcomer = await issued(fleet, admin, "admin", "nina")
    assert CaBundle.parse(fleet.ca.certificate_pem).issuer_of(load_certificate(newcomer.pem)) is not None
    async with operator_channel(
        f"127.0.0.1:{fleet.controller.operator_port}", old.certificate_pem, admin.key, admin.pem, FLEET
    ) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        await stub.ListAgents(fleet_pb2.ListAgentsRequest())
    assert await refusal(rotate(newcomer, pb.ROTATION_STAGE_NONE)) == "ROTATION_CUTS_OFF"
    await agent.join(await fleet.join_file())
    await agent.restart()
    await fleet.wait_for_state(agent, "VERIFIED")
    agent.add_records(10)
    await eventually(lambda: _equal(seen, agent.sequences()), "every record came once")
    # 3: the old one is not trusted any more, in streams under way neither
    await rotate(newcomer, pb.ROTATION_STAGE_NONE, force=True)
    async with asyncio.timeout(5):
        assert await refusal(counting) == "CERTIFICATE_UNTRUSTED"
    assert await refusal(admin.fleet.ListAgents(fleet_pb2.ListAgentsRequest())) in {"CERTIFICATE_UNTRUSTED", "UNAVAILABLE"}
    await newcomer.fleet.ListAgents(fleet_pb2.ListAgentsRequest())
    stranger = Operator(fleet, *_leaf_of(old, Role.ADMIN, "ada"))
    assert await refusal(stranger.fleet.ListAgents(fleet_pb2.ListAgentsRequest())) == "UNAVAILABLE"
    states = {row.state for row in await register(newcomer) if row.subject.endswith("/operator/admin/admin")}
    assert states == {pb.CERTIFICATE_STATE_UNTRUSTED}
    await fleet.controller.store.verify_audit()


async def _equal(seen: list[int], sent: list[int]) -> bool:
    assert len(seen) == len(set(seen)), "a record came twice"
    return seen == sent


def _leaf_of(ca: FleetCA, role: Role, name: str) -> tuple[bytes, bytes]:
    key = generate_key()
    return key, ca.issue(Identity(fleet=FLEET, role=role, name=name), public_key_of(key), timedelta(hours=1))


async def test_the_stages_come_in_their_order(fleet: TestFleet, admin: Operator) -> None:
    assert await refusal(rotate(admin, pb.ROTATION_STAGE_ACTIVATED)) == "ROTATION_STAGE"
    assert await refusal(rotate(admin, pb.ROTATION_STAGE_NONE)) == "ROTATION_STAGE"
    await rotate(admin, pb.ROTATION_STAGE_PREPARED)
    assert await refusal(rotate(admin, pb.ROTATION_STAGE_PREPARED)) == "ROTATION_STAGE"
    given_up = await rotate(admin, pb.ROTATION_STAGE_NONE)
    assert [authority.role for authority in given_up.authorities] == ["issuing"]
    assert fleet.controller.authorities.stage is Stage.NONE


async def test_the_audit_chain_can_be_verified_over_a_change_of_the_ca(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key) as fleet:
        admin = offline(fleet, Role.ADMIN, "ada")
        for stage in (pb.ROTATION_STAGE_PREPARED, pb.ROTATION_STAGE_ACTIVATED, pb.ROTATION_STAGE_NONE):
            await fleet.controller.store.checkpoint()
            await rotate(admin, stage, force=True)
        await fleet.controller.store.checkpoint()
        config = fleet.config
        checkpoints = await fleet.controller.store.audit_checkpoints(0, 100)
        assert len(checkpoints.signer_certificates) == 2
    controller = Controller(config)
    async with controller.running():
        await controller.store.verify_audit()
        controller.checkpointer.ca_pem = controller.authorities.bundle.pem
        with pytest.raises(AuditError, match="not certified"):
            await controller.store.verify_audit()


async def test_a_crash_between_two_renames_is_finished_at_the_next_start(fleet: TestFleet, admin: Operator) -> None:
    await rotate(admin, pb.ROTATION_STAGE_PREPARED)
    (fleet.directory / "ca").rename(fleet.directory / "ca-previous")
    again = Controller(fleet.config)
    assert again.authorities.stage is Stage.ACTIVATED


# ---- rotation of what is in use


async def test_the_controllers_renewal_loses_and_repeats_no_record(fleet: TestFleet, admin: Operator) -> None:
    agent = await fleet.add_agent()
    stream = admin.fleet.WatchFlows(fleet_pb2.WatchFlowsRequest(subscription={"follow": True}))
    seen: list[int] = []

    async def count() -> None:
        async for message in stream:
            seen.extend(record.flow_id for record in message.batch.records)

    counting = asyncio.ensure_future(count())
    for turn in range(1, 4):
        agent.add_records(10)
        assert fleet.controller.credentials.renew_if_due(now=datetime.now(UTC) + timedelta(days=21))
        outcome = await fleet.controller.attester.attest(agent.agent_id)
        assert outcome.status.code == 0, turn
        agent.add_records(10)
    await eventually(lambda: _equal(seen, agent.sequences()), "every record came once", seconds=30)
    assert not counting.done()
    counting.cancel()


def test_a_peer_without_a_certificate_is_nobodys_to_deny() -> None:
    class Nobody:
        def auth_context(self) -> dict[str, list[bytes]]:
            return {}

    assert DenyList(()).admit(Nobody()) is None  # type: ignore[arg-type]
