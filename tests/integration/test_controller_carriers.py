# SPDX-License-Identifier: Apache-2.0
"""One table, every method of AgentService, both carriers: the same answers, errors, metadata, deadlines and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1 import agent_pb2
from jarvis_controller.agent_carrier import AgentConnection
from jarvis_controller.agent_record import Carrier
from jarvis_controller.rpc_status import RpcError
from jarvis_trust.status import bad_request_status, error_status, field_violations, reason_of

from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import Context, FakeAgent
from tests.unit.controller.fleet import TestFleet, eventually, running_fleet

SERVICE = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
UNARY = [method.name for method in SERVICE.methods if not method.server_streaming]
STREAMS = [method.name for method in SERVICE.methods if method.server_streaming]
METADATA = (("jarvis-authorization-bin", b"\0signed\xff"), ("other-bin", b""))
RICH = error_status(
    code_pb2.FAILED_PRECONDITION, "AGENT_UNATTESTED", "no lease: ä", metadata={"why": "test"}, retry_after_ns=1_500_000_000
)
BAD = bad_request_status([("spec.snaplen", "0: 64 to 65535 are accepted")])


async def abort(context: Context, status: status_pb2.Status) -> None:
    code = next(item for item in grpc.StatusCode if item.value[0] == status.code)
    await context.abort(code, status.message, trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),))


@dataclass(slots=True, kw_only=True)
class PlainAgent(FakeAgent):
    """Does what the payload says, whatever the method: what is compared is the way there and back."""

    waiting: int = 0
    """Calls that wait to be cancelled."""
    cancelled: list[str] = field(default_factory=list)
    sent: int = 0

    def handlers(self) -> dict[str, Any]:
        made = FakeAgent.handlers(self)
        kept = {name: made[name] for name in ("Attest", "RenewLease", "GetAgentInfo", "StreamEvents")}
        for name in UNARY:
            made[name] = grpc.unary_unary_rpc_method_handler(self._single(name, kept.get(name)))
        for name in STREAMS:
            made[name] = grpc.unary_stream_rpc_method_handler(self._many(name, kept.get(name)))
        return made

    def _single(self, name: str, kept: Any) -> Any:
        async def call(payload: bytes, context: Context) -> bytes:
            if not payload.startswith(b"do "):
                assert kept is not None, f"{name} was called by the controller itself"
                return bytes(kept.response_serializer(await kept.unary_unary(kept.request_deserializer(payload), context)))
            await self._refuse_or_wait(name, payload, context)
            return name.encode() + b"|" + payload + b"|" + seen(context)

        return call

    def _many(self, name: str, kept: Any) -> Any:
        async def call(payload: bytes, context: Context) -> AsyncIterator[bytes]:
            if not payload.startswith(b"do "):
                async for message in kept.unary_stream(payload, context):
                    yield message
                return
            for number in range(int(payload.rpartition(b" ")[2])):
                self.sent += 1
                yield b"%s|%d|" % (name.encode(), number) + (bytes(200_000) if b"large" in payload else seen(context))
            await self._refuse_or_wait(name, payload, context)

        return call

    async def _refuse_or_wait(self, name: str, payload: bytes, context: Context) -> None:
        match payload.split()[1]:
            case b"rich":
                await abort(context, RICH)
            case b"bad":
                await abort(context, BAD)
            case b"plain":
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
            case b"fault":
                raise RuntimeError("a fault")
            case b"wait":
                self.waiting += 1
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled.append(name)
                    raise


def seen(context: Context) -> bytes:
    metadata: Any = context.invocation_metadata()
    return b";".join(key.encode() + b"=" + value for key, value in sorted(metadata) if key.endswith("-bin"))


@dataclass(slots=True)
class Bed:
    fleet: TestFleet
    agents: dict[Carrier, Any]

    async def connection(self, carrier: Carrier) -> AgentConnection:
        record = await self.fleet.controller.store.agent(self.agents[carrier].agent_id)
        assert record is not None
        assert record.carrier is carrier
        return self.fleet.controller.client._carriers[carrier].connect(record)

    async def unary(self, carrier: Carrier, rpc: str, payload: bytes, *, timeout_s: float = 20.0) -> object:
        connection = await self.connection(carrier)
        try:
            return await connection.unary(rpc, payload, METADATA, timeout_s)
        except RpcError as error:
            return described(error)

    async def stream(self, carrier: Carrier, rpc: str, payload: bytes) -> list[object]:
        connection = await self.connection(carrier)
        got: list[object] = []
        try:
            async with contextlib.aclosing(connection.stream(rpc, payload, METADATA)) as messages:
                async for message in messages:
                    got.append(message)  # noqa: PERF401 - what came before an error is kept
        except RpcError as error:
            got.append(described(error))
        return got


def described(error: RpcError) -> tuple[object, ...]:
    """Everything that an operator could tell apart."""
    status = error.status
    details = [(detail.type_url, detail.value) for detail in status.details]
    return status.code, status.message, reason_of(status), field_violations(status), details


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory, release_key: ReleaseKey) -> AsyncIterator[Bed]:
    async with running_fleet(tmp_path_factory.mktemp("carriers"), release_key) as fleet:
        yield Bed(fleet, {carrier: await fleet.add_agent(kind=PlainAgent, carrier=carrier) for carrier in Carrier})


pytestmark = pytest.mark.asyncio(loop_scope="module")
AUTHORIZED = b"jarvis-authorization-bin=\0signed\xff;other-bin="


@pytest.mark.parametrize("rpc", UNARY)
async def test_a_unary_method_answers_the_same_and_sees_the_same_metadata(bed: Bed, rpc: str) -> None:
    expected = rpc.encode() + b"|do echo \0\xff|" + AUTHORIZED
    assert [await bed.unary(carrier, rpc, b"do echo \0\xff") for carrier in Carrier] == [expected] * 2


@pytest.mark.parametrize("rpc", STREAMS)
async def test_a_streaming_method_gives_the_same_messages_in_their_order(bed: Bed, rpc: str) -> None:
    expected = [b"%s|%d|" % (rpc.encode(), number) + AUTHORIZED for number in range(50)]
    assert [await bed.stream(carrier, rpc, b"do echo 50") for carrier in Carrier] == [expected] * 2


@pytest.mark.parametrize("rpc", STREAMS)
async def test_a_stream_of_nothing_ends_well(bed: Bed, rpc: str) -> None:
    assert [await bed.stream(carrier, rpc, b"do echo 0") for carrier in Carrier] == [[]] * 2


@pytest.mark.parametrize("way", ["rich", "bad", "plain", "fault"])
@pytest.mark.parametrize("rpc", UNARY)
async def test_a_refusal_arrives_with_the_same_status(bed: Bed, rpc: str, way: str) -> None:
    direct, tunnel = [await bed.unary(carrier, rpc, b"do " + way.encode()) for carrier in Carrier]
    assert direct == tunnel
    assert isinstance(direct, tuple)
    assert direct[0] == {"rich": 9, "bad": 3, "plain": 5, "fault": 2}[way]
    assert direct[2] == {"rich": "AGENT_UNATTESTED", "bad": "INVALID_ARGUMENT"}.get(way, "")


@pytest.mark.parametrize("way", ["rich", "bad", "plain", "fault"])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("rpc", STREAMS)
async def test_a_stream_that_ends_with_an_error_gives_what_came_before_it(bed: Bed, rpc: str, after: int, way: str) -> None:
    direct, tunnel = [await bed.stream(carrier, rpc, b"do %s %d" % (way.encode(), after)) for carrier in Carrier]
    assert direct == tunnel
    assert len(direct) == after + 1
    assert isinstance(direct[-1], tuple)


@pytest.mark.parametrize("rpc", UNARY)
async def test_a_deadline_ends_the_call_on_both_sides(bed: Bed, rpc: str) -> None:
    for carrier in Carrier:
        agent = bed.agents[carrier]
        for timeout_s in (0.2, 1.0, 5.0):  # on a busy machine the shortest is over before the call is there
            ended = await bed.unary(carrier, rpc, b"do wait", timeout_s=timeout_s)
            if agent.waiting:
                break
        assert isinstance(ended, tuple)
        assert (ended[0], ended[2]) == (code_pb2.DEADLINE_EXCEEDED, ""), "its text is gRPC's own, and of either side"
        await was_cancelled(agent, rpc)


@pytest.mark.parametrize("rpc", UNARY)
async def test_a_caller_that_gives_up_cancels_the_call_at_the_agent(bed: Bed, rpc: str) -> None:
    for carrier in Carrier:
        agent = bed.agents[carrier]
        before = agent.waiting
        call = asyncio.ensure_future(bed.unary(carrier, rpc, b"do wait"))
        await eventually(lambda agent=agent, before=before: reached(agent, before), "the call waits at the agent")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await was_cancelled(agent, rpc)


@pytest.mark.parametrize("rpc", STREAMS)
async def test_a_reader_that_goes_away_cancels_the_stream_at_the_agent(bed: Bed, rpc: str) -> None:
    for carrier in Carrier:
        connection = await bed.connection(carrier)
        async with contextlib.aclosing(connection.stream(rpc, b"do wait 2", METADATA)) as messages:
            assert (await anext(messages)).startswith(rpc.encode())
            assert (await anext(messages)).startswith(rpc.encode())
            agent = bed.agents[carrier]
            await eventually(lambda agent=agent: reached(agent, 0), "the stream waits at the agent")
        await was_cancelled(agent, rpc)


async def test_a_reader_that_does_not_read_holds_the_agent_back(bed: Bed) -> None:
    for carrier in Carrier:
        agent, connection = bed.agents[carrier], await bed.connection(carrier)
        agent.sent = 0
        async with contextlib.aclosing(connection.stream("StreamFlows", b"do large 1000", METADATA)) as messages:
            await anext(messages)
            await asyncio.sleep(1.0)
            assert agent.sent < 500, "HTTP/2 did not bound it"
            assert await bed.unary(carrier, "GetStatus", b"do echo") == b"GetStatus|do echo|" + AUTHORIZED, (
                "bulk delays no command"
            )


@pytest.mark.parametrize("rpc", STREAMS)
async def test_messages_as_large_as_a_batch_may_be_come_through(bed: Bed, rpc: str) -> None:
    direct, tunnel = [await bed.stream(carrier, rpc, b"do large 20") for carrier in Carrier]
    assert direct == tunnel
    assert [len(message) for message in tunnel if isinstance(message, bytes)] == [200_000 + len(rpc) + 3] * 10 + [
        200_000 + len(rpc) + 4
    ] * 10


async def test_a_method_that_is_not_served_is_said_so(bed: Bed) -> None:
    direct, tunnel = [await bed.unary(carrier, "NoSuchMethod", b"") for carrier in Carrier]
    assert direct == tunnel == (code_pb2.UNIMPLEMENTED, "Method not found!", "", [], [])


async def test_what_is_too_large_is_refused_and_the_connection_goes_on(bed: Bed) -> None:
    for carrier in Carrier:
        refused = await bed.unary(carrier, "GetStatus", b"do echo" + bytes(300 * 1024))
        assert isinstance(refused, tuple)
        assert refused[0] == code_pb2.RESOURCE_EXHAUSTED
        assert isinstance(await bed.unary(carrier, "GetStatus", b"do echo"), bytes)


async def reached(agent: PlainAgent, before: int) -> bool:
    return agent.waiting > before


async def was_cancelled(agent: PlainAgent, rpc: str) -> None:
    async def noted() -> bool:
        return rpc in agent.cancelled

    await eventually(noted, f"{rpc} is cancelled at the agent")
    agent.cancelled.clear()
    agent.waiting = 0
