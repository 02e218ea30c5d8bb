# SPDX-License-Identifier: Apache-2.0
"""Tunnels over real mTLS: who may have one, what their holders may not do, renewal, replacement, a fleet that comes back at once.

JARVIS_RETURNING_AGENTS=2000 (make returning) makes the last as large as it is meant; else it is what the tests can afford.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import code_pb2, error_details_pb2, status_pb2
from jarvis.capture.v1 import capture_pb2, fleet_pb2, tunnel_pb2
from jarvis_agent.tunnel import Tunnel, TunnelRetry
from jarvis_agent.tunnel_link import CALL_ID_KEY, CHANNEL_OPTIONS, OPEN_TUNNEL, SEND_MESSAGES, Dialled
from jarvis_controller.agent_record import Carrier
from jarvis_controller.records import EnrolledAgent
from jarvis_controller.rpc_status import RpcError, status_of
from jarvis_controller.states import Event, State
from jarvis_trust.ca import generate_key, public_key_of, spki_sha256
from jarvis_trust.identities import Identity, Role, controller_dns_name
from jarvis_trust.joinfile import new_token
from jarvis_trust.status import reason_of

from testbed.policy import PolicyText
from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import FakeAgent, records_batch
from tests.unit.controller.fleet import FLEET, TestFleet, eventually, running_fleet

HELLO = tunnel_pb2.OpenTunnelRequest(hello=tunnel_pb2.TunnelHello(session_id=bytes(16), version="1.0.0")).SerializeToString()


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key, carrier=Carrier.TUNNEL) as made:
        yield made


@dataclass(slots=True)
class Certified:
    """A key and the certificate that the fleet's CA gave it."""

    key_pem: bytes
    certificate_pem: bytes

    def channel(self, fleet: TestFleet) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(fleet.ca.certificate_pem, self.key_pem, self.certificate_pem)
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", controller_dns_name(FLEET)))
        return grpc.aio.secure_channel(f"127.0.0.1:{fleet.controller.tunnel_port}", credentials, options=options)


def certified(fleet: TestFleet, role: Role, name: str) -> Certified:
    key = generate_key()
    return Certified(key, fleet.ca.issue(Identity(fleet=FLEET, role=role, name=name), public_key_of(key), timedelta(hours=1)))


def of(agent: FakeAgent) -> Certified:
    return Certified(agent.key_pem, agent.certificate_pem)


async def opened(fleet: TestFleet, who: Certified, *frames: bytes) -> str:
    """Opens a tunnel and sends frames; the reason that it ends with, or what its first frame was."""
    async with who.channel(fleet) as channel:
        call: Any = channel.stream_stream(OPEN_TUNNEL)(timeout=20)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for frame in frames:
                await call.write(frame)
        return await ended(call)


async def ended(call: Any) -> str:
    got = []
    try:
        async for payload in call:
            got.append(str(tunnel_pb2.OpenTunnelResponse.FromString(payload).WhichOneof("frame")))
            if got == ["welcome"]:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await call.code()
                if not call.done():
                    return "welcome"
    except grpc.aio.AioRpcError as error:
        status = status_of(error)
        return reason_of(status) or grpc.StatusCode(error.code()).name
    return "ended"


# ---- who may have one


async def test_an_agent_that_is_not_enrolled_gets_none(fleet: TestFleet) -> None:
    assert await opened(fleet, certified(fleet, Role.AGENT, "a" * 32), HELLO) == "AGENT_NOT_FOUND"


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.ADMIN, Role.CONTROLLER])
async def test_nobody_but_agents_is_heard_on_the_tunnel_port(fleet: TestFleet, role: Role) -> None:
    who = certified(fleet, role, "mallory")
    assert await opened(fleet, who, HELLO) == "ROLE_DENIED"
    async with who.channel(fleet) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.stream_unary(SEND_MESSAGES)(iter([b""]))
        assert reason_of(status_of(refused.value)) == "ROLE_DENIED"


async def test_a_certificate_of_the_fleet_for_another_key_is_refused_and_audited(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    assert await opened(fleet, certified(fleet, Role.AGENT, agent.agent_id), HELLO) == "CERTIFICATE_NOT_ON_RECORD"
    assert fleet.controller.tunnels.is_connected(agent.agent_id), "the genuine tunnel goes on"
    stub = await fleet.stub(Role.VIEWER)
    events = (await stub.ListAuditEvents(fleet_pb2.ListAuditEventsRequest(page_size=1000))).events
    assert any("CERTIFICATE_NOT_ON_RECORD" in event.SerializeToString().decode("latin-1") for event in events)


async def test_the_certificate_without_its_key_is_of_no_use(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stolen = Certified(generate_key(), agent.certificate_pem)
    assert await opened(fleet, stolen, HELLO) == "UNAVAILABLE"


async def test_an_agent_that_enrolled_to_be_dialled_gets_none(fleet: TestFleet) -> None:
    agent = await fleet.add_agent(carrier=Carrier.DIRECT)
    assert await opened(fleet, of(agent), HELLO) == "CARRIER_MISMATCH"


async def test_a_retired_agent_is_hung_up_on_and_not_let_in_again(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.ADMIN)
    answer = await stub.RetireAgent(fleet_pb2.RetireAgentRequest(agent_id=agent.agent_id, reason="test"))
    assert not answer.agent.connected
    assert agent.lease is not None
    assert agent.lease.duration_ns == 1, "it was told that its lease is over before"
    assert await opened(fleet, of(agent), HELLO) == "AGENT_RETIRED"


async def test_a_quarantined_agent_stays_connected_and_is_attested_when_it_is_released(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    stub = await fleet.stub(Role.ADMIN)
    quarantined = await stub.QuarantineAgent(fleet_pb2.QuarantineAgentRequest(agent_id=agent.agent_id, reason="test"))
    assert quarantined.agent.connected
    assert agent.lease is not None
    assert agent.lease.duration_ns == 1
    await stub.ReleaseAgent(fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id, reason="test"))
    await fleet.wait_for_state(agent, "VERIFIED")
    row = await fleet.agent_row(agent)
    assert (row.connected, row.channel_bound, row.carrier) == (True, True, Carrier.TUNNEL.wire)


# ---- what comes up


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ((b"\xff" * 64,), "INVALID_ARGUMENT"),
        ((b"",), "INVALID_ARGUMENT"),
        ((tunnel_pb2.OpenTunnelRequest(answer={"call_id": 1}).SerializeToString(),), "INVALID_ARGUMENT"),
        ((tunnel_pb2.OpenTunnelRequest(hello={"session_id": b"1", "version": "1"}).SerializeToString(),), "INVALID_ARGUMENT"),
        (
            (tunnel_pb2.OpenTunnelRequest(hello={"session_id": bytes(16), "version": "\n"}).SerializeToString(),),
            "INVALID_ARGUMENT",
        ),
        ((HELLO, HELLO), "INVALID_ARGUMENT"),
        ((HELLO, tunnel_pb2.OpenTunnelRequest(answer={"call_id": 999_999}).SerializeToString()), "TUNNEL_ANSWER_UNKNOWN"),
        ((HELLO, tunnel_pb2.OpenTunnelRequest(answer={"payload": bytes(10 << 20)}).SerializeToString()), "RESOURCE_EXHAUSTED"),
    ],
    ids=["garbage", "empty", "no hello", "short session", "version", "two hellos", "answer to nothing", "oversized"],
)
async def test_a_frame_that_is_out_of_place_ends_the_tunnel(fleet: TestFleet, frames: tuple[bytes, ...], reason: str) -> None:
    agent = await fleet.add_agent()
    await agent.stop()
    assert await opened(fleet, of(agent), *frames) == reason


async def test_messages_for_another_agents_call_are_refused_and_that_stream_goes_on(fleet: TestFleet) -> None:
    agent, other = await fleet.add_agent(), await fleet.add_agent()
    agent.add_records(3)
    stub = await fleet.stub(Role.VIEWER)
    request = fleet_pb2.WatchFlowsRequest(subscription=capture_pb2.FlowSubscription(follow=True))
    request.selector.agent_ids.append(agent.agent_id)
    stream = stub.WatchFlows(request)
    assert (await until_batch(stream)).batch.records[0].flow_id == 1
    own = fleet.controller.tunnels._sessions[other.agent_id]._calls
    theirs = fleet.controller.tunnels._sessions[agent.agent_id]._calls
    assert theirs
    reasons = set()
    async with of(other).channel(fleet) as channel:
        for call_id in (set(range(1, 40)) | set(theirs)) - set(own):
            forged = tunnel_pb2.SendMessagesRequest(message=records_batch(1000, 1)).SerializeToString()
            call: Any = channel.stream_unary(SEND_MESSAGES)(metadata=((CALL_ID_KEY, str(call_id)),))
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await call.write(forged)
                await call.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            reasons.add(reason_of(status_of(refused.value)))
    assert reasons == {"CALL_UNKNOWN"}
    agent.add_records(1)
    assert [record.flow_id for record in (await until_batch(stream)).batch.records] == [4]
    stream.cancel()


@pytest.mark.parametrize("call_id", ["", "0", "-1", "x", "1" * 20])
async def test_a_call_id_that_is_none_is_named(fleet: TestFleet, call_id: str) -> None:
    agent = await fleet.add_agent()
    async with of(agent).channel(fleet) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.stream_unary(SEND_MESSAGES)(iter([b""]), metadata=((CALL_ID_KEY, call_id),))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert CALL_ID_KEY in str(refused.value.details())


async def until_batch(stream: Any) -> fleet_pb2.WatchFlowsResponse:
    async with asyncio.timeout(20):
        while (answer := await stream.read()).WhichOneof("event") != "batch":
            pass
        found: fleet_pb2.WatchFlowsResponse = answer
        return found


# ---- replacement and renewal


async def test_another_process_of_the_agent_takes_over_and_the_olders_calls_end(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    record = await fleet.controller.store.agent(agent.agent_id)
    assert record is not None
    session = fleet.controller.tunnels.connect(record)
    waiting = asyncio.ensure_future(session.unary("NoSuchMethod", b"", (), 10.0))
    other = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(other[0], RpcError)
    agent.tpm.session_id = secrets.token_bytes(16)
    assert await opened(fleet, of(agent), HELLO) == "welcome"
    assert session.ended is not None
    assert reason_of(session.ended.status) == "TUNNEL_REPLACED"


@pytest.mark.parametrize("same_key", [True, False], ids=["same key", "new key"])
async def test_a_renewed_certificate_goes_over_a_new_tunnel_and_no_record_is_lost_or_repeated(
    fleet: TestFleet, *, same_key: bool
) -> None:
    agent = await fleet.add_agent()
    agent.add_records(5)
    stub = await fleet.stub(Role.VIEWER)
    stream = stub.WatchFlows(fleet_pb2.WatchFlowsRequest(subscription=capture_pb2.FlowSubscription(follow=True)))
    flows = [record.flow_id for record in (await until_batch(stream)).batch.records]
    record = await fleet.controller.store.agent(agent.agent_id)
    assert record is not None
    before = fleet.controller.tunnels.connect(record)
    if same_key:
        identity = Identity(fleet=FLEET, role=Role.AGENT, name=agent.agent_id)
        agent.certificate_pem = fleet.ca.issue(identity, public_key_of(agent.key_pem), timedelta(hours=1))
    else:
        await agent.join(await fleet.join_file(), token="")

    async def replaced() -> bool:
        agent.add_records(1)
        return fleet.controller.tunnels._sessions.get(agent.agent_id) not in {None, before}

    await eventually(replaced, "the new tunnel is in use")
    agent.add_records(1)
    last = agent.sequences()[-1]
    while flows[-1] < last:
        answer = await until_batch(stream)
        flows += [record.flow_id for record in answer.batch.records]
    assert flows == list(range(1, last + 1))
    attested = fleet_pb2.AttestAgentsRequest(selector=fleet_pb2.AgentSelector(agent_ids=[agent.agent_id]))
    operator = await fleet.stub(Role.OPERATOR)
    (answer,) = [answer async for answer in operator.AttestAgents(attested)]
    assert (answer.status.code, answer.agent.channel_bound) == (code_pb2.OK, True)
    stream.cancel()


async def test_a_tunnel_whose_certificate_is_over_is_ended(
    tmp_path: Path, release_key: ReleaseKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jarvis_controller.tunnel_service._SWEEP_S", 0.1)
    async with running_fleet(tmp_path, release_key, carrier=Carrier.TUNNEL) as fleet:
        agent = await fleet.add_agent()
        record = await fleet.controller.store.agent(agent.agent_id)
        assert record is not None
        session = fleet.controller.tunnels.connect(record)
        session.not_after_s = 0.0

        async def over() -> bool:
            return session.ended is not None

        await eventually(over, "the tunnel is ended")
        assert session.ended is not None
        assert reason_of(session.ended.status) == "CERTIFICATE_EXPIRED"


# ---- a fleet that comes back at once


async def test_agents_that_all_come_back_at_once_do_not_starve_one_that_is_attested(
    tmp_path: Path, release_key: ReleaseKey
) -> None:
    """Newcomers knock and hold attestation slots as long as they can; the honest one keeps its lease and loses no record."""
    count = int(os.environ.get("JARVIS_RETURNING_AGENTS", "300"))
    policy = PolicyText(interval_s=1.0, lease_s=6.0)
    settings = {"tunnel_hellos_per_s": max(50.0, count / 10), "attest_concurrency": 8, "agent_timeout_s": 2.0}
    async with running_fleet(tmp_path, release_key, carrier=Carrier.TUNNEL, policy=policy, **settings) as fleet:
        honest = await fleet.add_agent()
        stub = await fleet.stub(Role.VIEWER)
        request = fleet_pb2.WatchFlowsRequest(subscription=capture_pb2.FlowSubscription(follow=True))
        request.selector.agent_ids.append(honest.agent_id)
        stream = stub.WatchFlows(request)
        crowd = [await newcomer(fleet) for _ in range(count)]
        leases: list[int] = []
        meeting = asyncio.ensure_future(note_leases(fleet, honest, leases))
        tunnels = [asyncio.ensure_future(member.run()) for member in crowd]
        flows, loop = [], asyncio.get_running_loop()
        until = loop.time() + 12.0 + count / 100
        while loop.time() < until or not all(member.is_open for member in crowd):
            honest.add_records(10)
            while not flows or flows[-1] < honest.sequences()[-1]:
                answer = await asyncio.wait_for(stream.read(), 30.0)
                assert answer.WhichOneof("event") != "loss"
                flows += [record.flow_id for record in answer.batch.records]
            await asyncio.sleep(0.2)
            assert loop.time() < until + 120.0, f"{sum(member.is_open for member in crowd)} of {count} are in"
        meeting.cancel()
        for task in tunnels:
            task.cancel()
        await asyncio.gather(*tunnels, *(member.stop(0.0) for member in crowd), meeting, return_exceptions=True)
        stream.cancel()
        assert flows == honest.sequences(), "a record was lost or came twice"
        assert len(set(leases)) >= 4, "its lease was renewed meanwhile"
        assert 0 not in leases, "there was a moment without a lease"
        record = await fleet.controller.store.agent(honest.agent_id)
        assert record is not None
        assert record.state is State.VERIFIED


async def note_leases(fleet: TestFleet, agent: FakeAgent, leases: list[int]) -> None:
    while True:
        held = fleet.controller.leases.get(agent.agent_id)
        leases.append(0 if held is None else held.sequence)
        await asyncio.sleep(0.05)


async def newcomer(fleet: TestFleet) -> Tunnel:
    """An agent on record without a TPM behind it: it can come, and cannot be attested; each challenge takes it two seconds."""
    agent_id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(32))
    who = certified(fleet, Role.AGENT, agent_id)
    token = new_token()
    store = fleet.controller.store
    await store.create_token(token, {}, 3600 * 10**9, principal="test")
    await store.enroll(
        EnrolledAgent(
            agent_id=agent_id,
            ek_certificate=b"of a TPM",
            ek_public=b"that nobody",
            ak_public=b"will see",
            ak_name=secrets.token_bytes(34),
            tls_spki=spki_sha256(who.certificate_pem),
            certificate_expire_ns=2**62,
            address="",
            hostname="crowd",
            version="1.0.0",
            carrier=Carrier.TUNNEL,
        ),
        token,
    )
    await store.change_state(agent_id, Event.CONTACT_LOST, "the controller restarted")

    async def attest(_payload: bytes, context: Any) -> bytes:
        await asyncio.sleep(1.9)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no TPM")
        raise AssertionError

    handlers = {"Attest": grpc.unary_unary_rpc_method_handler(attest)}
    return Tunnel(
        dial=lambda: Dialled(channel=who.channel(fleet), certificate_pem=who.certificate_pem),
        certificate=lambda: who.certificate_pem,
        handlers=grpc.method_handlers_generic_handler("jarvis.capture.v1.AgentService", handlers),
        hello=tunnel_pb2.TunnelHello(session_id=secrets.token_bytes(16), version="1.0.0"),
        retry=TunnelRetry(first_s=0.5, longest_s=60.0),
    )


async def test_one_that_is_sent_away_is_told_when_to_come_back(tmp_path: Path, release_key: ReleaseKey) -> None:
    async with running_fleet(tmp_path, release_key, carrier=Carrier.TUNNEL, tunnel_hellos_per_s=1.0) as fleet:
        who = certified(fleet, Role.AGENT, "a" * 32)

        async def knock(channel: grpc.aio.Channel) -> status_pb2.Status:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.stream_stream(OPEN_TUNNEL)(timeout=30).read()  # who is let in is waited for: nothing is said
            return status_of(refused.value)

        async with who.channel(fleet) as channel:
            knocking = [asyncio.ensure_future(knock(channel)) for _ in range(20)]
            done, let_in = await asyncio.wait(knocking, timeout=5.0)
            for task in let_in:
                task.cancel()
            await asyncio.gather(*let_in, return_exceptions=True)
        statuses = [task.result() for task in done]
        assert statuses, "not everybody is let in at once"
        assert {reason_of(status) for status in statuses} == {"TUNNEL_BUSY"}
        waits = [info.retry_delay.ToTimedelta().total_seconds() for status in statuses if (info := retry_info(status))]
        assert len(waits) == len(statuses)
        assert len(set(waits)) == len(waits), "each has a place in time of its own"


def retry_info(status: status_pb2.Status) -> error_details_pb2.RetryInfo | None:
    info = error_details_pb2.RetryInfo()
    return next((info for detail in status.details if detail.Unpack(info)), None)


async def test_one_agent_that_says_nothing_in_many_tunnels_takes_no_place_from_the_others(fleet: TestFleet) -> None:
    """Each tunnel that is begun has seconds for its hello: one agent's silence must not be everybody's wait."""
    silent = of(await fleet.add_agent())
    async with silent.channel(fleet) as channel:
        begun: list[Any] = [channel.stream_stream(OPEN_TUNNEL)(timeout=20) for _ in range(100)]
        reasons = [asyncio.ensure_future(ended(call)) for call in begun]

        async def most_were_refused() -> bool:
            return sum(done.done() for done in reasons) >= 80

        await eventually(most_were_refused, "most of them are sent away")
        assert {done.result() for done in reasons if done.done()} == {"TUNNEL_BUSY"}
        assert await opened(fleet, certified(fleet, Role.AGENT, "b" * 32), HELLO) == "AGENT_NOT_FOUND", "a newcomer is heard"
        for call in begun:
            call.cancel()
        await asyncio.gather(*reasons, return_exceptions=True)
