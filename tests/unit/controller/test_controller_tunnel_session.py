# SPDX-License-Identifier: Apache-2.0
"""One tunnel from the controller's side, without a network: calls, answers, streams, and agents that do not keep to the rules."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from google.rpc import code_pb2, status_pb2
from jarvis.capture.v1 import tunnel_pb2
from jarvis_controller.agent_carrier import connection_closed
from jarvis_controller.rpc_status import RpcError, refuse
from jarvis_controller.tunnel_session import StreamCall, TunnelSession
from jarvis_trust.status import reason_of


@pytest.fixture
def session() -> TunnelSession:
    return TunnelSession(
        agent_id="a" * 32,
        process_id=bytes(16),
        agent_spki=b"a" * 32,
        controller_spki=b"c" * 32,
        not_after_s=2e9,
        ids=itertools.count(7),
    )


async def next_frame(session: TunnelSession) -> tunnel_pb2.OpenTunnelResponse:
    data = await asyncio.wait_for(session.next_frame(), 2.0)
    assert data is not None
    return tunnel_pb2.OpenTunnelResponse.FromString(data)


def answer(call_id: int, payload: bytes = b"", **status: object) -> tunnel_pb2.CallAnswer:
    return tunnel_pb2.CallAnswer(call_id=call_id, payload=payload, status=status_pb2.Status(**status))


async def test_a_call_goes_down_as_a_frame_and_its_answer_comes_back(session: TunnelSession) -> None:
    call = asyncio.ensure_future(session.unary("GetStatus", b"request", (("jarvis-authorization-bin", b"\0"),), 2.0))
    frame = (await next_frame(session)).call
    assert frame.method == "/jarvis.capture.v1.AgentService/GetStatus"
    assert (frame.call_id, frame.payload, dict(frame.metadata)) == (7, b"request", {"jarvis-authorization-bin": b"\0"})
    assert frame.timeout_ns == 2_000_000_000
    session.answered(answer(7, b"answer"))
    assert await call == b"answer"


async def test_an_answer_to_nothing_and_a_second_answer_are_refused(session: TunnelSession) -> None:
    call = asyncio.ensure_future(session.unary("GetStatus", b"", (), 2.0))
    call_id = (await next_frame(session)).call.call_id
    session.answered(answer(call_id))
    await call
    for replayed in (call_id, 99):
        with pytest.raises(RpcError) as refused:
            session.answered(answer(replayed))
        assert reason_of(refused.value.status) == "TUNNEL_ANSWER_UNKNOWN"


async def test_a_call_that_was_given_up_is_cancelled_and_its_late_answer_taken_once(session: TunnelSession) -> None:
    call = asyncio.ensure_future(session.unary("Attest", b"", (), 0.05))
    call_id = (await next_frame(session)).call.call_id
    with pytest.raises(RpcError) as over:
        await call
    assert over.value.status.code == code_pb2.DEADLINE_EXCEEDED
    assert (await next_frame(session)).cancel.call_id == call_id
    session.answered(answer(call_id, code=code_pb2.CANCELLED))
    with pytest.raises(RpcError):
        session.answered(answer(call_id, code=code_pb2.CANCELLED))


@pytest.mark.parametrize("status", [{"code": 999}, {"code": -1}, {"code": 5, "message": "x" * 20_000}])
async def test_a_status_that_no_call_could_end_with_is_none(session: TunnelSession, status: dict[str, object]) -> None:
    call = asyncio.ensure_future(session.unary("GetStatus", b"", (), 2.0))
    session.answered(answer((await next_frame(session)).call.call_id, **status))
    with pytest.raises(RpcError) as refused:
        await call
    assert reason_of(refused.value.status) == "AGENT_ANSWER_MALFORMED"


async def test_a_stream_gives_what_was_put_before_its_end(session: TunnelSession) -> None:
    messages = session.stream("StreamFlows", b"", ())
    first = asyncio.ensure_future(anext(messages))
    call_id = (await next_frame(session)).call.call_id
    stream = session.attach(call_id)
    assert await stream.put(b"1")
    assert await stream.put(b"2")
    session.answered(answer(call_id, code=code_pb2.UNAVAILABLE, message="gone"))
    assert await first == b"1"
    assert await anext(messages) == b"2"
    with pytest.raises(RpcError) as ended:
        await anext(messages)
    assert ended.value.status.code == code_pb2.UNAVAILABLE


async def test_a_stream_whose_reader_is_slow_waits_and_one_whose_reader_left_takes_nothing(session: TunnelSession) -> None:
    stream = StreamCall()
    assert await stream.put(b"1")
    assert await stream.put(b"2")
    third = asyncio.ensure_future(stream.put(b"3"))
    await asyncio.sleep(0.01)
    assert not third.done()
    assert await stream.next() == b"1"
    assert await third
    waiting = asyncio.ensure_future(stream.put(b"4"))
    await asyncio.sleep(0.01)
    stream.end(None)
    assert not await waiting


async def test_a_stream_is_attached_once_and_only_to_a_call_that_streams(session: TunnelSession) -> None:
    messages = session.stream("StreamFlows", b"", ())
    reading = asyncio.ensure_future(anext(messages))
    streaming = (await next_frame(session)).call.call_id
    unary = asyncio.ensure_future(session.unary("GetStatus", b"", (), 5.0))
    single = (await next_frame(session)).call.call_id
    session.attach(streaming)
    reasons = []
    for call_id in (streaming, single, 12345):
        with pytest.raises(RpcError) as refused:
            session.attach(call_id)
        reasons.append(reason_of(refused.value.status))
    assert reasons == ["CALL_ATTACHED", "CALL_UNKNOWN", "CALL_UNKNOWN"]
    session.end(connection_closed())
    for task in (reading, unary):
        with pytest.raises(RpcError):
            await task


async def test_a_quarantine_ends_every_call_and_the_tunnel_stays(session: TunnelSession) -> None:
    call = asyncio.ensure_future(session.unary("GetStatus", b"", (), 5.0))
    call_id = (await next_frame(session)).call.call_id
    session.end_calls(connection_closed())
    with pytest.raises(RpcError) as ended:
        await call
    assert reason_of(ended.value.status) == "CONNECTION_CLOSED"
    assert (await next_frame(session)).cancel.call_id == call_id
    told = asyncio.ensure_future(session.unary("RenewLease", b"", (), 5.0))
    session.answered(answer((await next_frame(session)).call.call_id, b"ok"))
    assert await told == b"ok"


async def test_a_tunnel_that_was_replaced_answers_what_was_asked_and_ends_its_streams(session: TunnelSession) -> None:
    call = asyncio.ensure_future(session.unary("StartCapture", b"", (), 5.0))
    call_id = (await next_frame(session)).call.call_id
    messages = session.stream("StreamFlows", b"", ())
    reading = asyncio.ensure_future(anext(messages))
    await next_frame(session)
    session.drain(refuse(code_pb2.UNAVAILABLE, "TUNNEL_REPLACED", "newer"))
    with pytest.raises(RpcError) as ended:
        await reading
    assert reason_of(ended.value.status) == "TUNNEL_REPLACED"
    assert session.ended is None
    session.answered(answer(call_id, b"started"))
    assert await call == b"started"
    assert session.ended is not None


async def test_an_agent_that_does_not_read_loses_its_tunnel(session: TunnelSession) -> None:
    calls = [asyncio.ensure_future(session.unary("GetStatus", b"", (), 30.0)) for _ in range(1100)]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, RpcError) for error in ended)
    assert session.ended is not None
    assert reason_of(session.ended.status) == "TUNNEL_STALLED"


async def test_an_agent_that_answers_nothing_that_was_given_up_loses_its_tunnel(session: TunnelSession) -> None:
    async def read() -> None:
        while await session.next_frame() is not None:
            pass

    reader = asyncio.ensure_future(read())
    with contextlib.suppress(RpcError):
        for _ in range(1100):
            call = asyncio.ensure_future(session.unary("GetStatus", b"", (), 30.0))
            await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    await asyncio.wait_for(reader, 2.0)
    assert session.ended is not None
    assert reason_of(session.ended.status) == "TUNNEL_STALLED"
