# SPDX-License-Identifier: Apache-2.0
"""WatchEvents: what agents and controller tell reaches operators once each, through breaks and restarts of every part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from jarvis.capture.v1 import event_pb2, fleet_pb2
from jarvis_controller.agent_record import Carrier
from jarvis_controller.rpc_status import status_of
from jarvis_controller.server import Controller
from jarvis_trust.identities import Role
from jarvis_trust.status import reason_of

from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import FakeAgent
from tests.unit.controller.fleet import TestFleet, eventually, running_fleet

LOSS = event_pb2.EVENT_TYPE_CAPTURE_LOSS
STATE_CHANGED = event_pb2.EVENT_TYPE_AGENT_STATE_CHANGED


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey, carrier: Carrier) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key, carrier=carrier) as made:
        yield made


class Watcher:
    """What an operator has seen."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.events: list[event_pb2.Event] = []
        self.lost = 0
        self.token = b""

    async def until(self, condition: Any, *, seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                answer = await self._stream.read()
                assert answer is not grpc.aio.EOF, "the stream ended"
                self.note(answer)

    async def to_the_end(self) -> list[event_pb2.Event]:
        while (answer := await self._stream.read()) is not grpc.aio.EOF:
            self.note(answer)
        return self.events

    def note(self, answer: fleet_pb2.WatchEventsResponse) -> None:
        self.token = answer.resume_token
        if answer.WhichOneof("event") == "happened":
            self.events.append(answer.happened)
        self.lost += answer.loss.lost

    def numbers(self, agent: FakeAgent | None = None) -> list[int]:
        """Of agents' losses."""
        return [
            event.sequence for event in self.events if event.type == LOSS and (agent is None or event.agent_id == agent.agent_id)
        ]

    def states(self, agent: FakeAgent) -> list[str]:
        return [event.detail["to"] for event in self.events if event.type == STATE_CHANGED and event.agent_id == agent.agent_id]

    async def refusal(self) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.to_the_end()
        return reason_of(status_of(refused.value))

    def close(self) -> None:
        self._stream.cancel()


async def watch(fleet: TestFleet, *, follow: bool = True, **fields: Any) -> Watcher:
    stub = await fleet.stub(Role.VIEWER)
    return Watcher(stub.WatchEvents(fleet_pb2.WatchEventsRequest(follow=follow, **fields)))


async def kept(fleet: TestFleet, **fields: Any) -> list[event_pb2.Event]:
    return await (await watch(fleet, follow=False, **fields)).to_the_end()


async def is_kept(fleet: TestFleet, agent: FakeAgent, count: int) -> None:
    """Waits until so many losses of the agent are in the log."""

    async def there() -> bool:
        found = await kept(fleet, types=[LOSS])
        return sum(event.agent_id == agent.agent_id for event in found) >= count

    await eventually(there, f"{count} events of {agent.agent_id}")


async def test_events_of_agents_and_controller_come_as_one_stream_each_once(fleet: TestFleet) -> None:
    watcher = await watch(fleet)
    agents = [await fleet.add_agent(), await fleet.add_agent()]
    for _ in range(3):
        for agent in agents:
            agent.tell(value=5, interface="eth0", message="frames were lost")
    await watcher.until(lambda: len(watcher.numbers()) == 6)
    for agent in agents:
        assert watcher.numbers(agent) == [1, 2, 3]
        assert watcher.states(agent) == ["VERIFIED"]
    first = next(event for event in watcher.events if event.type == LOSS)
    assert (first.interface, first.value, first.message) == ("eth0", 5, "frames were lost")
    assert first.HasField("receive_time")
    watcher.close()


async def test_a_quarantine_is_told_at_once_and_ends_listening_to_the_agent(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.tell()
    await is_kept(fleet, agent, 1)
    watcher = await watch(fleet, only_new=True, min_severity=event_pb2.EVENT_SEVERITY_CRITICAL)
    await watcher.until(lambda: watcher.token)
    stub = await fleet.stub()
    await stub.QuarantineAgent(fleet_pb2.QuarantineAgentRequest(agent_id=agent.agent_id, reason="stolen"))
    await watcher.until(lambda: watcher.events)
    (event,) = watcher.events
    assert (event.detail["to"], event.severity) == ("QUARANTINED", event_pb2.EVENT_SEVERITY_CRITICAL)
    assert "stolen" in event.detail["reason"]

    async def cut_off() -> bool:
        return agent.event_calls == 0

    await eventually(cut_off, "the agent's stream has ended")
    requests = len(agent.event_requests)
    agent.tell()
    await asyncio.sleep(1.0)
    assert (len(agent.event_requests), agent.event_calls) == (requests, 0)
    await stub.ReleaseAgent(fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id, reason="found"))
    await is_kept(fleet, agent, 2)
    watcher.close()


async def test_a_broken_connection_neither_repeats_nor_skips(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    watcher = await watch(fleet, types=[LOSS])
    for round_ in range(4):
        agent.tell(5)
        await watcher.until(lambda reached=5 * (round_ + 1): len(watcher.numbers()) >= reached)
        await fleet.controller.client.forget(agent.agent_id)
    agent.tell(5)
    await watcher.until(lambda: len(watcher.numbers()) >= 25)
    assert watcher.numbers() == list(range(1, 26))
    assert agent.event_requests[-1].sequence == 20
    watcher.close()


async def test_an_agent_that_was_away_brings_what_it_kept_and_the_gap_is_counted(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.tell(2)
    await is_kept(fleet, agent, 2)
    await agent.stop()
    agent.tell(10)
    del agent.events[:9]  # what it had no room for: 3..9 nobody has seen
    await agent.restart()
    await fleet.controller.attester.attest(agent.agent_id)
    await is_kept(fleet, agent, 5)
    found = [event for event in await kept(fleet) if event.agent_id == agent.agent_id]
    assert [event.sequence for event in found if event.type == LOSS] == [1, 2, 10, 11, 12]
    assert [event.value for event in found if event.type == event_pb2.EVENT_TYPE_EVENTS_LOST] == [7]


async def test_a_controller_that_restarts_goes_on_where_it_was(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.tell(3)
    await is_kept(fleet, agent, 3)
    watcher = await watch(fleet)
    await watcher.until(lambda: len(watcher.numbers()) == 3)
    watcher.close()
    # Another controller over the same database, as after a crash; the first one goes on listening, which must not matter.
    async with Controller(fleet.config).running() as _:
        agent.tell(2)
        await is_kept(fleet, agent, 5)
    later = await watch(fleet, follow=False, resume_token=watcher.token, types=[LOSS])
    assert [event.sequence for event in await later.to_the_end()] == [4, 5]


async def test_starts_ends_and_tokens_select_what_is_kept(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.tell(10)
    await is_kept(fleet, agent, 10)
    assert [event.sequence for event in await kept(fleet, last_events=3, types=[LOSS])] == [8, 9, 10]
    assert len(await kept(fleet, last_events=1000, types=[LOSS])) == 10
    assert await kept(fleet, only_new=True) == []
    watcher = await watch(fleet, follow=False, types=[LOSS])
    await watcher.until(lambda: len(watcher.events) == 4)
    watcher.close()
    assert [event.sequence for event in await kept(fleet, resume_token=watcher.token, types=[LOSS])] == list(range(5, 11))
    middle = (await kept(fleet, types=[LOSS]))[4].receive_time
    assert len(await kept(fleet, since=middle, types=[LOSS])) >= 6
    refused = await watch(fleet, resume_token=b"x" * 24)
    assert await refused.refusal() == "RESUME_TOKEN_INVALID"


async def test_a_selector_means_agents_of_today_and_of_later_and_retired_ones(fleet: TestFleet) -> None:
    web = await fleet.add_agent(labels={"role": "web"})
    other = await fleet.add_agent(labels={"role": "db"})
    watcher = await watch(fleet, selector=fleet_pb2.AgentSelector(label_selector="role=web"))
    web.tell()
    other.tell()
    later = await fleet.add_agent(labels={"role": "web"})
    later.tell()
    await watcher.until(lambda: watcher.numbers(later))
    await is_kept(fleet, other, 1)
    assert {event.agent_id for event in watcher.events} == {web.agent_id, later.agent_id}
    assert event_pb2.EVENT_TYPE_AGENT_ENROLLED in {event.type for event in watcher.events if event.agent_id == later.agent_id}
    watcher.close()
    stub = await fleet.stub()
    await stub.RetireAgent(fleet_pb2.RetireAgentRequest(agent_id=web.agent_id, reason="scrapped"))
    found = await kept(fleet, selector=fleet_pb2.AgentSelector(agent_ids=[web.agent_id]))
    assert found[-1].detail["to"] == "RETIRED"
    assert web.agent_id in {event.agent_id for event in await kept(fleet)}
    nobody = await watch(fleet, selector=fleet_pb2.AgentSelector(label_selector="role=none"))
    assert await nobody.refusal() == "AGENT_NOT_FOUND"


async def test_an_agent_that_forges_the_controllers_events_is_not_believed(fleet: TestFleet) -> None:
    liar, honest = await fleet.add_agent(), await fleet.add_agent()
    liar.tell(type=STATE_CHANGED, value=fleet_pb2.AGENT_STATE_QUARANTINED, agent_id=honest.agent_id, detail={"to": "QUARANTINED"})
    honest.tell()
    await is_kept(fleet, honest, 1)

    async def refused_twice() -> bool:
        return len(liar.event_requests) >= 2

    await eventually(refused_twice, "the controller has turned away from it and come back")
    found = await kept(fleet, types=[STATE_CHANGED])
    assert {event.detail["to"] for event in found} == {"VERIFIED"}


async def test_an_operator_that_reads_slowly_is_told_how_many_events_went(
    tmp_path: Path, release_key: ReleaseKey, carrier: Carrier
) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier, kept_events=1000) as fleet:
        agent = await fleet.add_agent()
        early = await watch(fleet)
        await early.until(lambda: early.token)
        early.close()
        token = early.token
        agent.tell(1900)
        await is_kept(fleet, agent, 1000)

        async def all_there() -> bool:
            return (await kept(fleet, last_events=1))[0].sequence == 1900

        await eventually(all_there, "all events were collected")
        late = await watch(fleet, follow=False, resume_token=token)
        events = await late.to_the_end()
        assert [event.sequence for event in events] == list(range(901, 1901))
        before = len(early.events)
        assert late.lost == 900 + 2 - before, "900 of the agent, and of the controller's two those not seen by then"


async def test_a_drained_controller_ends_the_stream(tmp_path: Path, release_key: ReleaseKey, carrier: Carrier) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier) as fleet:
        watcher = await watch(fleet)
        await watcher.until(lambda: watcher.token)
        fleet.controller.fleet_service.drain()
        assert await watcher.refusal() == "CONTROLLER_STOPPING"
