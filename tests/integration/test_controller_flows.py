# SPDX-License-Identifier: Apache-2.0
"""WatchFlows: many agents as one stream, through breaks, restarts, quarantines and newcomers; nothing repeats or is skipped."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from jarvis.capture.v1 import agent_pb2, capture_pb2, fleet_pb2, flow_pb2
from jarvis_controller.agent_record import Carrier
from jarvis_controller.rpc_status import status_of
from jarvis_controller.states import Event
from jarvis_trust.identities import Role
from jarvis_trust.status import reason_of

from tests.support import ReleaseKey
from tests.unit.controller.fake_agent import FakeAgent, records_batch
from tests.unit.controller.fleet import TestFleet, running_fleet


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, release_key: ReleaseKey, carrier: Carrier) -> AsyncIterator[TestFleet]:
    async with running_fleet(tmp_path, release_key, carrier=carrier) as made:
        yield made


class Watcher:
    """What a subscriber has seen."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.flows: dict[str, list[int]] = defaultdict(list)
        self.lost: dict[str, int] = defaultdict(int)
        self.losses: list[flow_pb2.LossNotice] = []
        self.statuses: list[tuple[str, bool, int, str]] = []
        self.watermarks = 0

    async def until(self, condition: Any, *, seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                answer = await self._stream.read()
                assert answer is not grpc.aio.EOF, "the stream ended"
                self.note(answer)

    async def to_the_end(self) -> None:
        while (answer := await self._stream.read()) is not grpc.aio.EOF:
            self.note(answer)

    def note(self, answer: fleet_pb2.WatchFlowsResponse) -> None:
        match answer.WhichOneof("event"):
            case "batch":
                self.flows[answer.agent_id] += [record.flow_id for record in answer.batch.records]
            case "loss":
                self.lost[answer.agent_id] += answer.loss.lost
                self.losses.append(answer.loss)
            case "status":
                self.statuses.append((answer.agent_id, answer.status.streaming, answer.status.state, answer.status.message))
            case "watermark":
                self.watermarks += 1

    def close(self) -> None:
        self._stream.cancel()


async def watch(fleet: TestFleet, *, follow: bool = True, **fields: Any) -> Watcher:
    stub = await fleet.stub(Role.VIEWER)
    subscription = fields.pop("subscription", capture_pb2.FlowSubscription())
    subscription.follow = follow
    return Watcher(stub.WatchFlows(fleet_pb2.WatchFlowsRequest(subscription=subscription, **fields)))


async def test_flows_of_all_agents_come_as_one_stream_with_their_ids(fleet: TestFleet) -> None:
    agents = [await fleet.add_agent(), await fleet.add_agent()]
    for agent in agents:
        for _ in range(5):
            agent.add_records(10)
    watcher = await watch(fleet, follow=False)
    await watcher.to_the_end()
    assert watcher.flows == {agent.agent_id: list(range(1, 51)) for agent in agents}
    assert sorted(status[:2] for status in watcher.statuses) == sorted((agent.agent_id, True) for agent in agents)


async def test_new_flows_follow(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    watcher = await watch(fleet)
    agent.add_records(2)
    await watcher.until(lambda: watcher.flows[agent.agent_id] == [1, 2])
    agent.add_records(1)
    await watcher.until(lambda: watcher.flows[agent.agent_id] == [1, 2, 3])
    watcher.close()


async def test_a_broken_stream_is_resumed_without_a_repeat_or_a_gap(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    for _ in range(6):
        agent.add_records(4)
    agent.end_stream_after = 3
    watcher = await watch(fleet)
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) >= 24)
    assert watcher.flows[agent.agent_id] == list(range(1, 25))
    assert [status[1] for status in watcher.statuses] == [True, False, True]
    assert agent.subscriptions[1].resume_token == b"13"
    assert watcher.losses == [], "the same process still had them"
    watcher.close()


async def test_a_stream_goes_on_over_a_new_connection_when_the_controller_closed_the_old_one(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.add_records(3)
    watcher = await watch(fleet)
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) == 3)
    await fleet.controller.client.forget(agent.agent_id)
    agent.add_records(3)
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) >= 6)
    assert watcher.flows[agent.agent_id] == [1, 2, 3, 4, 5, 6]
    assert watcher.losses == []
    watcher.close()


async def test_an_agent_that_restarts_in_mid_stream_is_attested_again_and_resumed(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.add_records(3)
    watcher = await watch(fleet)
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) == 3)
    await agent.restart()
    agent.add_records(3)
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) >= 6)
    assert watcher.flows[agent.agent_id] == [1, 2, 3, 4, 5, 6]
    (loss,) = watcher.losses
    assert (loss.point, loss.count_unknown, loss.lost) == (flow_pb2.LOSS_POINT_AGENT_PROCESS, True, 0)
    assert (loss.shard, loss.first_sequence) == (0, 4)
    assert 0 < loss.first_time.ToNanoseconds() <= loss.last_time.ToNanoseconds()
    watcher.close()


async def test_an_agent_that_stops_in_order_and_comes_back_has_lost_nothing(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.add_records(3)
    watcher = await watch(fleet)
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) == 3)
    await agent.shut_down()
    await agent.start()
    agent.add_records(3)
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) >= 6)
    assert watcher.flows[agent.agent_id] == [1, 2, 3, 4, 5, 6]
    assert watcher.losses == []
    watcher.close()


async def test_a_quarantine_ends_the_agents_flows_and_is_told_with_its_reason(fleet: TestFleet) -> None:
    bad, good = await fleet.add_agent(), await fleet.add_agent()
    bad.add_records(1)
    watcher = await watch(fleet)
    await watcher.until(lambda: watcher.flows[bad.agent_id])
    stub = await fleet.stub(Role.OPERATOR)
    await stub.QuarantineAgent(fleet_pb2.QuarantineAgentRequest(agent_id=bad.agent_id, reason="stolen"))
    await watcher.until(lambda: any(status[0] == bad.agent_id and not status[1] for status in watcher.statuses))
    told = [status for status in watcher.statuses if status[0] == bad.agent_id][-1]
    assert told[2] == fleet_pb2.AGENT_STATE_QUARANTINED
    assert "stolen" in told[3]
    bad.add_records(5)
    good.add_records(2)
    await watcher.until(lambda: len(watcher.flows[good.agent_id]) == 2)
    assert watcher.flows[bad.agent_id] == [1]
    watcher.close()


async def test_an_agent_that_joins_later_joins_the_stream_if_the_selector_means_it(fleet: TestFleet) -> None:
    await fleet.add_agent(labels={"role": "web"})
    watcher = await watch(fleet, selector=fleet_pb2.AgentSelector(label_selector="role=web"))
    await watcher.until(lambda: True)
    other = await fleet.add_agent(labels={"role": "db"})
    late = await fleet.add_agent(labels={"role": "web"})
    other.add_records(1)
    late.add_records(2)
    await watcher.until(lambda: watcher.flows[late.agent_id] == [1, 2])
    assert other.agent_id not in watcher.flows
    watcher.close()


async def test_a_released_agent_rejoins(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    await fleet.controller.attester.revoke(
        await fleet.controller.store.change_state(agent.agent_id, Event.QUARANTINE_ORDERED, "because", principal="test")
    )
    watcher = await watch(fleet)
    await watcher.until(lambda: watcher.statuses)
    assert watcher.statuses[0][1:3] == (False, fleet_pb2.AGENT_STATE_QUARANTINED)
    stub = await fleet.stub(Role.ADMIN)
    await stub.ReleaseAgent(fleet_pb2.ReleaseAgentRequest(agent_id=agent.agent_id, reason="fine"))
    agent.add_records(1)
    await watcher.until(lambda: watcher.flows[agent.agent_id] == [1])
    watcher.close()


async def test_losses_and_watermarks_of_agents_are_passed_on(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    loss = flow_pb2.LossNotice(point=flow_pb2.LOSS_POINT_KERNEL_RING, lost=17)
    agent.batches += [
        agent_pb2.StreamFlowsResponse(loss=loss).SerializeToString(),
        agent_pb2.StreamFlowsResponse(watermark=flow_pb2.Watermark()).SerializeToString(),
    ]
    watcher = await watch(fleet, follow=False)
    await watcher.to_the_end()
    assert (watcher.lost[agent.agent_id], watcher.watermarks) == (17, 1)


async def test_a_forged_message_ends_the_agents_stream_and_is_never_passed_on(fleet: TestFleet) -> None:
    forger, honest = await fleet.add_agent(), await fleet.add_agent()
    forged = records_batch(1, 1) + fleet_pb2.WatchFlowsResponse(agent_id=honest.agent_id).SerializeToString()
    forger.batches.append(forged)
    watcher = await watch(fleet, follow=False)
    await watcher.to_the_end()
    assert watcher.flows == {}
    assert any(status[0] == forger.agent_id and "FLOW_MESSAGE_MALFORMED" in status[3] for status in watcher.statuses)


async def test_a_bad_filter_is_refused_with_the_agents_words(fleet: TestFleet) -> None:
    await fleet.add_agent()
    watcher = await watch(fleet, subscription=capture_pb2.FlowSubscription(filter="bad filter"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await watcher.to_the_end()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(status_of(refused.value)) == "FILTER_INVALID"


async def test_a_resume_token_is_for_one_agent(fleet: TestFleet) -> None:
    for _ in range(2):
        await fleet.add_agent()
    watcher = await watch(fleet, subscription=capture_pb2.FlowSubscription(resume_token=b"1"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await watcher.to_the_end()
    assert "resume_token" in (refused.value.details() or "")


async def test_an_operators_own_token_that_the_agent_refuses_ends_the_stream_with_its_reason(fleet: TestFleet) -> None:
    await fleet.add_agent()
    watcher = await watch(fleet, subscription=capture_pb2.FlowSubscription(resume_token=b"of another capture"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await watcher.to_the_end()
    assert reason_of(status_of(refused.value)) == "RESUME_TOKEN_INVALID"


async def test_a_new_capture_after_a_crash_is_followed_from_its_first_record(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.add_records(3)
    watcher = await watch(fleet)
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) == 3)
    await agent.stop()
    agent.batches = [records_batch(1000, 2)]  # another record log: the old token says nothing there
    await agent.start()
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) >= 5)
    assert watcher.flows[agent.agent_id] == [1, 2, 3, 1000, 1001]
    assert [(loss.point, loss.count_unknown) for loss in watcher.losses] == [(flow_pb2.LOSS_POINT_AGENT_PROCESS, True)]
    watcher.close()


async def test_a_capture_that_was_replaced_while_the_stream_was_broken_may_have_lost_records(fleet: TestFleet) -> None:
    agent = await fleet.add_agent()
    agent.add_records(3)
    agent.add_records(3)
    agent.end_stream_after = 1
    watcher = await watch(fleet)
    await watcher.until(lambda: any(not status[1] for status in watcher.statuses))
    agent.batches = [records_batch(1000, 2)]
    await watcher.until(lambda: len(watcher.flows[agent.agent_id]) >= 5)
    assert watcher.flows[agent.agent_id] == [1, 2, 3, 1000, 1001]
    assert [loss.count_unknown for loss in watcher.losses] == [True]
    watcher.close()


async def test_a_slow_subscriber_gets_the_newest_and_an_exact_account_of_the_rest(
    tmp_path: Path, release_key: ReleaseKey, carrier: Carrier
) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier, subscriber_queue_messages=4) as fleet:
        agent = await fleet.add_agent()
        total = 0
        for _ in range(400):
            agent.batches.append(records_batch(total + 1, 2000))
            total += 2000
        watcher = await watch(fleet)
        await asyncio.sleep(2)  # gRPC's own windows take some; the rest has to be dropped
        await watcher.until(lambda: len(watcher.flows[agent.agent_id]) + watcher.lost[agent.agent_id] >= total)
        flows = watcher.flows[agent.agent_id]
        assert watcher.lost[agent.agent_id] > 0
        assert len(flows) + watcher.lost[agent.agent_id] == total
        assert flows == sorted(set(flows))
        assert flows[-1] == total
        watcher.close()


async def test_a_subscriber_that_wants_no_loss_is_disconnected_when_it_is_slow(
    tmp_path: Path, release_key: ReleaseKey, carrier: Carrier
) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier, subscriber_queue_messages=4) as fleet:
        agent = await fleet.add_agent()
        agent.batches += [records_batch(1 + 2000 * number, 2000) for number in range(400)]
        watcher = await watch(fleet, slow_consumer_policy=fleet_pb2.SLOW_CONSUMER_POLICY_DISCONNECT)
        await asyncio.sleep(2)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watcher.to_the_end()
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(status_of(ended.value)) == "SLOW_CONSUMER"


async def test_reading_what_is_kept_loses_nothing_however_slow_the_subscriber(
    tmp_path: Path, release_key: ReleaseKey, carrier: Carrier
) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier, subscriber_queue_messages=4) as fleet:
        agent = await fleet.add_agent()
        agent.batches += [records_batch(1 + 2000 * number, 2000) for number in range(400)]
        watcher = await watch(fleet, follow=False)
        await asyncio.sleep(1)
        await watcher.to_the_end()
        assert watcher.flows[agent.agent_id] == list(range(1, 800_001))
        assert not watcher.lost


async def test_a_stopping_controller_ends_streams_as_unavailable(
    tmp_path: Path, release_key: ReleaseKey, carrier: Carrier
) -> None:
    async with running_fleet(tmp_path, release_key, carrier=carrier) as fleet:
        agent: FakeAgent = await fleet.add_agent()
        agent.add_records(1)
        watcher = await watch(fleet)
        await watcher.until(lambda: watcher.flows[agent.agent_id])
        fleet.controller.fleet_service.drain()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watcher.to_the_end()
        assert reason_of(status_of(ended.value)) == "CONTROLLER_STOPPING"
