# SPDX-License-Identifier: Apache-2.0
"""StreamEvents of an agent process: no lease needed, kept over its death, everything told before it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from jarvis.capture.v1 import agent_pb2 as pb
from jarvis.capture.v1 import event_pb2
from jarvis.capture.v1.capture_pb2 import CaptureSpec
from jarvis_agent.service import MAX_EVENT_STREAMS
from jarvis_trust.commands import AGENT_SERVICE

from tests.integration.swtpm.checks import reason_of
from tests.integration.swtpm.conftest import AgentProcess, MakeAgent, line_to
from tests.integration.swtpm.small_controller import AgentLine, SmallController

Running = tuple[AgentProcess, AgentLine]


class Journal:
    """One StreamEvents call."""

    def __init__(self, line: AgentLine, after: event_pb2.Event | None) -> None:
        request = pb.StreamEventsRequest()
        if after is not None:
            request.source_id, request.sequence = after.source_id, after.sequence
        method: Any = line.channel.unary_stream(
            AGENT_SERVICE + "StreamEvents", request_serializer=None, response_deserializer=None
        )
        self.call = method(request.SerializeToString())
        self.events: list[event_pb2.Event] = []

    @property
    def types(self) -> list[str]:
        return [event_pb2.EventType.Name(event.type).removeprefix("EVENT_TYPE_").lower() for event in self.events]

    async def until(self, kind: str) -> None:
        """Reads on until an event of this type has come."""
        async with asyncio.timeout(20):
            while kind not in self.types:
                data = await self.call.read()
                assert data is not grpc.aio.EOF, self.types
                self.events += pb.StreamEventsResponse.FromString(data).events

    async def end(self) -> None:
        while (data := await self.call.read()) is not grpc.aio.EOF:
            self.events += pb.StreamEventsResponse.FromString(data).events


@asynccontextmanager
async def journal_of(line: AgentLine, after: event_pb2.Event | None = None) -> AsyncIterator[Journal]:
    made = Journal(line, after)
    yield made
    made.call.cancel()


async def test_events_need_no_lease_and_tell_of_leases_and_captures(running: Running) -> None:
    _, line = running
    async with journal_of(line) as journal:
        await journal.until("agent_started")
        await line.take_lease(duration_ns=3 * 10**9)
        await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
        await journal.until("lease_expired")
        await journal.until("capture_paused")
        await line.take_lease()
        await journal.until("capture_resumed")
        await line.command("StopCapture", pb.StopCaptureRequest())
        await journal.until("capture_stopped")
    assert journal.types[:3] == ["agent_started", "lease_granted", "capture_started"]
    assert set(journal.types[3:5]) == {"lease_expired", "capture_paused"}
    assert set(journal.types[5:7]) == {"lease_granted", "capture_resumed"}
    assert [event.sequence for event in journal.events] == list(range(1, len(journal.events) + 1))


async def test_an_agent_without_firmware_says_so_though_it_can_have_no_lease(
    make_agent: MakeAgent, controller: SmallController
) -> None:
    agent = make_agent()
    (agent.directory / "firmware" / "manifest.sig").unlink()
    await agent.start()
    line = line_to(controller, agent)
    async with journal_of(line) as journal:
        await journal.until("firmware_refused")
    assert journal.events[-1].severity == event_pb2.EVENT_SEVERITY_CRITICAL
    assert journal.events[-1].detail["reason"] == "FIRMWARE_UNSIGNED"
    await line.close()


async def test_an_agent_that_was_killed_goes_on_after_the_last_event_that_its_caller_has(
    running: Running, controller: SmallController
) -> None:
    agent, line = running
    async with journal_of(line) as journal:
        await line.take_lease()
        await journal.until("lease_granted")
    agent.kill()
    await agent.start()
    again = line_to(controller, agent)
    async with journal_of(again, journal.events[0]) as later:
        await later.until("agent_started")
    assert later.types == ["lease_granted", "agent_started"]
    assert [event.sequence for event in later.events] == [2, 3]
    assert later.events[0] == journal.events[1]
    await again.close()


async def test_sigterm_tells_the_end_before_streams_end(running: Running) -> None:
    agent, line = running
    async with journal_of(line) as journal:
        await line.take_lease()
        await line.command("StartCapture", pb.StartCaptureRequest(spec=CaptureSpec(interfaces=["lo"])))
        await journal.until("capture_started")
        stopping = asyncio.create_task(agent.stop())
        assert await reason_of(journal.end()) == "AGENT_STOPPING"
        assert await stopping == 0
    assert journal.types[-2:] == ["capture_stopped", "agent_stopped"]


async def test_streams_of_events_are_few_and_make_room_again(running: Running) -> None:
    _, line = running
    journals = [Journal(line, None) for _ in range(MAX_EVENT_STREAMS)]
    for journal in journals:
        await journal.until("agent_started")
    assert await reason_of(Journal(line, None).end()) == "STREAM_LIMIT"
    for journal in journals:
        journal.call.cancel()

    async def there_is_room() -> None:
        while True:
            journal = Journal(line, None)
            try:
                await journal.until("agent_started")
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                journal.call.cancel()
                return

    async with asyncio.timeout(10):
        await there_is_room()
